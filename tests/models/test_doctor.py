"""The doctor names what is there, what is missing and the cure."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import doctor

ROOT = Path(__file__).resolve().parents[2]


def line(lines, name):
    [found] = [line for line in lines if line.startswith(f"{name:10}")]
    return found.removeprefix(f"{name:10}")


def test_a_healthy_installation(tiny_bundle):
    lines, healthy = doctor.report(tiny_bundle)
    assert healthy
    assert [one.split()[0] for one in lines] == [
        "python",
        "runtime",
        "device",
        "training",
        "bundle",
    ]
    assert line(lines, "runtime").startswith("onnxruntime")
    assert "thread" in line(lines, "device")
    assert "torch" in line(lines, "training")
    assert line(lines, "bundle").startswith(f"{tiny_bundle}: tiny, fp32, labels NEG, POS: whole")
    assert "answers on" in line(lines, "bundle")
    assert not any("\n" in one for one in lines)


def test_the_device_says_why_not_cuda(tiny_bundle):
    import onnxruntime

    lines, _ = doctor.report(tiny_bundle)
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert line(lines, "device").startswith("cuda" if there else "cpu")
    assert "CUDAExecutionProvider" in line(lines, "device")


@pytest.mark.parametrize("name", ["cuda-graphs", "openvino"])
def test_a_device_that_is_asked_for(name, tiny_bundle):
    """It is used, or there is one line that says why it cannot be."""
    lines, healthy = doctor.report(tiny_bundle, name)
    if healthy:
        assert line(lines, "device").startswith(f"{name}, ")
        assert f"answers on {name}" in line(lines, "bundle")
    else:
        assert line(lines, "device").startswith(f"none: device {name!r} does not work here")
        assert line(lines, "bundle").endswith(": whole")
    assert not any("\n" in one for one in lines)


def test_a_missing_bundle_is_a_finding(tmp_path):
    lines, healthy = doctor.report(tmp_path / "nowhere")
    assert not healthy
    assert "no bundle here" in line(lines, "bundle")


def test_a_damaged_bundle_is_a_finding(tiny_bundle, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    model = bytearray((broken / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (broken / "model.onnx").write_bytes(model)
    lines, healthy = doctor.report(broken)
    assert not healthy
    assert "model.onnx" in line(lines, "bundle")
    assert len(lines) == 5


ONLY_THESE = """
import pathlib, sys
from importlib import metadata
from models import doctor

def distribution(name):
    for found in metadata.distributions(name=name, path=[{folder!r}]):
        return found
    raise metadata.PackageNotFoundError(name)

metadata.distribution = distribution  # what lies in the folder is all that is installed
sys.path.insert(0, {folder!r})
lines, healthy = doctor.report(pathlib.Path({bundle!r}))
print(*lines, sep="\\n")
sys.exit(0 if healthy else 1)
"""
INSTALLATIONS = {
    "no runtime": ({}, "none: pip install", "none: ONNX Runtime cannot be imported"),
    "one runtime": ({"onnxruntime": "1.24.0"}, "onnxruntime 1.24.0", "none: ONNX Runtime cannot"),
    "two runtimes": (
        {"onnxruntime": "1.24.0", "onnxruntime-gpu": "1.24.1"},
        "onnxruntime 1.24.0 and onnxruntime-gpu 1.24.1 are installed and overwrite each other:"
        " pip uninstall onnxruntime onnxruntime-gpu, then install one of the extras",
        "none: ONNX Runtime cannot be imported",
    ),
    "another two": (
        {"onnxruntime": "1.31.0", "onnxruntime-openvino": "1.24.1"},
        "onnxruntime 1.31.0 and onnxruntime-openvino 1.24.1 are installed and overwrite",
        "none: ONNX Runtime cannot be imported",
    ),
}


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_other_installations(name, tmp_path, tiny_bundle):
    """In a process that sees only these distributions, and no ONNX Runtime that works."""
    distributions, runtime, device = INSTALLATIONS[name]
    for distribution, version in distributions.items():
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such\\nlibrary')\n")
    code = ONLY_THESE.format(folder=str(tmp_path), bundle=str(tiny_bundle))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert line(lines, "runtime").startswith(runtime)
    assert line(lines, "device").startswith(device)
    assert "no such library" in line(lines, "device")
    assert line(lines, "training").startswith("no; without torch, transformers")
    assert line(lines, "bundle").endswith(": whole")
