"""Runs of the graph at a time, on a thread each, beside one after the other on all threads.

It is why `models.cores` loads the graph twice, and where its `WIDE` comes from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from models.bundle import load
from models.device import CPU, available_threads, shipped_bundle
from models.retarget import retargetable
from models.session import session_options
from tests.bench.results import finish, say
from training.evaluation.machine import machine
from training.evaluation.timing import quartiles, ratios

LENGTHS = (24, 64, 128, 256)
TOKENS = 512  # of a full batch
SIDES = ("all_threads", "at_a_time", "one_thread")


@dataclass(frozen=True)
class Side:
    """A way to run batches.

    Attributes:
        run: once.
        callers: threads that run it at a time.
    """

    run: Callable[[], object]
    callers: int


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=shipped_bundle("cpu"))
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = available_threads()
    if threads < 2:
        parser.error("there is nothing to compare on one processor")
    bundle = load(options.bundle)
    model = bundle.model_bytes()
    graphs = {count: start(model, count) for count in (1, threads)}
    rows = []
    for length in LENGTHS:
        for batch in sorted({1, TOKENS // length}):
            say(f"{batch} x {length} tokens")
            rows.append(measure(graphs, batch, length, options.seconds, options.rounds))
    result = {
        "machine": machine(),
        "bundle": bundle.digest,
        "precision": bundle.manifest.precision,
        "threads": threads,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rows": rows,
    }
    finish(result, options.json, to_markdown)


def measure(
    graphs: dict[int, ort.InferenceSession], batch: int, length: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Rows a second of one shape, in turns.

    Args:
        graphs: by their threads, one and more.
        batch: rows of a run.
        length: tokens of a row.
        seconds: of each side in each round.
        rounds: that count, after one that warms up.

    Returns:
        `tokens`, `batch`, rows a second as medians: `all_threads` of runs one after the other,
        `at_a_time` of as many runs on one thread each, `one_thread` of one of these by itself; and
        over the first `at_a_time_ratio` and `one_thread_ratio`, medians over the rounds, with
        their quartiles.
    """
    feed = {
        "input_ids": np.full((batch, length), 5, dtype=np.int64),
        "attention_mask": np.ones((batch, length), dtype=np.int64),
        "target": np.full(batch, -1, dtype=np.int64),
        "explain": np.array(True),
    }
    narrow, threads = graphs[1], max(graphs)
    wide = graphs[threads]
    sides = (
        Side(lambda: wide.run(None, feed), 1),
        Side(lambda: narrow.run(None, feed), threads),
        Side(lambda: narrow.run(None, feed), 1),
    )
    found: dict[str, list[float]] = {name: [] for name in SIDES}
    several = [*zip(SIDES, sides, strict=True)]
    for number in range(rounds + 1):
        for name, side in several[:: -1 if number % 2 else 1]:
            rate = batch * runs_per_second(side, seconds)
            if number:
                found[name].append(rate)
    row: dict[str, Any] = {"tokens": length, "batch": batch}
    for name in SIDES:
        row[name] = round(quartiles(found[name])[1], 1)
    for name in SIDES[1:]:
        low, middle, high = quartiles(ratios(found[name], found["all_threads"]))
        row[f"{name}_ratio"] = round(middle, 2)
        row[f"{name}_ratio_quartiles"] = [round(low, 2), round(high, 2)]
    return row


def runs_per_second(side: Side, seconds: float) -> float:
    """Runs of all callers together, each of which begins none after so many seconds."""
    begun = time.perf_counter()

    def work() -> int:
        count = 0
        while time.perf_counter() - begun < seconds:
            side.run()
            count += 1
        return count

    with ThreadPoolExecutor(side.callers) as pool:
        counts = [pool.submit(work) for _ in range(side.callers)]
        total = sum(one.result() for one in counts)
    return total / (time.perf_counter() - begun)


def to_markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        f"| texts of a run | one after the other, {result['threads']} threads |"
        f" {result['threads']} at a time, a thread each | one after the other, one thread |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['batch']} of {row['tokens']} tokens | {row['all_threads']:,} a second"
        f" | {row['at_a_time_ratio']} times | {row['one_thread_ratio']} times |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def start(model: bytes, threads: int) -> ort.InferenceSession:
    """Loads a graph as the service does, on so many threads."""
    cut = retargetable(model)
    whole = model if cut is None else cut.whole
    return ort.InferenceSession(whole, session_options(threads, CPU), [CPU])


if __name__ == "__main__":
    main()
