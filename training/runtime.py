"""Process-wide settings of the training half: memory, threads, seeds, files, progress."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from models.device import available_threads, processor_flags

Item = TypeVar("Item")


def tune_memory() -> None:
    """Stops glibc from giving every large buffer back to the kernel.

    Tensors of some megabytes are mapped and unmapped at each step by default, which costs up to
    half of all CPU time in page faults. Has no effect on other C libraries.
    """
    try:
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
            libc.mallopt(option, value)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    except (AttributeError, OSError):
        return


def use_threads() -> None:
    """Gives torch as many threads as this process can keep busy, not as many as the host can."""
    torch.set_num_threads(available_threads())


def native_precision() -> str:
    """Returns `bf16` where the processor multiplies bfloat16 (elsewhere it is slow), or `fp32`."""
    return "bf16" if processor_flags() & {"avx512_bf16", "amx_bf16"} else "fp32"


def autocast(precision: str) -> torch.autocast:
    """Returns the autocast context for `bf16` or `fp32`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that it is whole or absent."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, for JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, value: Any) -> None:
    """Writes nested dictionaries, lists, numbers and tensors under a temporary name, then renames.

    Read them with `torch.load(path, weights_only=True)`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(value, temporary)
    temporary.replace(path)


def progress(
    items: Iterable[Item], *, total: int, done: int = 0, what: str, every: float = 30.0
) -> Iterator[Item]:
    """Passes items on and says on standard error how far it is.

    Args:
        items: what is left to do.
        total: how many there are with those done already.
        done: how many are.
        what: a name for the work.
        every: seconds between two lines where standard error is no terminal.

    Returns:
        The items; a bar with an ETA on a terminal, plain lines elsewhere.
    """
    if sys.stderr.isatty():
        return iter(tqdm(items, total=total, initial=done, desc=what, file=sys.stderr))
    return _log_progress(items, total, done, what, every)


def _log_progress(
    items: Iterable[Item], total: int, done: int, what: str, every: float
) -> Iterator[Item]:
    started = said = time.monotonic()
    count = done
    for count, item in enumerate(items, done + 1):
        yield item
        now = time.monotonic()
        if now - said >= every and count < total:
            left = (now - started) / (count - done) * (total - count)
            sys.stderr.write(f"{what}: {count}/{total}, about {_clock(left)} left\n")
            said = now
    if count > done:
        sys.stderr.write(f"{what}: {count}/{total} in {_clock(time.monotonic() - started)}\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
