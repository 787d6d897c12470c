"""Where a graph can run: the device and its options, the threads, and the wheel that is installed.

Nothing here imports ONNX Runtime, so that `l2e doctor` can speak where it is absent or broken.
"""

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from models import SHIPPED, SHIPPED_INT8

DeviceName = Literal["auto", "cpu", "cuda", "cuda-graphs", "openvino", "openvino-bf16"]
DEVICES: Final[tuple[DeviceName, ...]] = get_args(DeviceName)
# These write the same folder of site-packages: the one installed last wins, silently.
RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
_PROVIDERS: Final = {
    "cpu": CPU,
    "cuda": CUDA,
    "cuda-graphs": CUDA,
    "openvino": OPENVINO,
    "openvino-bf16": OPENVINO,
}
# With one of these x86 sums products of bytes in 32 bits.
_WIDE_SUMS: Final = ("avx512_vnni", "avx_vnni", "amx_int8")
_CURES: Final = {
    CUDA: "install the extra `gpu` into an environment without the extras `cpu` and `openvino`,"
    " check the NVIDIA driver with `nvidia-smi`, or use device auto or cpu",
    OPENVINO: "install the extra `openvino` into an environment without the extras `cpu` and"
    " `gpu`, or use device auto or cpu",
}


class DeviceError(Exception):
    """The device that was asked for cannot be used; the message says why and gives the cure."""


class Device(NamedTuple):
    """Where the graph runs and why there.

    Attributes:
        name: one of `DEVICES` except auto.
        provider: the name that ONNX Runtime gives to it.
        reason: why this one, for a log line or `l2e doctor`.
    """

    name: str
    provider: str
    reason: str

    def batch_tokens(self, threads: int) -> int:
        """Returns the padded tokens of one run with which texts are computed the quickest.

        What each core works on should stay in its cache: on two cores of an AMD EPYC a token took a
        fifth more in runs of 2,048. With 384 a single one answers fewer short texts, and others
        hardly sooner (docs/results/limits.json). That of CUDA is a guess, for it has not been run.
        """
        if self.provider == CUDA:
            return 16_384
        return 512 if self.provider == CPU else 256 * max(2, threads)

    def runners(self, threads: int) -> int:
        """Returns how many runs at a time keep so many threads busy, see `models.cores`.

        OpenVINO has streams of its own, which have not been tried, and CUDA runs one at a time.
        """
        return threads if self.provider == CPU else 1

    @property
    def kind(self) -> str:
        """Without how it computes: cpu, cuda or openvino."""
        return self.name.partition("-")[0]

    @property
    def precision(self) -> str | None:
        """In what the device computes instead of the graph's own types; None where it does not."""
        return "bf16" if self.name == "openvino-bf16" else None

    @property
    def graphs(self) -> bool:
        """Whether runs are recorded as CUDA graphs and played back."""
        return self.name == "cuda-graphs"

    @property
    def splits(self) -> bool:
        """Whether it gets two graphs without control flow in place of one, see `models.graph`."""
        return self.provider != CPU

    def options(self, threads: int) -> dict[str, str]:
        """Return the provider's options.

        Args:
            threads: of the processor; the CPU provider takes them from the session instead.
        """
        if self.provider == CUDA:
            # Full float32, as on the CPU: a bundle that may compute in less says so itself.
            options = {"use_tf32": "0"}
            return options | {"enable_cuda_graph": "1"} if self.graphs else options
        if self.provider == OPENVINO:
            # Without the hint OpenVINO takes bfloat16 by itself where the processor has it.
            hint = {"INFERENCE_PRECISION_HINT": self.precision or "f32"}
            config = {"CPU": {**hint, "INFERENCE_NUM_THREADS": str(threads)}}
            return {"device_type": "CPU", "load_config": json.dumps(config)}
        return {}


def available_device(requested: str, providers: Sequence[str]) -> Device:
    """Choose where to run among what this ONNX Runtime offers.

    Args:
        requested: one of `DEVICES`; auto takes CUDA where it is listed, else the CPU. OpenVINO is
            never taken unasked: in float32 it is no faster, and in bfloat16 answers change.
        providers: the names ONNX Runtime lists as available. Being listed is necessary and not
            sufficient: a provider may still not start.

    Raises:
        DeviceError: another device than the CPU was asked for and is not listed.
        ValueError: `requested` is something else.
    """
    if requested == "auto":
        if CUDA in providers:
            return Device("cuda", CUDA, f"this ONNX Runtime has {CUDA}")
        unasked = "; openvino and openvino-bf16 are for the asking" if OPENVINO in providers else ""
        return Device("cpu", CPU, f"this ONNX Runtime has no {CUDA}{unasked}")
    if requested not in _PROVIDERS:
        known = f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}"
        raise ValueError(f"unknown device {requested!r}: use {known}")
    provider = _PROVIDERS[requested]
    if provider != CPU and provider not in providers:
        raise no_such_device(requested, f"this ONNX Runtime has no {provider}")
    return Device(requested, provider, f"{requested} was asked for")


def shipped_bundle(
    device: DeviceName,
    runtimes: Collection[str] | None = None,
    flags: Collection[str] | None = None,
) -> Path:
    """Return the folder of the shipped bundle in the precision for a device.

    It is int8 for the processor by ONNX Runtime itself, where that has VNNI: there it was measured
    to take about half of the time. It is fp32 for all else, which may compute it in what it has;
    also where a processor sums products of bytes by the slower kernels of `integer_options`.

    Args:
        device: auto stands for CUDA where its ONNX Runtime is installed, else for the processor.
        runtimes: the wheels of ONNX Runtime; None looks which are installed.
        flags: of the processor; None asks `processor_flags`.
    """
    if device == "auto":
        found = installed_runtimes() if runtimes is None else runtimes
        device = "cuda" if "onnxruntime-gpu" in found else "cpu"
    known = processor_flags() if flags is None else flags
    return SHIPPED_INT8 if device == "cpu" and _sums_widely(known) else SHIPPED


def no_such_device(requested: str, reason: str) -> DeviceError:
    """Return the error that says why a device cannot be used, with the cure."""
    cure = _CURES[_PROVIDERS[requested]]
    if requested == "cuda-graphs":
        cure = f"only a bundle in fp16 can be recorded: take one, or device cuda; else {cure}"
    return DeviceError(f"device {requested!r} does not work here: {reason}: {cure}")


def installed(name: str) -> str | None:
    """Return the version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_runtimes() -> dict[str, str]:
    """Return the wheels of ONNX Runtime that are installed, with their versions."""
    return {name: version for name in RUNTIMES if (version := installed(name))}


def check_runtimes(found: Mapping[str, str]) -> None:
    """Refuse to run on what several wheels left of each other.

    Args:
        found: from `installed_runtimes`.

    Raises:
        DeviceError: more than one is installed.
    """
    if len(found) > 1:
        wheels = " and ".join(f"{name} {version}" for name, version in found.items())
        raise DeviceError(
            f"{wheels} are installed and overwrite each other: pip uninstall {' '.join(found)},"
            " then install one of the extras `cpu`, `gpu` and `openvino`"
        )


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets that Linux lists for an x86 processor, none on any other.

    Args:
        cpuinfo: the file that lists them.
    """
    with contextlib.suppress(OSError), cpuinfo.open(encoding="utf-8") as file:
        for line in file:
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return frozenset(flags.split())
    return frozenset()


def integer_options(flags: Collection[str]) -> dict[str, str]:
    """Return ONNX Runtime's session options with which products in 8-bit integers are exact.

    Without VNNI its kernels for unsigned times signed bytes clip sums of two products to 16 bits,
    and a bundle in int8 would answer differently there. The option makes it take signed weights
    for unsigned ones, and slower kernels; where VNNI is, they would be slower for nothing.

    Args:
        flags: of the processor, from `processor_flags`.
    """
    return {} if _sums_widely(flags) else {"session.x64quantprecision": "1"}


def _sums_widely(flags: Collection[str]) -> bool:
    return any(flag in flags for flag in _WIDE_SUMS)


def available_threads() -> int:
    """Return how many threads this process can keep busy, by its affinity and cgroup v2 quota."""
    # Only Linux has affinity and cgroups.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    membership = ""
    with contextlib.suppress(OSError):
        membership = Path("/proc/self/cgroup").read_text()
    return thread_limit(cores or 1, cgroup_quotas(Path("/sys/fs/cgroup"), membership))


def thread_limit(cores: int, quotas: Iterable[str]) -> int:
    """Return the threads that fit in `cores` and in every `cpu.max` text, at least 1.

    A quota is "microseconds period" or "max period". It is rounded down: one thread too many is
    throttled in the middle of a batch, and all others wait for it.
    """
    limit = cores
    for text in quotas:
        fields = text.split()
        if len(fields) == 2 and all(part.isdecimal() and int(part) for part in fields):
            limit = min(limit, int(fields[0]) // int(fields[1]))
    return max(1, limit)


def cgroup_quotas(root: Path, membership: str) -> list[str]:
    """Read `cpu.max` of this process's cgroup and of all its ancestors, as far as they exist.

    Args:
        root: where cgroup v2 is mounted.
        membership: the text of /proc/self/cgroup, whose line "0::/path" is that of version 2.
    """
    quotas = []
    for line in membership.splitlines():
        if line.startswith("0::/"):
            group = root / line.removeprefix("0::/")
            levels = [group, *group.parents]
            for level in levels[: levels.index(root) + 1]:
                with contextlib.suppress(OSError):
                    quotas.append((level / "cpu.max").read_text())
    return quotas
