"""The service under load, against the same graph in a bare loop and against a simulated queue.

    python -m tests.bench.http [--bundle DIR] [--pin] [--seconds N] [--json FILE]

A server process on this machine is asked over kept-alive connections: an idle one by curl, a busy
one by a small client in this process. By default both share the cores, so that the client's own
work counts against the server; with --pin they have cores of their own, and the bare loop runs on
the server's. What is compared takes turns, pass by pass, so that a noisy moment meets both.
Measured: what HTTP adds to one request on an idle server and where it goes; texts a second with all
connections busy against sorted batches in a bare loop, each text as often on both sides; latency of
requests that arrive by a clock, whether or not earlier ones were answered, at 70 % and 200 % of
what the server can do, against the queue of `tests.bench.queue` on the same arrivals, at 70 % in
passes that each begin with an idle server and have batch times of their own; and a clock at 70 %
with texts that are all as long, so that their latencies can be set against those of an idle server.
L2E_DEVICE and L2E_THREADS hold for both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.explainer import Explainer
from models.flows import run_batches
from models.rows import Row, run_rows
from models.text import plan_batches
from service.settings import Settings
from tests.bench.curl import ask_by_curl, lacks_curl
from tests.bench.latency import (
    SHARE,
    Pass,
    against_queue,
    alike,
    all_rows,
    first_rows,
    summary,
)
from tests.bench.load import (
    WARM,
    Load,
    arrivals,
    clock,
    connected,
    flood,
    get,
    in_turn,
    post,
    predict,
)
from tests.bench.queue import BatchTimes, average, measure_batches
from tests.bench.results import finish, ratio, say
from tests.bench.servers import SERVICE, Cores, pin_cores, running_on, server, share_cores
from tests.bench.texts import SHORT, mean_tokens, mixed_texts
from training.evaluation.machine import machine
from training.evaluation.speed_report import serving_to_markdown
from training.evaluation.texts import texts_of
from training.evaluation.timing import milliseconds, quartiles

SINGLE = 300  # requests on an idle server
TURNS = 10  # that these are cut into
BATCH = 32  # texts of a request to /predict/batch
LENGTHS = (24, 163)  # tokens of texts that are all as long: short ones, and the mean of the mixed
ALIKE = 64  # texts of each of these lengths


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        port: of the server.
        explainer: the same bundle in this process, loaded on the server's cores.
        texts: of many lengths.
        cores: who runs where.
        seconds: of a flood, all its passes together, at least: a pass sends all texts.
        load_seconds: of requests that arrive by a clock, about.
        passes: that a flood is cut into.
    """

    port: int
    explainer: Explainer
    texts: Sequence[str]
    cores: Cores
    seconds: float
    load_seconds: float
    passes: int


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="The service under load.")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of each flood at least, in whole rounds"
    )
    parser.add_argument(
        "--load-seconds", type=float, default=60.0, help="of each clock about, in whole rounds"
    )
    parser.add_argument("--passes", type=int, default=5, help="that a flood is cut into")
    parser.add_argument("--pin", action="store_true", help="cores of their own for both sides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if lacking := lacks_curl():
        parser.error(lacking)
    cores = pin_cores() if options.pin else share_cores()
    with running_on(cores.server):  # its threads stay there
        explainer = Explainer.load(
            options.bundle, device=Settings().device, threads=Settings().threads
        )
    texts = mixed_texts(400, seed=0)
    with (
        server(SERVICE, cores.server, environment={"L2E_BUNDLE": str(options.bundle)}) as found,
        running_on(cores.client),
    ):
        bench = Bench(
            found.port, explainer, texts, cores, options.seconds, options.load_seconds,
            options.passes,
        )  # fmt: skip
        measured = asyncio.run(measure(bench))
    result = {
        "machine": machine(),
        "cores": cores.to_dict(),
        "bundle": explainer.bundle.digest,
        "precision": explainer.session.precision or explainer.bundle.manifest.precision,
        "runtime": {"device": explainer.session.device, "threads": explainer.session.threads},
        "seconds": options.seconds,
        "load_seconds": options.load_seconds,
        "passes": options.passes,
        "max_batch_tokens": explainer.session.batch_tokens,
        "mean_tokens": round(mean_tokens(explainer, texts), 1),
        **measured,
    }
    finish(result, options.json, serving_to_markdown)


async def measure(bench: Bench) -> dict[str, Any]:
    """All measurements, one after the other, with an idle server where it must be."""
    single = [predict(text) for text in bench.texts]
    batch = [post("/predict/batch", {"items": [{"text": SHORT}] * BATCH})]
    await flood(bench.port, single[:WARM], 2.0)
    say("one request at a time")
    idle = await idle_cost(bench)
    say("all connections busy")
    mixed = await throughput(bench, single, bench.texts, 1)
    say("batches of short texts")
    batched = await throughput(bench, batch, [SHORT] * 512, BATCH)
    loads = await clocks(bench, single)
    return {
        "idle": idle,
        "mixed": mixed,
        f"batch_of_{BATCH}_at_24_tokens": batched,
        **loads,
        "padding": await padding(bench.port),
    }


async def clocks(bench: Bench, single: Sequence[bytes]) -> dict[str, Any]:
    """Requests that arrive by a clock: mixed texts at 70 % and 200 %, texts of one length at 70 %.

    `batch_ms` is the mean of all batch times; each pass and row is simulated with its own.

    Args:
        bench: see `Bench`.
        single: a request for each of the mixed texts.
    """
    texts = {tokens: texts_of(bench.explainer, tokens, ALIKE, seed=0) for tokens in LENGTHS}
    rows = [all_rows(bench.explainer, text) for text in bench.texts]
    others = [all_rows(bench.explainer, text) for same in texts.values() for text in same]
    rounds = [several for found in (*rows, *others) for several in found]
    lengths = [row.bucket for several in rounds for row in several]
    most, runners = bench.explainer.session.batch_tokens, bench.explainer.session.runners
    all_times: list[BatchTimes] = []

    def timed() -> BatchTimes:
        with running_on(bench.cores.server):
            all_times.append(measure_batches(bench.explainer, lengths, most))
        return all_times[-1]

    alone = (await in_turn(bench.port, single)).quantile(0.5)
    loads: dict[str, Any] = {}
    for name, poisson in (("load_70_constant", False), ("load_70_poisson", True)):
        say(name)
        passes = [
            await at_70_percent(bench, single, timed, poisson=poisson, seed=number)
            for number in range(bench.passes)
        ]
        whole = Load()
        for one in passes:
            whole.add(one.load)
        loads[name] = summary(whole, alone) | against_queue(passes, rows, most, runners)
    say("load_200")
    before = (await flood(bench.port, single, bench.seconds)).rate
    due = clock(2 * before, bench.load_seconds, poisson=False, whole=len(single))
    found = await arrivals(bench.port, single, due.tolist())
    after = (await flood(bench.port, single, bench.seconds)).rate
    goodput = ratio(found.rate, (before + after) / 2, 3)
    loads["load_200"] = summary(found, alone) | {"goodput": goodput}
    loads["load_70_constant_one_length"] = {}
    for tokens, same in texts.items():
        say(f"load_70_constant, texts of {tokens} tokens")
        loads["load_70_constant_one_length"][str(tokens)] = await alike(
            bench.port, bench.explainer, same, timed,
            seconds=bench.seconds, load_seconds=bench.load_seconds,
        )  # fmt: skip
    return loads | {"batch_ms": average(all_times).to_dict()}


async def at_70_percent(
    bench: Bench,
    single: Sequence[bytes],
    timed: Callable[[], BatchTimes],
    *,
    poisson: bool,
    seed: int,
) -> Pass:
    """One pass of a clock at 70 % of what the server answers right before it.

    The processor's speed drifts, so batches are timed before and after.

    Args:
        bench: see `Bench`.
        single: a request for each of the mixed texts.
        timed: measures batches.
        poisson: whether they come by chance, instead of at equal gaps.
        seed: of chance.
    """
    before = timed()
    rate = (await flood(bench.port, single, bench.seconds / bench.passes)).rate
    seconds = bench.load_seconds / bench.passes
    due = clock(SHARE * rate, seconds, poisson=poisson, seed=seed, whole=len(single))
    found = await arrivals(bench.port, single, due.tolist())
    return Pass(found, average([before, timed()]), rate)


async def idle_cost(bench: Bench) -> dict[str, Any]:
    """What HTTP adds to one short text, and where the time goes; the client is curl.

    A turn of texts in this process and one of requests on one connection follow each other.

    Returns:
        `answered` and `refused`, and of those that were answered, if there are any, medians in
        milliseconds: `tokenise_and_run_ms` in this process, `http_ms` as the client sees it,
        `overhead_ms` between the medians of a turn (with quartiles over the turns), `stages_ms` as
        the server names them, `in_server_ms` (what is left of its `total`) and `outside_ms` (what
        the client waits beside that).
    """
    explainer, load = bench.explainer, Load()
    inner: list[float] = []
    added: list[float] = []
    for _ in range(TURNS):
        with running_on(bench.cores.server):
            own = [
                milliseconds(
                    lambda: run_rows(
                        explainer.session, explainer.encoder.pad_id, first_rows(explainer, SHORT)
                    )
                )
                for _ in range(SINGLE // TURNS)
            ]
        turn = ask_by_curl(bench.port, "/predict", {"text": SHORT}, SINGLE // TURNS)
        load.add(turn)
        inner += own
        if turn.seconds:
            added.append(1e3 * float(np.median(turn.seconds)) - float(np.median(own)))
    if not load.seconds:
        return load.counts()
    seen = [1e3 * seconds for seconds in load.seconds]
    over = quartiles(added)
    stages = {
        name: round(float(np.median([of[name] for of in load.stages])), 3)
        for name in load.stages[0]
    }
    known = [sum(of.values()) - of["total"] for of in load.stages]
    totals = [of["total"] for of in load.stages]
    return {
        **load.counts(),
        "tokenise_and_run_ms": round(float(np.median(inner)), 2),
        "http_ms": round(float(np.median(seen)), 2),
        "overhead_ms": round(over[1], 2),
        "overhead_quartiles_ms": [round(over[0], 2), round(over[2], 2)],
        "stages_ms": stages,
        "in_server_ms": round(float(np.median(np.subtract(totals, known))), 3),
        "outside_ms": round(float(np.median(np.subtract(seen, totals))), 3),
    }


async def throughput(
    bench: Bench, requests: Sequence[bytes], texts: Sequence[str], each: int
) -> dict[str, Any]:
    """Texts a second of the server and of a bare loop, in turns.

    Args:
        bench: see `Bench`.
        requests: that flood the server.
        texts: of the bare loop.
        each: texts in a request.

    Returns:
        Medians over the passes with their quartiles, the share of one in the other (pass by pass),
        how many requests were answered and refused in all passes, and which share of the padded
        tokens is of windows that are run a second time, for another label, when a text is alone:
        the bare loop runs these, the server those that fall to it.
    """
    raw, http, counts = [], [], Counter[str]()
    connections = 64 if each == 1 else 4
    rounds = {text: all_rows(bench.explainer, text) for text in set(texts)}
    first = [row for text in texts for row in rounds[text][0]]
    again = [row for text in texts for several in rounds[text][1:] for row in several]
    for _ in range(bench.passes):
        with running_on(bench.cores.server):
            raw.append(raw_rate(bench.explainer, texts, again))
        load = await flood(
            bench.port, requests, bench.seconds / bench.passes, connections=connections
        )
        http.append(each * load.rate)
        counts.update(load.counts())
    shares = quartiles([ours / bare for ours, bare in zip(http, raw, strict=True)])
    found: dict[str, Any] = dict(counts)
    for name, values in (("raw", quartiles(raw)), ("http", quartiles(http))):
        found[f"{name}_texts_per_second"] = round(values[1], 1)
        found[f"{name}_quartiles"] = [round(values[0], 1), round(values[2], 1)]
    quarter, share, three_quarters = (round(value, 3) for value in shares)
    twice, once = (sum(row.bucket for row in rows) for rows in (again, first))
    return found | {
        "share": share,
        "share_quartiles": [quarter, three_quarters],
        "asked_again_share_of_tokens": ratio(twice, once + twice, 3),
    }


def raw_rate(explainer: Explainer, texts: Sequence[str], again: Sequence[Row]) -> float:
    """Texts a second of a bare loop: tokenise all, then sorted batches, nothing decoded.

    As many batches run at a time as the server runs.

    Args:
        explainer: whose graph runs.
        texts: of any length.
        again: rows that they ask for when they have the outputs of the first: as nothing is
            decoded, the loop has to be told.
    """
    start = time.perf_counter()
    rows = [row for text in texts for row in first_rows(explainer, text)] + [*again]
    session = explainer.session
    groups = plan_batches([len(row.input_ids) for row in rows], session.batch_tokens)
    batches = [[rows[place] for place in group] for group in groups]
    for _ in run_batches(batches, explainer.run, session.runners):
        pass
    return len(texts) / (time.perf_counter() - start)


async def padding(port: int) -> dict[str, float | None]:
    """Share of the computed tokens that were padding, from the server's own count."""
    async with connected(port, 1) as (connection,):
        text = (await connection.ask(get("/metrics"))).body.decode()
    numbers = {
        name: float(value)
        for name, value in (
            line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("l2e_")
        )
    }
    tokens, rows = "l2e_batch_tokens", "l2e_batch_rows"
    return {
        "share_of_tokens": ratio(numbers["l2e_padding_tokens_total"], numbers[f"{tokens}_sum"], 3),
        "rows_per_batch": ratio(numbers[f"{rows}_sum"], numbers[f"{rows}_count"], 2),
    }


if __name__ == "__main__":
    main()
