"""The tools of tests/bench that need no load: clocks, the simulated queue, memory, fingerprints."""

import asyncio
import dataclasses
import gc
import json
import os
import socket
import threading
import time

import numpy as np
import pytest

from models.bundle import load
from models.device import shipped_bundle
from models.explainer import Explainer
from models.rows import Row
from models.session import OnnxSession
from tests.bench.curl import ask_by_curl, lacks_curl
from tests.bench.http import Bench, at_70_percent, measure
from tests.bench.invariance import (
    Company,
    ask_all,
    differences,
    of_body,
    of_explanation,
    texts_answered,
)
from tests.bench.latency import Pass, against_queue, all_rows, beside_graph, summary
from tests.bench.length import count_again
from tests.bench.limits import in_rounds
from tests.bench.load import (
    Answer,
    Load,
    Sent,
    arrivals,
    clock,
    connected,
    flood,
    get,
    in_turn,
    post,
    predict,
    without_collector,
)
from tests.bench.memory import MemoryWatch, Sample, resident_megabytes, slope
from tests.bench.queue import BatchTimes, average, measure_batches, simulate
from tests.bench.results import finish, ratio, rounded
from tests.bench.runners import Side, runs_per_second
from tests.bench.runners import measure as measure_runners
from tests.bench.runners import start as start_graph
from tests.bench.runners import to_markdown as runners_to_markdown
from tests.bench.servers import SERVICE, Cores, running_on, server, share_cores
from tests.bench.stream import stream_slowly
from tests.conftest import WithoutStates
from training.evaluation.speed_report import peers_to_markdown, serving_to_markdown

needs_curl = pytest.mark.skipif(lacks_curl() is not None, reason=str(lacks_curl()))


def row(tokens, *, explain=True):
    return Row(np.zeros(tokens, dtype=np.int64), explain=explain)


# The simulated queue


def by_tokens(rows, length, alone):
    """A second for each row of 8 tokens."""
    return rows * length / 8


def test_texts_that_come_apart_are_run_one_by_one():
    done = simulate([0.0, 5.0, 9.0], [[[row(8)]], [[row(16)]], [[row(7)]]], by_tokens, 64)
    assert done.tolist() == [1.0, 7.0, 10.0]


def test_what_came_meanwhile_makes_the_next_batch_with_its_own_length():
    """The first runs alone; of those that wait the oldest decides, and the other of its length
    goes along, before one of another length that came between."""
    arrivals_ = [0.0, 0.1, 0.2, 0.3]
    texts = [[[row(8)]], [[row(16)]], [[row(8)]], [[row(13)]]]
    done = simulate(arrivals_, texts, by_tokens, 64)
    assert done.tolist() == [1.0, 5.0, 6.0, 5.0]


def test_a_batch_holds_no_more_than_it_may():
    done = simulate([0.0] * 5, [[[row(8)]]] * 5, by_tokens, 16)
    assert done.tolist() == [2.0, 2.0, 4.0, 4.0, 5.0]


def test_a_text_is_done_with_its_last_window():
    done = simulate([0.0, 0.0], [[[row(8), row(16)]], [[row(8)]]], by_tokens, 64)
    assert done.tolist() == [4.0, 2.0]


def test_a_window_that_is_asked_again_goes_before_those_that_came_later():
    texts = [[[row(8)], [row(8)]], [[row(16)]], [[row(8)]]]
    done = simulate([0.0, 0.5, 0.6], texts, by_tokens, 64)
    assert done.tolist() == [3.0, 5.0, 3.0]


def test_two_runners_share_what_waits():
    """The second takes the other length at once, and whoever is free first the next."""
    texts = [[[row(8)]], [[row(16)]], [[row(8)]], [[row(16)]]]
    done = simulate([0.0, 0.0, 0.1, 2.5], texts, by_tokens, 64, 2)
    assert done.tolist() == [1.0, 2.0, 2.0, 4.5]


def test_a_batch_that_begins_alone_has_a_time_of_its_own():
    done = simulate([0.0, 0.1, 9.0], [[[row(8)]]] * 3, lambda rows, length, alone: 2 - alone, 8, 2)
    assert done.tolist() == [1.0, 2.1, 10.0]
    beside = BatchTimes({8: {1: 2.0, 2: 3.0}}, BatchTimes({8: {1: 1.0, 2: 2.0}}))
    both = average([beside, BatchTimes({8: {1: 4.0, 2: 5.0}})])
    assert (both(1, 8), both.alone(1, 8)) == (3.0, 2.5)


def test_windows_of_a_text_run_at_a_time_and_what_it_asks_again_after_both():
    done = simulate([0.0], [[[row(8), row(16)], [row(8)]]], by_tokens, 64, 2)
    assert done.tolist() == [3.0]


def test_the_simulated_queue_is_that_of_theory():
    """Poisson arrivals, one text at a time of equal length: Pollaczek and Khinchine's mean."""
    load, count = 0.7, 20_000
    due = clock(load, count / load, poisson=True, seed=3)
    done = simulate(due.tolist(), [[[row(8)]]] * len(due), lambda rows, length, alone: 1.0, 8)
    waited = (done - due).mean()
    assert waited == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_ours_is_set_against_the_queue_and_against_one_that_has_our_python():
    """Two texts come together, one of two rows: a batch of two, and one that is left."""
    load = Load(seconds=[3.0, 4.0], sent=[Sent(0, 0.0, 0.0, 3.0), Sent(1, 0.0, 0.0, 4.0)])
    times = BatchTimes({8: {1: 1.0, 2: 1.5}})
    texts = [[[row(8)]], [[row(8), row(8)]]]
    # At best .75 s for each of three rows: 1.125 s a text. At .5 texts a second, .875 s are left,
    # which are .5833 s of a row.
    assert beside_graph(texts, times, 0.5) == pytest.approx(0.875)
    found = against_queue([Pass(load, times, 0.5)], texts, 16)
    assert found["simulated_p50_ms"] == 2000.0  # of 1.5 s and 2.5 s
    assert found["simulated_p99_ms"] == 2490.0
    assert found["p99_over_simulated"] == pytest.approx(3.99 / 2.49, abs=0.005)
    assert found["beside_graph_ms"] == 875.0
    late = 1.5 + 2 * 0.58333, 2.5 + 3 * 0.58333
    p99 = late[0] + 0.99 * (late[1] - late[0])
    assert found["simulated_with_python_p99_ms"] == pytest.approx(1e3 * p99, abs=0.1)
    assert found["p99_over_simulated_with_python"] == pytest.approx(3.99 / p99, abs=0.005)


def test_a_server_that_needs_no_time_beside_the_graph_has_one_queue_only():
    load = Load(seconds=[2.0], sent=[Sent(0, 0.0, 0.0, 2.0)])
    times = BatchTimes({8: {1: 1.0}})
    for rate in (0.0, 1.0, 2.0):
        found = against_queue([Pass(load, times, rate)], [[[row(8)]]], 8)
        assert "beside_graph_ms" not in found
        assert found["p99_over_simulated"] == 2.0
    assert against_queue([Pass(Load(refused=2), times, 0.5)], [[[row(8)]]], 8) == {}


def test_passes_are_set_against_queues_of_their_own():
    """In each as fast as batches were then; quantiles are of all together."""
    passes = [
        Pass(Load(seconds=[2.0], sent=[Sent(0, 0.0, 0.0, 2.0)]), BatchTimes({8: {1: 1.0}}), 1.0),
        Pass(Load(seconds=[6.0], sent=[Sent(0, 0.0, 0.0, 6.0)]), BatchTimes({8: {1: 3.0}}), 0.25),
    ]
    found = against_queue(passes, [[[row(8)]]], 8)
    assert found["simulated_p50_ms"] == 2000.0  # of 1 s and 3 s
    assert found["simulated_p99_ms"] == 2980.0
    assert found["p99_over_simulated"] == 2.0
    assert found["beside_graph_ms"] == 500.0  # of nothing and 1 s
    assert found["simulated_with_python_p99_ms"] == 3970.0  # of 1 s and 4 s


def test_a_pass_has_batch_times_and_a_clock_of_its_own(running, tiny_explainer):
    several = [BatchTimes({8: {1: 1.0, 2: 1.0}}), BatchTimes({8: {1: 3.0, 2: 3.0}})]
    left = [*several, *several]
    bench = dataclasses.replace(bench_of(running.port, tiny_explainer), load_seconds=0.2)
    single = [predict(text) for text in bench.texts]

    async def scene(seed):
        return await at_70_percent(bench, single, lambda: left.pop(0), poisson=True, seed=seed)

    passes = [asyncio.run(scene(seed)) for seed in (0, 1)]
    assert left == []
    gaps = []
    for one in passes:
        assert one.times.measured == {8: {1: 2.0, 2: 2.0}}
        assert one.rate > 0
        due = np.sort([sent.due for sent in one.load.sent])
        gaps.append(due[1] / due[0])  # whatever the rate was
    assert gaps[0] != pytest.approx(gaps[1], rel=1e-3)


def test_batch_times_are_averaged():
    several = [BatchTimes({8: {1: 1.0, 2: 3.0}}), BatchTimes({8: {1: 2.0, 2: 3.5}})]
    assert average(several).measured == {8: {1: 1.5, 2: 3.25}}


def test_batch_times_lie_between_those_that_were_measured():
    times = BatchTimes({8: {4: 0.4, 1: 0.1, 2: 0.3}})
    assert [round(times(rows, 8), 9) for rows in (1, 2, 3, 4)] == [0.1, 0.3, 0.35, 0.4]
    assert times.to_dict() == {"8": {"1": 100.0, "2": 300.0, "4": 400.0}}
    assert times.each(8) == 0.1
    assert BatchTimes({8: {1: 1.0, 2: 1.5}}).each(8) == 0.75
    with pytest.raises(ValueError, match="no time was measured for 5 rows of 8 tokens"):
        times(5, 8)
    with pytest.raises(ValueError, match="1 rows of 16 tokens"):
        times(1, 16)


def test_the_rows_of_a_text_are_all_that_it_asks_for(tiny_explainer, without_states):
    text = "terrible " * 40 + "wonderful " * 70
    assert [len(rows) for rows in all_rows(tiny_explainer, text)] == [5]
    first, again = all_rows(without_states, text)
    assert [len(first), [one.target for one in again]] == [5, [1, 1]]
    assert [one.input_ids.tolist() for one in again] == [
        one.input_ids.tolist() for one in first[:2]
    ]
    assert [len(rows) for rows in all_rows(tiny_explainer, "a great story")] == [1]


def test_batches_of_every_size_that_can_come_have_a_time(tiny_explainer):
    times = measure_batches(tiny_explainer, [8, 16, 16], 64, passes=1)
    assert [*times.measured[8]] == [1, 4, 8]
    assert [*times.measured[16]] == [1, 2, 4]
    assert all(times(rows, 16) > 0 for rows in range(1, 5))


def test_where_several_runs_go_on_at_a_time_each_is_timed_alone_and_beside_others(
    tiny_bundle, tiny_model_bytes
):
    class Slow(Explainer):
        """Three runs at a time take as long as they would one after the other."""

        def __init__(self):
            super().__init__(load(tiny_bundle), OnnxSession(tiny_model_bytes, threads=3))
            self._one = threading.Lock()

        def run(self, rows):
            with self._one:
                time.sleep(0.01)
            return super().run(rows)

    times = measure_batches(Slow(), [8], 16, passes=1)
    assert [*times.measured[8]] == [*times.alone.measured[8]] == [1, 2]
    assert times.alone(1, 8) >= 0.01
    assert times(1, 8) >= 0.03


# Clocks and the client


def test_a_steady_clock_has_equal_gaps():
    assert clock(4.0, 1.5, poisson=False).tolist() == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def test_a_clock_sends_whole_rounds():
    assert len(clock(4.0, 1.5, poisson=False, whole=4)) == 8
    assert len(clock(4.0, 1.4, poisson=True, whole=4)) == 4
    assert len(clock(0.1, 1.0, poisson=False, whole=3)) == 3
    assert not len(clock(0.0, 9.0, poisson=False, whole=3))


def test_a_poisson_clock_has_exponential_gaps_and_a_seed():
    due = clock(50.0, 200.0, poisson=True, seed=1)
    gaps = np.diff(due)
    assert len(due) == 10_000
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)
    assert np.array_equal(due, clock(50.0, 200.0, poisson=True, seed=1))
    assert not np.array_equal(due, clock(50.0, 200.0, poisson=True, seed=2))


@pytest.fixture(scope="module")
def running(tiny_bundle):
    """Our own server with the tiny bundle, as the measurements start it."""
    environment = {"L2E_BUNDLE": str(tiny_bundle), "L2E_THREADS": "1"}
    with server(SERVICE, share_cores().server, environment=environment) as found:
        yield found


def test_the_client_counts_answers_refusals_and_stages(running):
    good, bad = predict("a great story"), predict("")
    load = asyncio.run(in_turn(running.port, [good, bad, good]))
    assert (len(load.seconds), load.refused) == (2, 1)
    assert all({"run", "total"} <= set(stages) for stages in load.stages)
    assert load.quantile(1.0) == 1000 * max(load.seconds)


@needs_curl
def test_curl_asks_again_and_again_on_one_connection(running):
    load = ask_by_curl(running.port, "/predict", {"text": "a great story: naïve 🎬"}, 5)
    assert load.counts() == {"answered": 5, "refused": 0}
    for seconds, stages in zip(load.seconds, load.stages, strict=True):
        assert 0 < stages["run"] < stages["total"] < 1e3 * seconds
    assert ask_by_curl(running.port, "/predict", {}, 3).counts() == {"answered": 0, "refused": 3}


@needs_curl
def test_curl_says_that_nobody_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(RuntimeError, match="connect"):
            ask_by_curl(taken.getsockname()[1], "/predict", {"text": "a"}, 1)


def test_a_flood_sends_each_request_as_often_as_the_others(running):
    texts = ["a great story", "dull music", ""]
    load = asyncio.run(flood(running.port, [predict(text) for text in texts], 0.2, connections=2))
    assert load.rate > 0
    assert len(load.seconds) == 2 * load.refused > 0


def test_requests_of_a_clock_are_sent_when_they_are_due(running):
    due = [0.0, 0.05, 0.05, 0.1]
    load = asyncio.run(arrivals(running.port, [predict("dull"), predict("")], due))
    assert sorted(one.number for one in load.sent) == [0, 1, 2, 3]
    assert (len(load.seconds), load.refused) == (2, 2)
    for one in load.sent:
        assert isinstance(one, Sent)
        assert one.due == due[one.number]
        assert one.sent >= one.due
        assert (one.answered is None) == (one.number % 2 == 1)


def test_a_server_may_hang_up_on_a_connection_that_asks_nothing():
    """As uvicorn does after 5 seconds: the next request gets a connection of its own."""
    connections = []

    async def once(reader, writer):
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def measured():
        async with await asyncio.start_server(once, "127.0.0.1") as found:
            port = found.sockets[0].getsockname()[1]
            return await arrivals(port, [get("/")], [0.0, 0.2, 0.4])

    load = asyncio.run(measured())
    assert (len(load.seconds), load.refused) == (3, 0)
    assert len(connections) == 3


def test_the_client_collects_nothing_while_it_measures():
    collects = []

    async def once(reader, writer):  # in the client's process
        collects.append(gc.isenabled())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def measured():
        async with await asyncio.start_server(once, "127.0.0.1") as found:
            await arrivals(found.sockets[0].getsockname()[1], [get("/")], [0.0])

    asyncio.run(measured())
    assert collects == [False]
    assert gc.isenabled()


def test_the_collector_is_on_again_after_a_failure():
    with pytest.raises(KeyError), without_collector():
        raise KeyError
    assert gc.isenabled()


def test_how_late_the_client_was():
    sent = [Sent(0, 0.0, 0.001, 0.1), Sent(1, 1.0, 1.001, None)]
    assert summary(Load(seconds=[0.1], refused=1, sent=sent), 50.0) == {
        "answered": 1,
        "refused": 1,
        "sent_late_p99_ms": 1.0,
        "p50_ms": 100.0,
        "p99_ms": 100.0,
        "idle_p50_ms": 50.0,
        "p99_over_idle_p50": 2.0,
    }
    assert summary(Load(), None)["sent_late_p99_ms"] is None


def test_servers_are_asked_in_turns(running):
    ports = {"64": running.port, "128": running.port}
    texts = ["a great story", "dull music"]
    found = asyncio.run(in_rounds(ports, texts, 2, 0.2, "texts", 0.1))
    assert [*found] == ["64", "128", "ratios"]
    assert [*found["ratios"]] == ["128"]
    for values in (found["64"], found["128"], found["ratios"]["128"]):
        assert [*values] == ["texts_per_second", "p50_ms", "p99_ms"]
        assert min(values.values()) > 0
    assert found["64"]["p50_ms"] <= found["64"]["p99_ms"]


@pytest.fixture
def without_states(tiny_explainer, tiny_model_bytes):
    """The tiny explainer, for which another class takes a second run."""
    return Explainer(tiny_explainer.bundle, WithoutStates(tiny_model_bytes))


def test_windows_that_are_run_again_are_counted(tiny_explainer, without_states):
    texts = ["a great story", "wonderful " * 110, "terrible " * 30 + "wonderful " * 50]
    windows = [len(tiny_explainer.encode(text).windows) for text in texts]
    found = count_again(tiny_explainer, texts)
    assert found["rows"] == found["windows"]
    found = count_again(without_states, texts)
    assert windows[0] == 1
    assert found["texts"] == 2
    assert found["windows"] == sum(windows[1:])
    assert found["rows"] > found["windows"]


def test_a_stream_that_is_read_slowly_ends_with_all_items(running):
    found = asyncio.run(stream_slowly(running.port, 300, 500.0))
    assert found["summary"] == {"ok": 300, "failed": 0}
    assert found["seconds"] >= 0.3
    assert 0 < found["most_ahead"] < 300


def test_answers_over_http_are_those_of_python(running, tiny_explainer, mixed_texts):
    texts = [*mixed_texts, "quite alone"]
    ours = [of_explanation(answer) for answer in tiny_explainer.explain(texts)]

    async def ask():
        async with connected(running.port, 1) as (connection,):
            return [await connection.ask(predict(text, words=True)) for text in texts]

    bodies = [answer.body for answer in asyncio.run(ask())]
    theirs = [of_body(json.loads(body)) for body in bodies]
    assert differences(ours, theirs) == {"labels": 0, "spans": 0, "weights": 0}
    label, spans, weights = theirs[0]
    changed = [(label, spans, [*weights[:-1], weights[-1] + 1e-9]), *theirs[1:]]
    assert differences(ours, changed) == {"labels": 0, "spans": 0, "weights": 1}


def test_one_processor_answers_many_at_once_as_python_does(
    tiny_bundle, tiny_explainer, mixed_texts
):
    """Where one thread takes turns between the model and texts."""
    texts = [*mixed_texts, *(f"{number} great but dull" for number in range(40))]
    ours = [of_explanation(answer) for answer in tiny_explainer.explain(texts)]

    async def some(connection, part):
        return [await connection.ask(predict(text, words=True)) for text in part]

    async def ask(port):
        async with connected(port, 8) as several:
            parts = [some(connection, texts[place::8]) for place, connection in enumerate(several)]
            return await asyncio.gather(*parts)

    core = frozenset({min(share_cores().server)})
    with server(SERVICE, core, environment={"L2E_BUNDLE": str(tiny_bundle)}) as found:
        answers = asyncio.run(ask(found.port))
    for place, part in enumerate(answers):
        theirs = [of_body(json.loads(answer.body)) for answer in part]
        assert differences(ours[place::8], theirs) == {"labels": 0, "spans": 0, "weights": 0}


def test_a_request_has_the_length_of_its_bytes():
    head, body = post("/predict", {"text": "naïve"}).split(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


# Whole measurements, on a server that answers and on one that refuses every text


@pytest.fixture(scope="module")
def refusing(tiny_bundle):
    """Our own server, for which every text is too long."""
    environment = {"L2E_BUNDLE": str(tiny_bundle), "L2E_THREADS": "1", "L2E_MAX_TEXT_CHARS": "1"}
    with server(SERVICE, share_cores().server, environment=environment) as found:
        yield found


def bench_of(port, explainer):
    texts = ["a great story", "dull " * 40]
    return Bench(port, explainer, texts, share_cores(), seconds=0.1, load_seconds=0.3, passes=1)


@needs_curl
def test_the_service_is_measured_whole(running, tiny_explainer):
    found = asyncio.run(measure(bench_of(running.port, tiny_explainer)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["idle"]["answered"], found["idle"]["refused"]) == (300, 0)
    assert found["idle"]["http_ms"] > 0
    assert found["mixed"]["answered"] > 0 == found["mixed"]["refused"]
    assert found["load_70_constant"]["p99_over_idle_p50"] > 0
    alike = found["load_70_constant_one_length"]
    assert [*alike] == ["24", "163"]
    for told in alike.values():
        assert told["answered"] > 0 == told["refused"]
        assert min(told["texts_per_second"], told["idle_p50_ms"], told["p99_over_simulated"]) > 0
        assert told["p99_over_idle_p50"] == pytest.approx(
            told["p99_ms"] / told["idle_p50_ms"], rel=0.3
        )
    assert " - |" not in serving_to_markdown(found).replace("computed tokens | - | - |", "")


@needs_curl
def test_a_service_that_answers_nothing_is_measured_all_the_same(refusing, tiny_explainer):
    found = asyncio.run(measure(bench_of(refusing.port, tiny_explainer)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["idle"] == {"answered": 0, "refused": 300}
    assert found["mixed"]["refused"] > 0 == found["mixed"]["answered"]
    assert found["load_70_poisson"]["p99_ms"] is None
    assert found["load_200"]["goodput"] is None
    lines = serving_to_markdown(found).splitlines()
    assert "| one short text on an idle server | - | - | 300 of 300 |" in lines
    assert "| 99th percentile at 70 % load, constant | - | -, - | - |" in lines


def test_what_comes_beside_is_counted(running, refusing, tiny_explainer):
    texts = [f"a great story {'and dull music ' * number}" for number in range(60)]
    found, company = asyncio.run(ask_all(running.port, texts))
    ours = [of_explanation(answer) for answer in tiny_explainer.explain(texts)]
    assert differences(ours, found) == {"labels": 0, "spans": 0, "weights": 0}
    assert 0 < company.answered == company.sent
    assert company.enough
    with pytest.raises(RuntimeError, match="answered a text with 422"):
        asyncio.run(ask_all(refusing.port, texts))


@pytest.mark.parametrize(
    ("sent", "answered", "enough"), [(0, 0, False), (10, 0, False), (10, 8, False), (10, 9, True)]
)
def test_company_that_is_refused_is_none(sent, answered, enough):
    assert Company(sent, answered).enough == enough


@pytest.mark.parametrize(
    ("status", "body", "texts"),
    [
        (200, {"label": "POS"}, 1),
        (200, {"results": [], "summary": {"ok": 22, "failed": 2}}, 22),
        (503, {"status": 503}, 0),
    ],
)
def test_texts_that_were_answered(status, body, texts):
    assert texts_answered(Answer(status, {}, json.dumps(body).encode())) == texts


def test_a_peer_is_compared_with_us(running, tiny_explainer):
    from tests.bench.peers.run import PEERS, compare

    def same_as_ours(**changes):
        peer = dataclasses.replace(PEERS["l2e"], **changes)
        return asyncio.run(compare(peer, running.port, tiny_explainer))["same_as_ours"]

    assert same_as_ours() == {"of": 8, "labels": 8, "rationales": 8, "all": True}
    assert same_as_ours(read=lambda body: (body["label"], [(0, 1)])) == {
        "of": 8, "labels": 8, "rationales": 0, "all": False,
    }  # fmt: skip
    assert same_as_ours(request=lambda text: predict("")) == {
        "of": 8, "labels": 0, "rationales": 0, "all": False,
    }  # fmt: skip
    only = PEERS["l2e, label only"]
    assert same_as_ours(request=only.request, read=lambda body: (body["label"], []),
                        explains=False) == {"of": 8, "labels": 8, "all": True}  # fmt: skip


def test_numbers_that_are_missing():
    assert (ratio(3.0, 2.0, 1), ratio(None, 2.0, 1), ratio(3.0, 0.0, 1)) == (1.5, None, None)
    assert (rounded(1.26, 1), rounded(None, 1)) == (1.3, None)
    assert Load().quantile(0.5) is None
    assert clock(0.0, 5.0, poisson=True).tolist() == clock(0.0, 5.0, poisson=False).tolist() == []


def test_a_table_that_fails_loses_no_result(tmp_path):
    with pytest.raises(KeyError):
        finish({"kept": 1}, tmp_path / "result.json", lambda result: result["missing"])
    assert json.loads((tmp_path / "result.json").read_text()) == {"kept": 1}


# Processes


def test_cores_are_shared_or_not():
    assert not Cores(frozenset({0, 1}), frozenset({0, 1})).pinned
    pinned = Cores(frozenset({0, 1}), frozenset({2}))
    assert pinned.pinned
    assert pinned.to_dict()["server"] == [0, 1]


def test_threads_of_a_server_follow_its_cores():
    before = os.sched_getaffinity(0)
    assert 1 <= share_cores().threads() <= len(before)
    assert Cores(frozenset([min(before)]), frozenset()).threads() == 1
    assert os.sched_getaffinity(0) == before


def test_a_thread_is_back_on_its_cores_afterwards():
    before = os.sched_getaffinity(0)
    one = frozenset([min(before)])
    with running_on(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before


def test_the_slope_is_taken_after_the_warm_up():
    rising = [Sample(float(second), 500.0 + 10 * second) for second in range(25)]
    steady = [Sample(float(second), 740.0 + second / 60) for second in range(25, 101)]
    assert slope([*rising, *steady]) == pytest.approx(1.0)
    assert slope([Sample(0.0, 5.0), Sample(60.0, 7.0)], warm_up=0.0) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="1 samples of memory"):
        slope([Sample(0.0, 5.0), Sample(60.0, 7.0)])


def test_memory_is_sampled_while_it_is_watched():
    with MemoryWatch(os.getpid(), every=0.001) as watch:
        kept = np.ones(4_000_000)
        while len(watch.samples) < 6:
            os.sched_yield()
    found = watch.summary()
    assert found["most_mb"] >= found["end_mb"] > 1
    assert found["samples"] >= 2
    assert resident_megabytes(os.getpid()) > kept.nbytes / 1e6


def test_a_process_that_ended_has_no_memory():
    with pytest.raises(FileNotFoundError):
        resident_megabytes(2**31 - 1)


# Tables


def test_the_table_of_the_service_under_load():
    counts = {"answered": 990, "refused": 10}
    load = {"p99_ms": 90.0, "p99_over_simulated": 1.5, "p99_over_idle_p50": 3.0, **counts}
    short = {**load, "p99_over_simulated_with_python": 1.25}
    rates = {"raw_texts_per_second": 40.0, "http_texts_per_second": 38.0, "share": 0.95}
    result = {
        "idle": {"http_ms": 9.04, "overhead_ms": 1.25, "answered": 300, "refused": 0},
        "mixed": {**rates, **counts},
        "batch_of_32_at_24_tokens": {**rates, "answered": 900, "refused": 100},
        "load_70_constant": load,
        "load_70_poisson": load,
        "load_70_constant_one_length": {"24": short},
        "load_200": {"goodput": 0.93, "answered": 1_000, "refused": 1_234},
        "padding": {"share_of_tokens": 0.079},
    }
    assert serving_to_markdown(result).splitlines() == [
        "| measured | found | against | refused |",
        "|---|---|---|---|",
        "| one short text on an idle server | 9.0 ms | 1.25 ms over tokenising and running it "
        "| 0 of 300 |",
        "| all connections busy | 38.0 texts/s | 0.95 of the bare loop's 40.0 | 10 of 1,000 |",
        "| batches of 32 short texts | 38.0 texts/s | 0.95 of the bare loop's 40.0 "
        "| 100 of 1,000 |",
        "| 99th percentile at 70 % load, constant | 90 ms "
        "| 1.50 times the simulated queue's, 3.0 times the idle median | 10 of 1,000 |",
        "| 99th percentile at 70 % load, Poisson | 90 ms "
        "| 1.50 times the simulated queue's, 3.0 times the idle median | 10 of 1,000 |",
        "| 99th percentile at 70 % load, constant, all of 24 tokens | 90 ms "
        "| 1.50 times the simulated queue's (1.25 with Python), 3.0 times the idle median "
        "| 10 of 1,000 |",
        "| twice the load | 0.93 of the maximum answered | 1 | 1,234 of 2,234 |",
        "| padding | 7.9% of the computed tokens | - | - |",
    ]


def test_the_table_of_peers():
    ours = {"of": 8, "labels": 8, "rationales": 8, "all": True}

    def peer(explains, rate, same=ours):
        load = {"p99_ms": 1234.0, "answered": 90, "refused": 2}
        return {
            "explains": explains, "idle_p50_ms": 9.0, "texts_per_second": rate, "load_70": load,
            "same_as_ours": same, "answered": 900, "refused": 8,
        }  # fmt: skip

    silent = {"p99_ms": None, "answered": 0, "refused": 0}
    servers = {
        "l2e": peer(True, 40.0),
        "l2e, label only": peer(False, 50.0, {"of": 8, "labels": 8, "all": True}),
        "fastapi-fp32": peer(True, 20.0, {**ours, "rationales": 5, "all": False}),
        "infinity": peer(False, 25.0, {"of": 8, "labels": 7, "all": False}),
        "silent": {
            **peer(True, 0.0, {"of": 8, "labels": 0, "rationales": 0, "all": False}),
            "idle_p50_ms": None, "load_70": silent, "answered": 0, "refused": 5_000,
        },
    }  # fmt: skip
    result = {"runtime": {"device": "cpu"}, "precision": "fp32", "servers": servers}
    assert peers_to_markdown(result).splitlines() == [
        "| server | answers with | as l2e answers | idle, short text | texts/s, all busy "
        "| p99 at its 70 % | refused | l2e on cpu, fp32, texts/s |",
        "|---|---|---|---|---|---|---|---|",
        "| l2e | label and rationale | yes | 9.0 ms | 40.0 | 1,234 ms | 10 of 1,000 | 1.00 x |",
        "| l2e, label only | label | yes | 9.0 ms | 50.0 | 1,234 ms | 10 of 1,000 | 1.00 x |",
        "| fastapi-fp32 | label and rationale | no: labels 8 of 8, rationales 5 of 8 | 9.0 ms "
        "| 20.0 | 1,234 ms | 10 of 1,000 | 2.00 x |",
        "| infinity | label | no: labels 7 of 8 | 9.0 ms | 25.0 | 1,234 ms | 10 of 1,000 "
        "| 2.00 x |",
        "| silent | label and rationale | no: labels 0 of 8, rationales 0 of 8 | - | 0.0 | - "
        "| 5,000 of 5,000 | - |",
    ]


# Runs at a time


def test_ways_to_run_batches_are_set_side_by_side():
    model = load(shipped_bundle("cpu")).model_bytes()
    graphs = {threads: start_graph(model, threads) for threads in (1, 2)}
    rows = [measure_runners(graphs, batch, 24, 0.05, 2) for batch in (1, 2)]
    for row, batch in zip(rows, (1, 2), strict=True):
        assert (row["tokens"], row["batch"]) == (24, batch)
        assert min(row["all_threads"], row["at_a_time"], row["one_thread"]) > 0
        low, high = row["at_a_time_ratio_quartiles"]
        assert low <= row["at_a_time_ratio"] <= high
    assert runners_to_markdown({"threads": 2, "rows": rows}).count("\n") == 4


def test_runs_of_all_callers_are_counted():
    """Each sleeps, so that three do about three times as many as one."""
    one, three = (
        runs_per_second(Side(lambda: time.sleep(0.01), callers), 0.3) for callers in (1, 3)
    )
    assert 1.5 < three / one < 6
