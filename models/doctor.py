"""What is installed, which device will be used and why not another."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from models import bundle as bundles

# These write the same folder of site-packages: the one installed last wins, silently.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
TRAINING = ("torch", "transformers", "lime", "captum", "onnx")


def report(bundle: Path) -> tuple[list[str], bool]:
    """Examines this installation.

    Args:
        bundle: a bundle to verify.

    Returns:
        Lines to print, and whether the service can run.
    """
    lines = [f"python    {platform.python_version()} on {platform.machine()}"]
    found = {name: version for name in RUNTIMES if (version := installed(name))}
    healthy = len(found) == 1
    shown = ", ".join(f"{name} {version}" for name, version in found.items()) or "none"
    lines.append(f"runtime   {shown}{_runtime_advice(len(found))}")
    if healthy:
        lines.append(f"device    {_device()}")
    training = {name: version for name in TRAINING if (version := installed(name))}
    missing = [name for name in TRAINING if name not in training]
    lines.append(
        "training  "
        + (", ".join(f"{name} {version}" for name, version in training.items()) or "no")
        + (f"; without {', '.join(missing)} (pip install 'l2e[train]')" if missing else "")
    )
    try:
        manifest = bundles.load(bundle).manifest
        labels = ", ".join(manifest.labels)
        lines.append(f"bundle    {bundle}: {manifest.name}, labels {labels}, verified")
    except bundles.BundleError as error:
        lines.append(f"bundle    {error}")
        healthy = False
    return lines, healthy


def installed(name: str) -> str | None:
    """Returns the version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _runtime_advice(count: int) -> str:
    if count == 0:
        return ": pip install 'l2e[cpu]' or 'l2e[gpu]'"
    if count > 1:
        return ": they overwrite each other; pip uninstall all of them, then install one extra"
    return ""


def _device() -> str:
    import onnxruntime  # noqa: PLC0415 - absent where no runtime is installed

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in providers:
        return "cuda (CUDAExecutionProvider is available)"
    return f"cpu (no CUDAExecutionProvider among {', '.join(providers)})"
