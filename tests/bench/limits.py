"""What the most tokens in a run of the graph are worth: servers with different limits, in turns.

    python -m tests.bench.limits [--tokens 384,512] [--rounds 5] [--pin] [--json FILE]

In each round every server is flooded, and asked on the same arrivals by chance at 70 % of what they
answered on average, once with texts of many lengths and once with texts that all have 24 tokens.
Numbers are medians over the rounds; ratios are the first server's over the other's, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.explainer import Explainer
from service.settings import Settings
from tests.bench.latency import SHARE
from tests.bench.load import WARM, arrivals, clock, flood, predict
from tests.bench.results import finish, rounded, say
from tests.bench.servers import SERVICE, pin_cores, running_on, server, share_cores
from tests.bench.texts import mixed_texts
from training.evaluation.machine import machine
from training.evaluation.texts import texts_of

FLOOD = 3.0  # seconds at least


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="The service with other limits of a run.")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--tokens", default="384,512", metavar="N,N", help="the limits")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each clock, about")
    parser.add_argument("--pin", action="store_true", help="cores of their own for both sides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = pin_cores() if options.pin else share_cores()
    with running_on(cores.server):
        explainer = Explainer.load(options.bundle, device="cpu", threads=1)
    texts = {"mixed": mixed_texts(200, seed=0), "24 tokens": texts_of(explainer, 24, 64, seed=0)}
    limits = options.tokens.split(",")
    with contextlib.ExitStack() as stack:
        ports = {}
        for tokens in limits:
            given = {"L2E_BUNDLE": str(options.bundle), "L2E_MAX_BATCH_TOKENS": tokens}
            running = server(SERVICE, cores.server, environment=given)
            ports[tokens] = stack.enter_context(running).port
        stack.enter_context(running_on(cores.client))
        found = {
            name: asyncio.run(in_rounds(ports, kind, options.rounds, options.seconds, name))
            for name, kind in texts.items()
        }
    result = {
        "machine": machine(),
        "cores": cores.to_dict(),
        "bundle": explainer.bundle.digest,
        "rounds": options.rounds,
        "seconds": options.seconds,
        **found,
    }
    finish(result, options.json)


async def in_rounds(
    ports: Mapping[str, int],
    texts: Sequence[str],
    rounds: int,
    seconds: float,
    name: str,
    flood_seconds: float = FLOOD,
) -> dict[str, Any]:
    """Asks servers in turns.

    Args:
        ports: of the servers, by their limits.
        texts: to ask about, in this order.
        rounds: that count; the servers are warmed up before.
        seconds: of arrivals, about.
        name: of the texts, for the progress.
        flood_seconds: of each flood, at least.

    Returns:
        For each limit the medians of texts a second and of the latencies' quantiles, and `ratios`,
        the same of the first limit over each other one.

    Raises:
        RuntimeError: a request of a clock was refused, or none was due.
    """
    requests = [predict(text) for text in texts]
    spent: dict[str, list[tuple[float, float, float]]] = {tokens: [] for tokens in ports}
    for port in ports.values():
        await flood(port, requests[:WARM], flood_seconds)
    for number in range(rounds):
        say(f"{name}: round {number + 1} of {rounds}")
        rates = {
            tokens: (await flood(port, requests, flood_seconds)).rate
            for tokens, port in ports.items()
        }
        rate = SHARE * float(np.mean([*rates.values()]))
        due = clock(rate, seconds, poisson=True, whole=len(requests), seed=number).tolist()
        for tokens, port in ports.items():
            load = await arrivals(port, requests, due)
            half, most = load.quantile(0.5), load.quantile(0.99)
            if load.refused or half is None or most is None:
                raise RuntimeError(f"{load.counts()} at 70 % of the load: all are to be answered")
            spent[tokens].append((rates[tokens], half, most))
    first, *others = spent
    found = {tokens: _named(np.median(values, axis=0)) for tokens, values in spent.items()}
    ratios = {
        tokens: _named(np.median(np.array(spent[first]) / np.array(spent[tokens]), axis=0))
        for tokens in others
    }
    return {**found, "ratios": ratios}


def _named(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    names = ("texts_per_second", "p50_ms", "p99_ms")
    return {name: rounded(float(value), 3) for name, value in zip(names, values, strict=True)}


if __name__ == "__main__":
    main()
