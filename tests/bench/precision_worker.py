"""One bundle on one device: time, answers, and whether they depend on the batch.

    python -m tests.bench.precision_worker TASK.json RESULT.json

Started by `tests.bench.precision` in an environment of its own, which needs what serving needs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.device import installed_runtimes
from models.explainer import Explainer
from models.session import IntArray
from training.evaluation.timing import in_turns
from training.export.agreement import batch_equal, rationale_words


def main() -> None:
    """Reads what to do and writes what was found."""
    task_path, result_path = map(Path, sys.argv[1:])
    task = json.loads(task_path.read_text(encoding="utf-8"))
    result_path.write_text(json.dumps(measure(task)), encoding="utf-8")


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measures one bundle on one device.

    Args:
        task: `bundle`, a folder; `device`; `threads`, None for all that may be used; `texts`;
            `shapes`, pairs of rows and tokens; `repeats`.

    Returns:
        `runtime`, `device`, `threads`, `megabytes` (10^6 bytes of the graph's file),
        `load_seconds`, `ms` by shape (median milliseconds per text, `label` and `explained`), and
        of all texts the `labels`, `logits`, `rationales` (where their words start) and the share
        `batch_equal`.
    """
    started = time.perf_counter()
    explainer = Explainer.load(task["bundle"], device=task["device"], threads=task["threads"])
    loaded = time.perf_counter() - started
    texts = task["texts"]
    ids = np.concatenate(
        [window.input_ids for text in texts for window in explainer.encode(text).windows]
    )
    spent = {
        f"{rows}x{tokens}": _time(explainer, np.resize(ids, (rows, tokens)), task["repeats"])
        for rows, tokens in task["shapes"]
    }
    answers = explainer.explain(texts)
    return {
        "runtime": " ".join(f"{name} {one}" for name, one in installed_runtimes().items()),
        "device": explainer.session.device,
        "threads": explainer.session.threads,
        "megabytes": round(explainer.bundle.model_path.stat().st_size / 1e6, 1),
        "load_seconds": round(loaded, 2),
        "ms": spent,
        "labels": [answer.label for answer in answers],
        "logits": explainer.logits([explainer.encode(text) for text in texts]).tolist(),
        "rationales": [sorted(rationale_words(answer)) for answer in answers],
        "batch_equal": batch_equal(explainer.explain, texts, answers),
    }


def _time(explainer: Explainer, ids: IntArray, repeats: int) -> dict[str, float]:
    """Returns median milliseconds per text of runs of the graph alone, nothing decoded."""
    mask, target = np.ones_like(ids), np.full(len(ids), -1)
    calls: dict[str, Callable[[], object]] = {
        name: partial(explainer.session.run, ids, mask, target, explain=name == "explained")
        for name in ("label", "explained")
    }
    spent: dict[str, Sequence[float]] = dict(in_turns(calls, repeats))
    return {name: round(float(np.median(took)) / len(ids), 3) for name, took in spent.items()}


if __name__ == "__main__":
    main()
