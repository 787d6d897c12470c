"""What numbers of speed depend on: the machine, what is installed, and how busy it is."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from models.device import available_threads, processor_flags

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-openvino", "torch")
_FLAGS = ("avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """Describes this machine.

    Returns:
        `processor`, `cores` that this process may run on, `threads` that it can keep busy (fewer
        under a quota), `multiplies` (which wide instructions the processor has), `load` (processes
        that ran or waited to run, mean of the last minute: more than 0 before a measurement says
        that it was disturbed) and `versions`.
    """
    name = platform.processor() or platform.machine()
    flags = processor_flags()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            name = value if key == "model name" else name
    except OSError:
        pass
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "threads": available_threads(),
        "multiplies": [flag for flag in _FLAGS if flag in flags],
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def machine_digest() -> str:
    """Returns what tells this machine, since it was started, from others; it names nothing.

    Two of one make may differ in speed by half, so times are compared on one only.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:  # not Linux
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # one of two runtimes, or no training half
            continue
    return found
