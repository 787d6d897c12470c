"""Which device is chosen, with what options, and what is said when it cannot be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.device import (
    DEVICES,
    Device,
    DeviceError,
    available_device,
    available_threads,
    cgroup_quotas,
    check_runtimes,
    integer_options,
    processor_flags,
    shipped_bundle,
    thread_limit,
)

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"


@pytest.mark.parametrize(
    ("requested", "providers", "expected"),
    [
        ("cpu", [CUDA, CPU], ("cpu", CPU)),
        ("cpu", [OPENVINO, CPU], ("cpu", CPU)),
        ("auto", [CUDA, CPU], ("cuda", CUDA)),
        ("cuda", [CUDA, CPU], ("cuda", CUDA)),
        ("cuda-graphs", [CUDA, CPU], ("cuda-graphs", CUDA)),
        ("auto", ["AzureExecutionProvider", CPU], ("cpu", CPU)),
        ("auto", [OPENVINO, CPU], ("cpu", CPU)),
        ("openvino", [OPENVINO, CPU], ("openvino", OPENVINO)),
        ("openvino-bf16", [OPENVINO, CPU], ("openvino-bf16", OPENVINO)),
    ],
)
def test_available_device(requested, providers, expected):
    found = available_device(requested, providers)
    assert found[:2] == expected
    assert found.reason
    assert found.name in DEVICES


@pytest.mark.parametrize(
    ("device", "runtimes", "flags", "name"),
    [
        ("auto", ["onnxruntime"], ["avx2", "avx512_vnni"], "reviews-int8"),
        ("auto", ["onnxruntime"], ["avx2"], "reviews"),
        ("auto", ["onnxruntime"], [], "reviews"),
        ("auto", ["onnxruntime-openvino"], ["avx_vnni"], "reviews-int8"),
        ("auto", ["onnxruntime-gpu"], ["avx_vnni"], "reviews"),
        ("cpu", ["onnxruntime-gpu"], ["avx_vnni"], "reviews-int8"),
        ("openvino-bf16", ["onnxruntime-openvino"], ["avx_vnni"], "reviews"),
    ],
)
def test_the_shipped_bundle_follows_the_device(device, runtimes, flags, name):
    found = shipped_bundle(device, runtimes, flags)
    assert found.name == name
    assert (found / "manifest.json").is_file()


def test_auto_says_why_not_the_others():
    assert CUDA in available_device("auto", [CPU]).reason
    assert "openvino-bf16" in available_device("auto", [OPENVINO, CPU]).reason


@pytest.mark.parametrize(
    ("requested", "mentions"),
    [
        ("cuda", ("'cuda'", CUDA, "extra `gpu`", "nvidia-smi", "auto or cpu")),
        (
            "cuda-graphs",
            ("'cuda-graphs'", CUDA, "in fp16", "extra `gpu`", "nvidia-smi", "auto or cpu"),
        ),
        ("openvino", ("'openvino'", OPENVINO, "extra `openvino`", "auto or cpu")),
        ("openvino-bf16", ("'openvino-bf16'", OPENVINO, "extra `openvino`", "auto or cpu")),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_the_cure(requested, mentions):
    with pytest.raises(DeviceError) as error:
        available_device(requested, [CPU])
    message = str(error.value)
    assert "\n" not in message
    for mention in mentions:
        assert mention in message


def test_unknown_device():
    with pytest.raises(ValueError, match=r"use auto, cpu, cuda, .* or openvino-bf16$"):
        available_device("tpu", [CPU])


def device(name):
    return available_device(name, [CUDA, OPENVINO, CPU])


@pytest.mark.parametrize(
    ("name", "kind", "precision", "splits", "graphs"),
    [
        ("cpu", "cpu", None, False, False),
        ("cuda", "cuda", None, True, False),
        ("cuda-graphs", "cuda", None, True, True),
        ("openvino", "openvino", None, True, False),
        ("openvino-bf16", "openvino", "bf16", True, False),
    ],
)
def test_what_a_device_is(name, kind, precision, splits, graphs):
    found = device(name)
    assert (found.kind, found.precision, found.splits, found.graphs) == (
        *(kind, precision, splits, graphs),
    )


def test_options_of_openvino_fix_the_precision_and_the_threads():
    for name, hint in (("openvino", "f32"), ("openvino-bf16", "bf16")):
        options = device(name).options(3)
        assert options["device_type"] == "CPU"
        assert json.loads(options["load_config"]) == {
            "CPU": {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": "3"}
        }


def test_options_of_cuda_and_the_processor():
    assert device("cpu").options(3) == {}
    assert device("cuda").options(3) == {"use_tf32": "0"}
    assert device("cuda-graphs").options(3) == {"use_tf32": "0", "enable_cuda_graph": "1"}


# Wheels


def test_one_runtime_is_fine_and_none_is_for_the_import_to_say():
    check_runtimes({"onnxruntime-openvino": "1.24.1"})
    check_runtimes({})


@pytest.mark.parametrize(
    "found",
    [
        {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"},
        {"onnxruntime": "1.31.1", "onnxruntime-openvino": "1.24.1"},
        {"onnxruntime-gpu": "1.31.1", "onnxruntime-openvino": "1.24.1"},
        {"onnxruntime": "1.3", "onnxruntime-gpu": "1.2", "onnxruntime-openvino": "1.1"},
    ],
)
def test_two_runtimes_are_refused_with_the_cure(found):
    with pytest.raises(DeviceError) as error:
        check_runtimes(found)
    message = str(error.value)
    assert "\n" not in message
    assert f"pip uninstall {' '.join(found)}," in message
    for name, version in found.items():
        assert f"{name} {version}" in message


ANSWER = """
import sys
sys.path.append({folder!r})
from models.device import DeviceError
from models.session import OnnxSession
try:
    OnnxSession(b"never looked at", device="cpu")
except DeviceError as error:
    print(error)
"""


def test_a_session_does_not_start_on_two_runtimes(tmp_path):
    """In a process that finds one more distribution than this one."""
    for name in ("onnxruntime", "onnxruntime_gpu", "onnxruntime_openvino"):
        folder = tmp_path / f"{name}-9.9.dist-info"
        folder.mkdir()
        written = name.replace("_", "-")
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {written}\nVersion: 9.9\n")
    done = subprocess.run(
        [sys.executable, "-c", ANSWER.format(folder=str(tmp_path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert "overwrite each other: pip uninstall onnxruntime" in line


# Processors


def test_flags_of_the_first_processor(tmp_path):
    found = tmp_path / "cpuinfo"
    found.write_text("vendor_id\t: x\nflags\t\t: fpu avx2\n\nflags\t\t: fpu avx2 avx_vnni\n")
    assert processor_flags(found) == {"fpu", "avx2"}
    found.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert processor_flags(found) == frozenset()
    assert processor_flags(tmp_path / "nowhere") == frozenset()


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        ((), False),
        (("avx2",), False),
        (("avx2", "avx512f", "avx512bw"), False),
        (("avx2", "avx_vnni"), True),
        (("avx512f", "avx512_vnni"), True),
        (("amx_int8",), True),
    ],
)
def test_integers_are_made_exact_where_they_are_not(flags, exact):
    assert integer_options(flags) == ({} if exact else {"session.x64quantprecision": "1"})


# Threads


@pytest.mark.parametrize(
    ("cores", "quotas", "expected"),
    [
        (8, [], 8),
        (8, ["max 100000\n"], 8),
        (8, ["200000 100000\n"], 2),
        (8, ["max 100000", "350000 100000"], 3),
        (2, ["800000 100000"], 2),
        (8, ["50000 100000"], 1),
        (8, ["", "nonsense", "1 2 3", "100000 0", "-1 100000"], 8),
        (0, [], 1),
    ],
)
def test_thread_limit(cores, quotas, expected):
    assert thread_limit(cores, quotas) == expected


def test_cgroup_quotas_of_all_levels(tmp_path):
    leaf = tmp_path / "system.slice" / "l2e.service"
    leaf.mkdir(parents=True)
    (leaf / "cpu.max").write_text("max 100000\n")
    (leaf.parent / "cpu.max").write_text("150000 100000\n")
    (tmp_path.parent / "cpu.max").write_text("1 100000\n")  # outside of the mount
    membership = "3:cpuset:/elsewhere\n0::/system.slice/l2e.service\n"
    assert cgroup_quotas(tmp_path, membership) == ["max 100000\n", "150000 100000\n"]
    (tmp_path.parent / "cpu.max").unlink()


@pytest.mark.parametrize("membership", ["", "0::/\n", "0::/gone\n", "1:cpu:/\n", "0::/../..\n"])
def test_no_cgroup_quotas(tmp_path, membership):
    assert cgroup_quotas(tmp_path, membership) == []


def test_available_threads():
    assert 1 <= available_threads() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("name", "provider", "threads", "tokens"),
    [
        ("cpu", CPU, 1, 512),
        ("cpu", CPU, 2, 512),
        ("cpu", CPU, 16, 512),
        ("openvino", OPENVINO, 16, 4096),
        ("cuda-graphs", CUDA, 2, 16_384),
    ],
)
def test_a_run_has_as_many_tokens_as_suit_the_device(name, provider, threads, tokens):
    assert Device(name, provider, "").batch_tokens(threads) == tokens


@pytest.mark.parametrize(
    ("provider", "threads", "runners"), [(CPU, 1, 1), (CPU, 8, 8), (OPENVINO, 8, 1), (CUDA, 8, 1)]
)
def test_only_runs_on_the_processor_go_on_at_a_time(provider, threads, runners):
    assert Device("any", provider, "").runners(threads) == runners
