"""Latencies of requests that come by a clock, against an idle server and a simulated queue."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.answer import Answer, answer_flow
from models.explainer import Explainer
from models.flows import Flow, run_flows
from models.rows import Row, RowOutputs
from tests.bench.load import Load, arrivals, clock, flood, in_turn, predict
from tests.bench.queue import BatchTimes, Rounds, average, simulate
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
    session = explainer.session
    run_flows(flows, explainer.run, session.batch_tokens, session.runners)
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


@dataclass(frozen=True)
class Pass:
    """A clock's requests, and how fast things were around them.

    Attributes:
        load: what the clock gave.
        times: of batches.
        rate: texts a second that the server answered when it was busiest.
    """

    load: Load
    times: BatchTimes
    rate: float


def against_queue(
    passes: Sequence[Pass], rows: Sequence[Rounds], max_tokens: int, runners: int = 1
) -> dict[str, Any]:
    """The same arrivals in the simulated queue: its latencies, and ours over them.

    What a text takes the server beside the graph when it is busiest, tokenising and all, takes it
    in a second queue, too: what the server needs beyond that one is owed to the order in which it
    does things, and to Python being dearer where less waits.

    Args:
        passes: the quantiles are of the requests of all of them.
        rows: of each of their texts.
        max_tokens: padded tokens in a batch.
        runners: batches at a time.
    """
    ours, alone, with_python, costs = Load(), [], [], []
    for one in passes:
        ours.add(one.load)
        cost = beside_graph(rows, one.times, one.rate, runners) or 0.0
        costs.append(cost)
        alone.append(_waited(one, rows, max_tokens, runners, 0.0))
        with_python.append(_waited(one, rows, max_tokens, runners, cost))
    if not ours.seconds:
        return {}
    p99 = float(np.quantile(np.concatenate(alone), 0.99))
    found = {
        "simulated_p50_ms": round(float(np.median(np.concatenate(alone))), 1),
        "simulated_p99_ms": round(p99, 1),
        "p99_over_simulated": ratio(ours.quantile(0.99), p99, 2),
    }
    if not any(costs):
        return found
    p99 = float(np.quantile(np.concatenate(with_python), 0.99))
    return found | {
        "beside_graph_ms": round(1e3 * float(np.mean(costs)), 3),
        "simulated_with_python_p99_ms": round(p99, 1),
        "p99_over_simulated_with_python": ratio(ours.quantile(0.99), p99, 2),
    }


def _waited(
    one: Pass, rows: Sequence[Rounds], max_tokens: int, runners: int, cost: float
) -> npt.NDArray[np.float64]:
    """Milliseconds from when each was due, where a text costs so many seconds beside the graph."""
    answered = [each for each in one.load.sent if each.answered is not None]
    sent = sorted(answered, key=lambda each: each.sent)
    texts = [rows[each.number % len(rows)] for each in sent]
    each_row = cost * len(texts) / max(1, sum(len(of) for rounds in texts for of in rounds))

    def service(count: int, length: int, alone: bool) -> float:
        times = one.times.alone if alone else one.times
        return times(count, length) + each_row * count

    done = simulate([each.sent for each in sent], texts, service, max_tokens, runners)
    return 1e3 * (done - np.array([each.due for each in sent]))


def beside_graph(
    rows: Sequence[Rounds], times: BatchTimes, rate: float, runners: int = 1
) -> float | None:
    """Seconds of a text that the graph does not account for, of one of several runners.

    Args:
        rows: of each text.
        times: of batches.
        rate: texts a second at full load.
        runners: batches at a time.

    Returns:
        None where none are left.
    """
    each = [times.each(row.bucket) for rounds in rows for several in rounds for row in several]
    graph = sum(each) / len(rows)
    beside = runners / rate - graph if rate else 0.0
    return beside if beside > 0 else None


async def alike(
    port: int,
    explainer: Explainer,
    texts: Sequence[str],
    timed: Callable[[], BatchTimes],
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
        timed: measures batches for the simulated queue, before and after.
        seconds: of the flood that finds out how many the server answers.
        load_seconds: of the clock.
    """
    requests = [predict(text) for text in texts]
    rows = [all_rows(explainer, text) for text in texts]
    before = timed()
    idle = (await in_turn(port, requests)).quantile(0.5)
    busy = await flood(port, requests, seconds)
    due = clock(SHARE * busy.rate, load_seconds, poisson=False, whole=len(requests))
    found = await arrivals(port, requests, due.tolist())
    told = {"texts_per_second": round(busy.rate, 1), **summary(found, idle)}
    one = Pass(found, average([before, timed()]), busy.rate)
    session = explainer.session
    return told | against_queue([one], rows, session.batch_tokens, session.runners)
