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
    runtimes = _installed(RUNTIMES)
    device, runs = _device_line()
    verified, whole = _bundle_line(bundle, runs=runs)
    lines = [
        f"python    {platform.python_version()} on {platform.machine()}",
        f"runtime   {_listed(runtimes) or 'none'}{_runtime_advice(len(runtimes))}",
        f"device    {device}",
        f"training  {_training()}",
        f"bundle    {verified}",
    ]
    return lines, len(runtimes) == 1 and runs and whole


def installed(name: str) -> str | None:
    """Returns the version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    return {name: version for name in names if (version := installed(name))}


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _runtime_advice(count: int) -> str:
    if count == 0:
        return ": pip install 'l2e[cpu]' or 'l2e[gpu]'"
    if count > 1:
        return ": they overwrite each other; pip uninstall all of them, then install one extra"
    return ""


def _training() -> str:
    found = _installed(TRAINING)
    missing = [name for name in TRAINING if name not in found]
    advice = f"; without {', '.join(missing)} (pip install 'l2e[train]')" if missing else ""
    return f"{_listed(found) or 'no'}{advice}"


def _device_line() -> tuple[str, bool]:
    """Says where `--device auto` goes and why, and whether ONNX Runtime can be used at all."""
    try:
        import onnxruntime  # noqa: PLC0415 - absent or broken is one of the answers here

        from models.session import available_device, available_threads  # noqa: PLC0415
    except ImportError as error:
        return f"none: ONNX Runtime cannot be imported ({_one_line(error)})", False
    device = available_device("auto", onnxruntime.get_available_providers())
    return f"{device.name}, {available_threads()} threads: {device.reason}", True


def _bundle_line(bundle: Path, *, runs: bool) -> tuple[str, bool]:
    """Verifies the files of the bundle and, if ONNX Runtime `runs`, its golden answer."""
    try:
        if not runs:
            manifest, verdict = bundles.load(bundle).manifest, "whole"
        else:
            from models.explainer import Explainer  # noqa: PLC0415 - needs ONNX Runtime

            explainer = Explainer.load(bundle)
            manifest = explainer.bundle.manifest
            verdict = f"whole, answers on {explainer.session.device} as when it was made"
    except bundles.BundleError as error:
        return _one_line(error), False
    return f"{bundle}: {manifest.name}, labels {', '.join(manifest.labels)}: {verdict}", True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
