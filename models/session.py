"""ONNX Runtime around the one graph of a bundle: numpy in, numpy out.

ONNX Runtime falls back to the CPU without an error and takes the cores of the host for its own;
here the device is checked after loading and the threads follow what this process may use.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.manifest import CorruptFileError, MismatchError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
DeviceName = Literal["auto", "cpu", "cuda"]

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_CUDA_CURE: Final = (
    "install the extra `gpu` into an environment without the extra `cpu`, check the NVIDIA driver"
    " with `nvidia-smi`, or use device auto or cpu"
)
_INPUTS: Final = {
    "input_ids": "tensor(int64)",
    "attention_mask": "tensor(int64)",
    "target": "tensor(int64)",
    "explain": "tensor(bool)",
}
_OUTPUTS: Final = ("logits", "weights", "label_probs")


class DeviceError(Exception):
    """The device that was asked for cannot be used; the message says why and gives the cure."""


class Device(NamedTuple):
    """Where the graph runs and why there."""

    name: Literal["cpu", "cuda"]
    provider: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What one run of the graph gives for B rows of T tokens and C classes.

    Attributes:
        logits: float32 [B, C].
        weights: float32 [B, T], log-odds of the target; zeros unless explained.
        label_probs: float32 [B, T, 5], from high negative to high positive; zeros unless
            explained.
    """

    logits: FloatArray
    weights: FloatArray
    label_probs: FloatArray


class OnnxSession:
    """The loaded graph; `run` may be called from several threads.

    Args:
        model: the bytes of the graph or the file that holds it.
        device: auto takes CUDA where it works and the CPU elsewhere.
        threads: of the CPU provider, at least 1; None takes what `available_threads` says.

    Attributes:
        device: "cpu" or "cuda", where the graph runs.
        provider: the name that ONNX Runtime gives to it.
        device_reason: why this device, for a log line or `l2e doctor`.

    Raises:
        DeviceError: cuda was asked for and does not work; there is no fallback then.
        BundleError: the graph cannot be loaded, or has other inputs or outputs.
    """

    def __init__(
        self, model: bytes | Path, *, device: DeviceName = "auto", threads: int | None = None
    ) -> None:
        """Load the graph and check where it runs and what it takes and gives."""
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: give at least 1, or None for all it may use")
        self.threads = available_threads() if threads is None else threads
        where = str(model) if isinstance(model, Path) else "the ONNX graph"
        chosen = available_device(device, ort.get_available_providers())
        self._session, found = _open(model, where, chosen, self.threads)
        if found.name != chosen.name and device == "cuda":
            raise DeviceError(f"device 'cuda' does not work here: {found.reason}: {_CUDA_CURE}")
        self.device, self.provider, self.device_reason = found
        _check_signature(self._session, where)

    def run(
        self, input_ids: IntArray, attention_mask: IntArray, target: IntArray, *, explain: bool
    ) -> Outputs:
        """Classify a batch and, if wanted, explain it.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T], 1 for tokens and 0 for pads.
            target: int64 [B], the class to explain, -1 for the predicted one.
            explain: False leaves the explainer out, and its outputs are zeros.
        """
        feed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "target": target,
            "explain": np.array(explain),
        }
        return Outputs(*self._session.run(list(_OUTPUTS), feed))


def available_device(requested: str, providers: Sequence[str]) -> Device:
    """Choose where to run among what this ONNX Runtime offers.

    Args:
        requested: auto, cpu or cuda.
        providers: the names ONNX Runtime lists as available. Being listed is necessary and not
            sufficient: the CUDA provider may still not start.

    Raises:
        DeviceError: cuda was asked for and is not listed.
        ValueError: `requested` is something else.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {requested!r}: use auto, cpu or cuda")
    if requested == "cpu":
        return Device("cpu", _CPU, "cpu was asked for")
    if _CUDA in providers:
        return Device("cuda", _CUDA, f"this ONNX Runtime has {_CUDA}")
    reason = f"this ONNX Runtime has no {_CUDA}"
    if requested == "cuda":
        raise DeviceError(f"device 'cuda' does not work here: {reason}: {_CUDA_CURE}")
    return Device("cpu", _CPU, reason)


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


def _open(
    model: bytes | Path, where: str, chosen: Device, threads: int
) -> tuple[ort.InferenceSession, Device]:
    """Load the graph on the chosen device, or on the CPU with the reason why."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores from the tokenizer and the HTTP server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    providers: list[Any] = [_CPU]
    if chosen.name == "cuda":
        providers.insert(0, (_CUDA, {"use_tf32": "0"}))  # full float32, as on the CPU
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for answers
            ort.preload_dlls()
    source = str(model) if isinstance(model, Path) else model
    try:
        session = ort.InferenceSession(source, options, providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if chosen.name == "cuda":
            cpu = Device("cpu", _CPU, f"{_CUDA} did not start: {reason}")
            return _open(model, where, cpu, threads)
        raise CorruptFileError(
            f"{where}: ONNX Runtime cannot load it ({reason}): export the bundle again"
        ) from error
    if session.get_providers()[0] == chosen.provider:
        return session, chosen
    return session, Device("cpu", _CPU, f"{_CUDA} did not start: see ONNX Runtime's message above")


def _check_signature(session: ort.InferenceSession, where: str) -> None:
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    if inputs != _INPUTS or not set(_OUTPUTS) <= set(outputs):
        raise MismatchError(
            f"{where}: is not a graph of l2e (inputs {', '.join(inputs)}; outputs"
            f" {', '.join(outputs)}): export the bundle again"
        )
