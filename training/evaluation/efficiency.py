"""What an explanation costs: label only, label with rationale, and teachers, side by side."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.explainer import Explainer
from training.attribution.teachers import teacher_named
from training.export import to_torch

TOKENS = (24, 128, 512)
_SENTENCE = "The story drags in places, yet the cast is charming and I would gladly see it again. "


def measure_speed(
    explainer: Explainer, teachers: Mapping[str, int], repeats: int
) -> dict[str, Any]:
    """Times single texts of several lengths.

    Args:
        explainer: the bundle, in ONNX Runtime.
        teachers: name to budget; they run on the torch classifier rebuilt from the bundle, fp32.
        repeats: of which the median counts, after one warm-up. Label and reply alternate, so
            that a busy moment of the machine meets both; teachers run once.

    Returns:
        `rows` with milliseconds per text, `ratio` = reply / label only and each teacher's
        `speedup` = teacher / reply; and the machine.
    """
    black_box, _ = to_torch(explainer.bundle)
    rows = []
    for tokens in TOKENS:
        text = text_of(explainer, tokens)
        label, reply = _alternate(
            partial(explainer.predict, [text]),
            partial(explainer.explain, [text]),
            repeats,
        )
        document = black_box.encoder.encode(text)
        target = black_box.logits([document]).argmax(axis=1)
        found = {}
        for name, budget in teachers.items():
            started = time.perf_counter()
            teacher_named(name).attribute(black_box, [document], target, budget=budget, seed=0)
            spent = 1e3 * (time.perf_counter() - started)
            found[name] = {"ms": spent, "budget": budget, "speedup": spent / reply}
        rows.append(
            {
                "tokens": tokens,
                "label_only_ms": label,
                "reply_ms": reply,
                "ratio": reply / label,
                "teachers": found,
            }
        )
    return {"machine": machine(), "bundle": explainer.bundle.digest, "rows": rows}


def text_of(explainer: Explainer, tokens: int) -> str:
    """Returns one of our own texts of about so many tokens."""
    words = (_SENTENCE * (tokens // 8)).split()
    count = tokens // 2
    while count < len(words):
        windows = explainer.encode(" ".join(words[: count + 1])).windows
        if sum(len(window.input_ids) for window in windows) > tokens:
            break
        count += 1
    return " ".join(words[:count])


def _alternate(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Returns the median milliseconds of both, run in turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for call, times in zip((first, second), spent, strict=True):
            started = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(spent[0][1:]), statistics.median(spent[1][1:])


def machine() -> dict[str, Any]:
    """Returns what numbers of speed depend on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.startswith("model name")]
        name = found[0].partition(":")[2].strip() if found else name
    except OSError:
        pass
    return {"processor": name, "cores": len(os.sched_getaffinity(0)), "numpy": np.__version__}
