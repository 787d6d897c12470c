"""What is installed, which device will be used and why not another."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from models import bundle as bundles
from models.device import (
    DeviceError,
    DeviceName,
    available_device,
    available_threads,
    check_runtimes,
    installed,
    installed_runtimes,
)

if TYPE_CHECKING:
    from models.session import OnnxSession

TRAINING = ("torch", "transformers", "lime", "captum", "onnx")


class _Finding(NamedTuple):
    """What a line says, and whether the service can run with that."""

    text: str
    fine: bool


def report(bundle: Path, device: DeviceName = "auto") -> tuple[list[str], bool]:
    """Examines this installation.

    Args:
        bundle: a bundle to verify.
        device: as `l2e serve` would be given it.

    Returns:
        Lines to print, and whether the service can run.
    """
    runtime = _runtime()
    place = _device(device)
    verified, place = _bundle(bundle, device, place, runs=runtime.fine and place.fine)
    lines = [
        f"python    {platform.python_version()} on {platform.machine()}",
        f"runtime   {runtime.text}",
        f"device    {place.text}",
        f"training  {_training()}",
        f"bundle    {verified.text}",
    ]
    return lines, runtime.fine and place.fine and verified.fine


def _runtime() -> _Finding:
    found = installed_runtimes()
    if not found:
        return _Finding("none: pip install 'l2e[cpu]', 'l2e[gpu]' or 'l2e[openvino]'", fine=False)
    try:
        check_runtimes(found)
    except DeviceError as error:
        return _Finding(str(error), fine=False)
    return _Finding(_listed(found), fine=True)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _training() -> str:
    found = {name: version for name in TRAINING if (version := installed(name))}
    missing = [name for name in TRAINING if name not in found]
    advice = f"; without {', '.join(missing)} (pip install 'l2e[train]')" if missing else ""
    return f"{_listed(found) or 'no'}{advice}"


def _device(device: DeviceName) -> _Finding:
    """Says where `--device` goes and why, as far as can be said before a graph is loaded."""
    try:
        import onnxruntime  # noqa: PLC0415 - absent or broken is one of the answers here
    except ImportError as error:
        reason = f"none: ONNX Runtime cannot be imported ({_one_line(error)})"
        return _Finding(reason, fine=False)
    try:
        found = available_device(device, onnxruntime.get_available_providers())
    except DeviceError as error:
        return _Finding(f"none: {error}", fine=False)
    return _Finding(f"{found.name}, {available_threads()} threads: {found.reason}", fine=True)


def _bundle(
    bundle: Path, device: DeviceName, place: _Finding, *, runs: bool
) -> tuple[_Finding, _Finding]:
    """Verifies the files of the bundle and, if it `runs`, its golden answer.

    Returns:
        What to say of the bundle, and of the device: a provider that is listed may yet not start.
    """
    try:
        if runs:
            from models.explainer import Explainer  # noqa: PLC0415 - needs ONNX Runtime

            explainer = Explainer.load(bundle, device=device)
            manifest, place = explainer.bundle.manifest, _started(explainer.session)
            verdict = f"whole, answers on {explainer.session.device} as when it was made"
        else:
            manifest, verdict = bundles.load(bundle).manifest, "whole"
    except DeviceError as error:
        finding, _ = _bundle(bundle, device, place, runs=False)
        return finding, _Finding(f"none: {_one_line(error)}", fine=False)
    except bundles.BundleError as error:
        return _Finding(_one_line(error), fine=False), place
    labels = ", ".join(manifest.labels)
    text = f"{bundle}: {manifest.name}, {manifest.precision}, labels {labels}: {verdict}"
    return _Finding(text, fine=True), place


def _started(session: OnnxSession) -> _Finding:
    text = f"{session.device}, {session.threads} threads: {session.device_reason}"
    return _Finding(text, fine=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
