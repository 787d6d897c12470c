"""Latencies of requests that come by a clock, against an idle server and a simulated queue."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.answer import Answer, Flow, Row, RowOutputs, answer_flow, run_flows
from models.explainer import Explainer
from tests.bench.load import Load, arrivals, clock, flood, in_turn, predict
from tests.bench.queue import BatchTimes, Rounds, simulate
from tests.bench.results import ratio, rounded

SHARE = 0.7  # of what a server can answer


def first_rows(explainer: Explainer, text: str) -> list[Row]:
    """The rows that a text asks for first."""
    return next(answer_flow(explainer.encode(text)))


def all_rows(explainer: Explainer, text: str) -> Rounds:
    """The rows of a text alone, and those that are run again: it is answered to find out."""
    rounds: list[list[Row]] = []

    def noted(flow: Flow[Answer]) -> Flow[None]:
        outputs: list[RowOutputs] | None = None
        with contextlib.suppress(StopIteration):
            while True:
                rounds.append(flow.send(outputs))  # type: ignore[arg-type] # None begins
                outputs = yield rounds[-1]

    flows = [noted(answer_flow(explainer.encode(text)))]
    run_flows(flows, explainer.run, explainer.session.batch_tokens)
    return rounds


def summary(load: Load, idle: float | None) -> dict[str, Any]:
    """Latencies in milliseconds and over the idle median; None where nothing was answered.

    They count from when a request was due; how late the client sent it is there, too.
    """
    p99 = load.quantile(0.99)
    late = [1000 * (one.sent - one.due) for one in load.sent]
    return {
        **load.counts(),
        "sent_late_p99_ms": rounded(float(np.quantile(late, 0.99)) if late else None, 2),
        "p50_ms": rounded(load.quantile(0.5), 1),
        "p99_ms": rounded(p99, 1),
        "idle_p50_ms": rounded(idle, 1),
        "p99_over_idle_p50": ratio(p99, idle, 2),
    }


def against_queue(
    load: Load,
    rows: Sequence[Rounds],
    times: BatchTimes,
    max_tokens: int,
    rate: float,
) -> dict[str, Any]:
    """The same arrivals in the simulated queue: its latencies, and ours over them.

    Args:
        load: what a clock gave.
        rows: of each of its texts.
        times: of batches.
        max_tokens: padded tokens in a batch.
        rate: texts a second that the server answers when it is busiest. What a text takes it beside
            the graph then, tokenising and all, takes it in a second queue, too: what the server
            needs beyond that one is owed to the order in which it does things, and to Python being
            dearer where less waits.
    """
    sent = sorted((one for one in load.sent if one.answered is not None), key=lambda one: one.sent)
    if not sent:
        return {}
    arrived = [one.sent for one in sent]
    due = np.array([one.due for one in sent])
    texts = [rows[one.number % len(rows)] for one in sent]

    def waited(each: float) -> npt.NDArray[np.float64]:
        def service(count: int, length: int) -> float:
            return times(count, length) + each * count

        return 1e3 * (simulate(arrived, texts, service, max_tokens) - due)

    alone = waited(0.0)
    p99 = float(np.quantile(alone, 0.99))
    found = {
        "simulated_p50_ms": round(float(np.median(alone)), 1),
        "simulated_p99_ms": round(p99, 1),
        "p99_over_simulated": ratio(load.quantile(0.99), p99, 2),
    }
    cost = beside_graph(rows, times, rate)
    if cost is None:
        return found
    count = sum(len(several) for rounds in texts for several in rounds)
    p99 = float(np.quantile(waited(cost * len(texts) / count), 0.99))
    return found | {
        "beside_graph_ms": round(1e3 * cost, 3),
        "simulated_with_python_p99_ms": round(p99, 1),
        "p99_over_simulated_with_python": ratio(load.quantile(0.99), p99, 2),
    }


def beside_graph(rows: Sequence[Rounds], times: BatchTimes, rate: float) -> float | None:
    """Seconds of a text that the graph does not account for.

    Args:
        rows: of each text.
        times: of batches.
        rate: texts a second at full load.

    Returns:
        None where none are left, as where the server's threads do both at a time.
    """
    each = [times.each(row.bucket) for rounds in rows for several in rounds for row in several]
    graph = sum(each) / len(rows)
    beside = 1 / rate - graph if rate else 0.0
    return beside if beside > 0 else None


async def alike(
    port: int,
    explainer: Explainer,
    texts: Sequence[str],
    times: BatchTimes,
    *,
    seconds: float,
    load_seconds: float,
) -> dict[str, Any]:
    """Texts of one length at equal gaps, `SHARE` of as many as the server answers of them.

    The idle median is that of the same texts, so that what is found over it is what waiting costs,
    and not that some texts are longer than others.

    Args:
        port: of the server.
        explainer: the same bundle in this process.
        texts: of one length.
        times: of the simulated queue.
        seconds: of the flood that finds out how many the server answers.
        load_seconds: of the clock.
    """
    requests = [predict(text) for text in texts]
    idle = (await in_turn(port, requests)).quantile(0.5)
    busy = await flood(port, requests, seconds)
    due = clock(SHARE * busy.rate, load_seconds, poisson=False, whole=len(requests))
    found = await arrivals(port, requests, due.tolist())
    told = {"texts_per_second": round(busy.rate, 1), **summary(found, idle)}
    rows = [all_rows(explainer, text) for text in texts]
    return told | against_queue(found, rows, times, explainer.session.batch_tokens, busy.rate)
