"""Memory over time: of a server under mixed load, of a stream that is read slowly, of a long file.

    python -m tests.bench.soak [--minutes 60] [--stream 10000] [--score --lines 1000000] [--json F]

Only the parts that are named run. The slope is that of the resident memory by least squares after
the first quarter of the time, in megabytes a minute. The file for `l2e score` is made of texts of
two to six words, each with its rationale: eight tokens are what makes a million of them feasible on
two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import load
from service.settings import Settings
from tests.bench.load import connected, post, predict
from tests.bench.memory import MemoryWatch
from tests.bench.results import finish, say
from tests.bench.servers import ROOT, SERVICE, Server, server, share_cores
from tests.bench.stream import stream_slowly
from tests.bench.texts import random_text
from training.evaluation.machine import machine
from training.evaluation.texts import SENTENCE

CONNECTIONS = 4
LONGEST = 1_200  # words
LARGEST = 64  # items of a batch
KINDS = ("predict", "label", "batch")
SHARES = (0.7, 0.1, 0.2)


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description="Memory over time.")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--minutes", type=float, help="of mixed load on a server")
    parser.add_argument("--stream", type=int, metavar="N", help="items through a slow reader")
    parser.add_argument("--lines-per-second", type=float, default=50.0, help="of that reader")
    parser.add_argument("--score", action="store_true", help="a long file through l2e score")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of that file")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "bundle": load(options.bundle).digest}
    if options.minutes:
        say(f"mixed load for {options.minutes:g} minutes")
        result["soak"] = _on_a_server(options, soak, options.minutes)
    if options.stream:
        say(f"{options.stream:,} items through a slow reader")
        result["stream"] = _on_a_server(options, stream, options.stream, options.lines_per_second)
    if options.score:
        say(f"a file of {options.lines:,} lines")
        result["score"] = score(options.bundle, options.lines)
    finish(result, options.json)


def _on_a_server(options: argparse.Namespace, part: Any, *arguments: Any) -> dict[str, Any]:
    """Runs a part on a fresh server, whose memory nothing else has grown."""
    environment = {"L2E_BUNDLE": str(options.bundle)}
    with server(SERVICE, share_cores().server, environment=environment) as found:
        result: dict[str, Any] = part(found, *arguments)
    return result


def soak(found: Server, minutes: float) -> dict[str, Any]:
    """Random lengths and batch sizes on some connections.

    Args:
        found: the server.
        minutes: how long.

    Returns:
        Requests by kind and by status, texts, and what `MemoryWatch.summary` says.
    """
    counts: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes

    async def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        async with connected(found.port, 1) as (connection,):
            while time.monotonic() < end:
                kind = str(rng.choice(KINDS, p=SHARES))
                request, texts = random_request(rng, kind)
                answer = await connection.ask(request)
                counts.update([kind, f"status {answer.status}"])
                counts["texts"] += texts

    async def all_of_them() -> None:
        await asyncio.gather(*(work(seed) for seed in range(CONNECTIONS)))

    with MemoryWatch(found.pid, every=max(0.1, minutes / 30)) as watch:
        asyncio.run(all_of_them())
    return {"minutes": minutes, "requests": dict(counts), "memory": watch.summary()}


def random_request(rng: np.random.Generator, kind: str) -> tuple[bytes, int]:
    """A request of a kind with texts of random lengths, and how many texts it has."""
    if kind != "batch":
        return predict(random_text(rng, _length(rng, LONGEST)), explain=kind == "predict"), 1
    count = int(rng.integers(1, LARGEST + 1))
    # Few of them are long, as in `_length`; a batch of long ones would take the time of all others.
    items = [{"text": random_text(rng, _length(rng, LONGEST // 8))} for _ in range(count)]
    return post("/predict/batch", {"items": items}), count


def _length(rng: np.random.Generator, longest: int) -> int:
    """So many words, short ones more often: uniform in the logarithm."""
    return int(np.exp(rng.uniform(0, np.log(longest + 1))))


def stream(found: Server, items: int, lines_per_second: float) -> dict[str, Any]:
    """Items through /predict/stream, whose answers are read slowly.

    Raises:
        RuntimeError: the buffers of the sockets held so much that nothing is said of the server.
    """
    with MemoryWatch(found.pid) as watch:
        told = asyncio.run(stream_slowly(found.port, items, lines_per_second))
    if told["most_ahead"] > items / 2:
        raise RuntimeError(
            f"{told['most_ahead']:,} of {items:,} items were on their way at once: ask for more"
        )
    return {**told, "memory": watch.summary()}


def score(bundle: Path, lines: int) -> dict[str, Any]:
    """A long file through `l2e score`: lines a second, and the memory of the command."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write_lines(source, lines)
        size = source.stat().st_size
        command = [sys.executable, "-m", "l2e", "score", str(source), str(output)]
        started = time.monotonic()
        command += ["--bundle", str(bundle)]
        with subprocess.Popen(command, cwd=ROOT) as process, MemoryWatch(process.pid) as watch:
            status = process.wait()
        seconds = time.monotonic() - started
        if status:
            raise RuntimeError(f"l2e score ended with status {status}")
        with output.open("rb") as file:
            written = sum(1 for _ in file)
    return {
        "lines": lines,
        "input_bytes": size,
        "written": written,
        "seconds": round(seconds, 1),
        "lines_per_second": round(lines / seconds, 1),
        "memory": watch.summary(),
    }


def write_lines(path: Path, count: int) -> None:
    """Writes so many lines with texts of two to six words, without keeping them."""
    rng, words = random.Random(0), SENTENCE.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(rng.choices(words, k=rng.randint(2, 6)))
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")


if __name__ == "__main__":
    main()
