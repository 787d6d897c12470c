"""The scheduler: bounds, deadlines, clients that leave, errors, and who goes first."""

import asyncio
import time

import pytest

from models.explainer import Explainer
from models.flows import Flow
from service.backend import crew_for
from service.batching.gate import Gate
from service.batching.lanes import Lane
from service.batching.scheduler import Scheduler
from service.batching.tickets import (
    JOURNAL,
    LONG_CHARS,
    ClosedError,
    DeadlineError,
    Journal,
    OverloadedError,
    Query,
    Reply,
    Task,
    Ticket,
    Wish,
)
from tests.conftest import WithoutStates


@pytest.fixture
def start_scheduler(held):
    """Starts schedulers: `start_scheduler(**limits)`."""
    running = []

    def begin(**limits):
        given = {"max_waiting": 2, "max_waiting_tokens": 10**6, "max_batch_tokens": 64} | limits
        running.append(Scheduler(held, **given))
        return running[-1]

    yield begin
    held.gate.set()
    for scheduler in running:
        scheduler.stop(10)
        assert not scheduler.alive


@pytest.fixture(params=["equal", "alone", "apart"])
def runner(start_scheduler, request):
    return start_scheduler(crew=request.param)


@pytest.mark.parametrize(
    ("device", "processors", "crew"),
    [
        ("cpu", 1, "alone"),
        ("cpu", 2, "equal"),
        ("openvino", 1, "alone"),
        ("cuda", 1, "apart"),
        ("cuda-graphs", 8, "apart"),
    ],
)
def test_threads_suit_the_device_and_the_processors(device, processors, crew):
    assert crew_for(device, processors) == crew


def ask(runner, *texts, timeout=10.0, wish=None, urgent=True):
    queries = [Query(text) for text in texts]
    return runner.ask(queries, wish or Wish(), timeout=timeout, urgent=urgent)


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


async def start(work):
    """A task that has run up to its first wait."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    return task


def test_answers_in_order(runner):
    outcomes = asyncio.run(ask(runner, "great", "boring", "fine"))
    assert [outcome.explanation.label for outcome in outcomes] == ["POS", "NEG", "POS"]


def test_wishes_are_kept(runner):
    (plain,) = asyncio.run(ask(runner, "a great story", wish=Wish(explain=False)))
    assert plain.explanation.words == ()
    (verified,) = asyncio.run(ask(runner, "a great story", wish=Wish(verify=True, max_words=1)))
    assert verified.verification["log_odds_drop"] == pytest.approx(3.0)


def test_error_fails_only_its_text(runner, held):
    good, bad, last = asyncio.run(ask(runner, "great", "poison", "fine"))
    assert isinstance(good, Reply)
    assert isinstance(last, Reply)
    assert isinstance(bad, RuntimeError)
    assert "poison" in held.seen


def test_error_of_one_request_leaves_the_others_alone(runner):
    async def scene():
        return await asyncio.gather(ask(runner, "great"), ask(runner, "poison"))

    good, bad = asyncio.run(scene())
    assert isinstance(good[0], Reply)
    assert isinstance(bad[0], RuntimeError)
    assert runner.alive


def test_full_line_refuses(runner, held):
    async def scene():
        held.hold()
        tasks = [await start(ask(runner, "one"))]
        await asyncio.to_thread(held.wait_until_entered)
        tasks += [await start(ask(runner, text)) for text in ("two", "three")]
        assert runner.waiting == 2
        with pytest.raises(OverloadedError) as refused:
            await ask(runner, "four")
        assert 1 <= refused.value.retry_after <= 60
        # In the order of the line, which is of rows: two threads may tokenise at a time.
        ready = 2 if runner._turns is None else 0  # one thread alone tokenises them later
        await asyncio.to_thread(wait_for, lambda: runner.waiting_rows == ready)
        held.gate.set()
        assert all(isinstance(outcome, Reply) for (outcome,) in await asyncio.gather(*tasks))

    asyncio.run(scene())
    assert held.seen == ["one", "two", "three"]


def test_deadline_in_the_line_is_not_computed(runner, held):
    async def scene():
        held.hold()
        first = await start(ask(runner, "first"))
        await asyncio.to_thread(held.wait_until_entered)
        with pytest.raises(DeadlineError):
            await ask(runner, "late", timeout=0.05)
        assert runner.waiting == 0
        held.gate.set()
        await first
        await ask(runner, "next")

    asyncio.run(scene())
    assert held.seen == ["first", "next"]


def test_deadline_while_computing_does_not_wait_for_the_end(runner, held):
    async def scene():
        held.hold()
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            await ask(runner, "slow", timeout=0.2)
        assert time.monotonic() - start < 2
        held.gate.set()
        assert isinstance((await ask(runner, "next"))[0], Reply)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("crew", "allowed"),
    [
        ("equal", {"texts and graph 1", "texts and graph 2"}),
        ("alone", {"texts and graph 1"}),
        ("apart", {"graph"}),
    ],
)
def test_threads_keep_to_their_parts(crew, allowed, start_scheduler, held, mixed_texts):
    scheduler = start_scheduler(crew=crew, max_waiting=100)
    texts = [*mixed_texts, "great story " * (LONG_CHARS // 8)]

    async def scene():
        alone = await ask(scheduler, "great")
        return [*alone, *await asyncio.gather(*(ask(scheduler, text) for text in texts))]

    asyncio.run(scene())
    assert set(held.threads) <= allowed


def test_client_that_leaves_the_line_is_not_computed(runner, held):
    async def scene():
        held.hold()
        first = await start(ask(runner, "first"))
        await asyncio.to_thread(held.wait_until_entered)
        leaver = await start(ask(runner, "leaver"))
        stayer = await start(ask(runner, "stayer"))
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert runner.waiting == 1
        held.gate.set()
        await asyncio.gather(first, stayer)

    asyncio.run(scene())
    assert held.seen == ["first", "stayer"]


def test_client_that_leaves_while_computing_stops_after_the_batch(runner, held):
    texts = [f"text {number}" for number in range(70)]

    async def scene():
        held.hold()
        leaver = await start(ask(runner, *texts))
        await asyncio.to_thread(held.wait_until_entered)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        held.gate.set()
        await ask(runner, "next")

    asyncio.run(scene())
    assert len(held.batches) == 2
    assert held.batches[-1] == ["next"]


def test_requests_that_wait_together_share_a_batch(start_scheduler, held):
    scheduler = start_scheduler(max_waiting=100)

    async def scene():
        held.hold()
        first = await start(ask(scheduler, "first"))
        await asyncio.to_thread(held.wait_until_entered)
        others = [await start(ask(scheduler, f"text {number}")) for number in range(12)]
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 12)
        held.gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(scene())
    # Three or four pieces each, so a bucket of 8 tokens, of which 64 hold 8.
    assert [len(batch) for batch in held.batches] == [1, 8, 4]


def test_a_text_that_is_asked_again_does_not_wait_all_over_again(
    start_scheduler, held, tiny_model_bytes
):
    """Its first windows give it another label than the whole, so that four are explained anew.

    Two threads would decode it beside the runs, sooner or later.
    """
    held.session = WithoutStates(tiny_model_bytes)
    scheduler = start_scheduler(max_waiting=100, max_batch_tokens=1, crew="alone")
    text = "terrible " * 40 + "wonderful " * 70

    async def scene():
        held.hold()
        first = await start(ask(scheduler, "first"))
        await asyncio.to_thread(held.wait_until_entered)
        long = await start(ask(scheduler, text))
        others = [await start(ask(scheduler, "boring")) for _ in range(80)]
        await asyncio.to_thread(wait_for, lambda: scheduler.waiting == 81)
        held.gate.set()
        await asyncio.gather(first, long, *others)

    asyncio.run(scene())
    assert held.seen.count(text) == 5 + 4
    assert text not in held.seen[20:]


@pytest.mark.parametrize(("crew", "texts"), [("alone", 100), ("alone", 20), ("equal", 100)])
def test_the_gate_is_shut_in_runs_of_the_only_thread_where_much_waits(
    crew, texts, start_scheduler, held
):
    gate = Gate()
    scheduler = start_scheduler(crew=crew, max_waiting=200, gate=gate)
    made: list[str] = []

    async def scene():
        held.hold()
        tasks = [await start(ask(scheduler, "first"))]
        await asyncio.to_thread(held.wait_until_entered)
        tasks += [await start(ask(scheduler, "great")) for _ in range(texts)]
        held.hold()
        held.gate.set()
        await asyncio.to_thread(held.wait_until_entered)
        gate.pass_on(made.append, "in the run")
        begun = [*made]
        held.gate.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.01)
        gate.pass_on(made.append, "after all")
        return begun

    crowded = crew == "alone" and texts == 100
    assert asyncio.run(scene()) == ([] if crowded else ["in the run"])
    assert made == ["in the run", "after all"]


@pytest.mark.parametrize("crew", ["equal", "apart"])
def test_verifications_are_prepared_while_the_graph_runs_one(crew, start_scheduler, held):
    scheduler = start_scheduler(max_waiting=100, max_batch_tokens=512, crew=crew)
    verified = Wish(verify=True)

    async def scene():
        held.hold()
        first = await start(ask(scheduler, "first"))
        await asyncio.to_thread(held.wait_until_entered)
        many = await start(ask(scheduler, *["a great story"] * 32, wish=verified))
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 32)
        held.hold(at_call=2)  # after all of them, at the first verification
        held.gate.set()
        await asyncio.to_thread(wait_for, lambda: len(held.batches) == 3)
        # At most 64 of the 96 rows are in this run, however many had been prepared by then.
        left = 96 - len(held.batches[2])
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == left)
        held.gate.set()
        await asyncio.gather(first, many)
        return left

    left = asyncio.run(scene())
    assert left >= 32
    assert len(held.batches) == 3 + -(-left // 64)


@pytest.mark.parametrize("runners", [1, 2, 5])
def test_answers_in_any_company_are_those_of_the_explainer_alone(
    start_scheduler, held, tiny_explainer, mixed_texts, runners
):
    held.allow(runners)
    limits = {"runners": runners, "cores": runners}
    scheduler = start_scheduler(max_waiting=100, max_batch_tokens=200, **limits)
    texts = [*mixed_texts, *reversed(mixed_texts)]

    async def scene():
        singly = [ask(scheduler, text) for text in texts]
        together = ask(scheduler, *texts, urgent=False)
        verified = ask(scheduler, *texts, wish=Wish(verify=True))
        return await asyncio.gather(together, verified, *singly)

    together, verified, *singly = asyncio.run(scene())
    expected = Explainer.explain(tiny_explainer, texts)
    assert [one.explanation for one in together] == expected
    assert [one.explanation for (one,) in singly] == expected
    assert [one.verification for one in verified] == [tiny_explainer.verify(e) for e in expected]
    assert any(one.windows > 1 for one in expected)
    assert max(map(len, held.batches)) > 1


@pytest.fixture
def pair(start_scheduler, held):
    """Two runs at a time."""
    held.allow(2)
    return start_scheduler(max_waiting=100, runners=2, cores=2)


def test_two_runs_go_on_at_a_time_and_no_third(start_scheduler, held):
    """A third thread, where a core is left, prepares what is next."""
    held.allow(2)
    scheduler = start_scheduler(max_waiting=100, runners=2, cores=8)

    async def scene():
        held.hold()
        tasks = [await start(ask(scheduler, "first"))]
        await asyncio.to_thread(held.wait_until_entered)
        tasks.append(await start(ask(scheduler, "second")))
        await asyncio.to_thread(held.wait_until_entered)
        tasks += [await start(ask(scheduler, "third")) for _ in range(3)]
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 3)
        await asyncio.sleep(0.05)
        assert held.batches == [["first"], ["second"]]
        held.gate.set()
        return await asyncio.gather(*tasks)

    assert all(isinstance(reply, Reply) for (reply,) in asyncio.run(scene()))
    assert held.seen[2:] == ["third"] * 3


@pytest.mark.parametrize(
    ("crew", "runners", "cores", "threads", "turns"),
    [
        ("equal", 1, 1, 2, False),
        ("equal", 1, 8, 2, False),
        ("equal", 2, 2, 2, True),
        ("equal", 2, 8, 3, False),
        ("equal", 8, 8, 8, True),
        ("equal", 8, 2, 2, True),
        ("alone", 1, 1, 1, True),
        ("alone", 8, 1, 1, True),
        ("apart", 1, 8, 2, False),
    ],
)
def test_threads_take_turns_where_all_may_be_running_the_graph(
    start_scheduler, crew, runners, cores, threads, turns
):
    scheduler = start_scheduler(crew=crew, runners=runners, cores=cores)
    assert len(scheduler._crew._threads) == threads + 1  # long texts have their own
    assert (scheduler._turns is not None) == turns


def test_who_takes_a_batch_calls_another_for_what_is_left(pair, held):
    """The windows of a long text come from a thread that calls one of the two."""

    async def scene():
        held.hold()
        long = await start(ask(pair, "great story " * (LONG_CHARS // 8)))
        for _ in range(2):
            await asyncio.to_thread(held.wait_until_entered)
        held.gate.set()
        await long

    asyncio.run(scene())
    assert len(held.batches) > 2


def test_a_text_in_two_runs_at_a_time_is_in_one_stage(pair, held):
    """Its windows are of two lengths; the second run begins later and both end together."""
    journal = Journal(("queue", "run"))

    async def scene():
        held.hold()
        JOURNAL.set(journal)
        begun = time.monotonic()
        long = await start(ask(pair, "great story " * (LONG_CHARS // 8)))
        for _ in range(2):
            await asyncio.to_thread(held.wait_until_entered)
            await asyncio.sleep(0.1)
        held.gate.set()
        [reply] = await long
        return reply, time.monotonic() - begun

    reply, passed = asyncio.run(scene())
    assert reply.stages == pytest.approx(journal.seconds)
    assert sum(reply.stages.values()) <= passed
    assert reply.stages["run"] >= 0.2
    assert all(start <= end for _, start, end, _ in journal.stretches)


def test_what_waits_is_done_in_half_the_time_by_two(pair, held):
    async def scene(held_for):
        held.hold()
        tasks = [await start(ask(pair, "first")), await start(ask(pair, "great " * 40))]
        for _ in range(2):
            await asyncio.to_thread(held.wait_until_entered)
        await asyncio.sleep(held_for)
        held.gate.set()
        await asyncio.gather(*tasks)

    seconds = pair._admission._token_seconds
    before = seconds._top
    asyncio.run(scene(0.4))
    # 0.4 s each, of which the second to end counts whole if it is noted after the first has left.
    assert 0.3 <= seconds._top - before < 0.75


def test_a_sentence_overtakes_items_and_items_do_not_starve(start_scheduler, held):
    scheduler = start_scheduler(max_waiting=1000, max_batch_tokens=8)

    async def scene():
        held.hold()
        first = await start(ask(scheduler, "first"))
        await asyncio.to_thread(held.wait_until_entered)
        items = await start(ask(scheduler, *["item"] * 40, urgent=False))
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 40)
        sentences = [await start(ask(scheduler, "boring")) for _ in range(100)]
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 140)
        held.gate.set()
        await asyncio.gather(first, items, *sentences)

    asyncio.run(scene())
    kinds = ["item" in text for text in held.seen[1:]]
    assert len(kinds) == 140
    assert not any(kinds[:9]), "urgent ones first"
    last = max(place for place, item in enumerate(kinds) if not item)
    assert 10 <= sum(kinds[:last]) <= 12, "a tenth is left to the others"


def test_background_work_keeps_no_urgent_request_out(start_scheduler, held):
    scheduler = start_scheduler(max_waiting=5, max_waiting_tokens=100, max_batch_tokens=8)

    async def scene():
        held.hold()
        tasks = [await start(ask(scheduler, "one"))]
        await asyncio.to_thread(held.wait_until_entered)
        tasks += [await start(ask(scheduler, *["two"] * 5, urgent=False)) for _ in range(3)]
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 15)
        with pytest.raises(OverloadedError):  # 120 tokens of its kind
            await ask(scheduler, "three", urgent=False)
        tasks += [await start(ask(scheduler, "four")) for _ in range(5)]
        with pytest.raises(OverloadedError):  # five requests of its kind
            await ask(scheduler, "five")
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 20)
        held.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scene())
    assert held.seen[1:6] == ["four"] * 5
    assert scheduler.waiting == scheduler.waiting_tokens == 0


def test_the_patient_leave_half_of_the_room(start_scheduler, held):
    scheduler = start_scheduler(max_waiting=4, max_batch_tokens=8)

    async def scene():
        held.hold()
        tasks = [await start(ask(scheduler, "one", urgent=False))]
        await asyncio.to_thread(held.wait_until_entered)
        queries, wish = [Query("two")], Wish()
        for _ in range(2):
            work = scheduler.ask(queries, wish, timeout=9, urgent=False, patient=True)
            tasks.append(await start(work))
        with pytest.raises(OverloadedError):
            await scheduler.ask(queries, wish, timeout=9, urgent=False, patient=True)
        tasks += [await start(ask(scheduler, "three", urgent=False)) for _ in range(2)]
        held.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scene())


def test_who_leaves_makes_room_at_once(start_scheduler, held):
    scheduler = start_scheduler(max_waiting_tokens=100)

    async def scene():
        held.hold()
        first = await start(ask(scheduler, "one"))
        await asyncio.to_thread(held.wait_until_entered)
        leaver = await start(ask(scheduler, *["two"] * 20, "three " * LONG_CHARS))
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) >= 20)
        assert scheduler.waiting_tokens >= 160
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert scheduler.waiting_tokens == 0
        last = await start(ask(scheduler, "four"))
        held.gate.set()
        await asyncio.gather(first, last)

    asyncio.run(scene())
    assert held.seen == ["one", "four"]
    assert scheduler.waiting_tokens == 0


def test_short_texts_do_not_stand_for_long_ones(start_scheduler):
    scheduler = start_scheduler(max_waiting=100)

    async def scene():
        for _ in range(1000):
            await ask(scheduler, "a")
        scheduler._admission.enter(ticket := Ticket(time.monotonic() + 9, True, [], 0), 10**6, 9)
        found = scheduler.waiting_tokens
        scheduler._admission.leave(ticket)
        return found

    assert asyncio.run(scene()) < 500_000


class Panic(BaseException):
    """Like a panic of the tokenizer, which is no Exception."""


@pytest.mark.parametrize("stage", ["encode", "run"])
def test_even_a_panic_is_the_error_of_its_text_alone(stage, start_scheduler, held, monkeypatch):
    scheduler = start_scheduler(max_waiting=100)

    def panic(_):
        raise Panic

    with monkeypatch.context() as patch:
        patch.setattr(held, stage, panic)
        (outcome,) = asyncio.run(ask(scheduler, "great", timeout=5))
    assert isinstance(outcome, RuntimeError)
    assert str(outcome) == "Panic"
    (outcome,) = asyncio.run(ask(scheduler, "great", timeout=5))
    assert isinstance(outcome, Reply)
    assert scheduler.waiting_tokens == 0
    assert scheduler._open == 0


def test_a_run_with_too_few_outputs_fails_and_hangs_nobody(start_scheduler, held, monkeypatch):
    scheduler = start_scheduler()
    monkeypatch.setattr(held, "run", lambda rows: [])
    outcomes = asyncio.run(ask(scheduler, "great", "fine", timeout=5))
    assert all(isinstance(outcome, RuntimeError) for outcome in outcomes)


def test_nothing_asked_is_nothing_answered(runner):
    assert asyncio.run(ask(runner)) == []


def no_flow() -> Flow[Reply]:
    yield []
    raise AssertionError


def test_a_fresh_text_of_the_background_waits_a_second_for_urgent_ones_at_most():
    lane = Lane()
    tickets = [Ticket(0, urgent, [], 0) for urgent in (False, True, True)]
    tasks = [Task(ticket, place, 1, no_flow()) for place, ticket in enumerate(tickets)]
    lane.put(tasks[0])
    lane.put(tasks[1])
    lane.put(tasks[2], computed=True)
    assert [lane.pop() for _ in range(4)] == [tasks[2], tasks[1], tasks[0], None]
    lane.put(tasks[0])
    time.sleep(1.1)
    lane.put(tasks[1])
    assert lane.pop() is tasks[0]


def test_a_long_text_holds_up_nobody_while_it_is_tokenised(start_scheduler, held):
    scheduler = start_scheduler(max_batch_tokens=4096)
    long = "great story " * (LONG_CHARS // 2)

    async def scene():
        book = await start(ask(scheduler, long))
        start_of = time.monotonic()
        (short,) = await ask(scheduler, "boring")
        assert isinstance(short, Reply)
        assert not book.done()
        spent = time.monotonic() - start_of
        (answer,) = await book
        assert answer.explanation.windows > 100
        return spent, time.monotonic() - start_of

    spent, whole = asyncio.run(scene())
    assert spent < whole / 2


def test_what_would_come_too_late_is_refused_at_once(start_scheduler, held):
    scheduler = start_scheduler(max_waiting=100)
    scheduler._admission.ran(1_000_000, 100_000)  # a tenth of a second for each token

    async def scene():
        held.hold()
        tasks = [await start(ask(scheduler, "one"))]
        await asyncio.to_thread(held.wait_until_entered)
        tasks += [await start(ask(scheduler, "two", urgent=False)) for _ in range(10)]
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 10)
        assert scheduler._admission.predicted_wait(urgent=False) == pytest.approx(8.0, rel=0.2)
        with pytest.raises(OverloadedError):
            await ask(scheduler, "three", timeout=2, urgent=False)
        tasks.append(await start(ask(scheduler, "four", timeout=2)))  # goes before them
        held.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scene())
    assert "three" not in held.seen
    assert "four" in held.seen


def test_tokens_are_bounded(start_scheduler, held):
    scheduler = start_scheduler(max_waiting=100, max_waiting_tokens=100)

    async def scene():
        held.hold()
        tasks = [await start(ask(scheduler, "one"))]
        await asyncio.to_thread(held.wait_until_entered)
        # A request on its own may be of any size, else it could never be answered.
        tasks.append(await start(ask(scheduler, *["two"] * 20)))
        await asyncio.to_thread(wait_for, lambda: len(scheduler._rows) == 20)
        with pytest.raises(OverloadedError):
            await ask(scheduler, "three")
        held.gate.set()
        await asyncio.gather(*tasks)
        await ask(scheduler, "four")

    asyncio.run(scene())


def test_storm_of_aborts_leaves_a_working_runner(runner, held):
    async def scene():
        for number in range(200):
            task = await start(ask(runner, f"abort {number}"))
            await asyncio.sleep(0.001 * (number % 3))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert isinstance((await ask(runner, "great"))[0], Reply)
        assert runner.waiting == 0

    asyncio.run(scene())


def test_closed_runner_finishes_and_refuses(runner, held):
    async def scene():
        held.hold()
        tasks = [await start(ask(runner, text)) for text in ("one", "two")]
        await asyncio.to_thread(held.wait_until_entered)
        runner.close()
        with pytest.raises(ClosedError):
            await ask(runner, "three")
        held.gate.set()
        assert all(isinstance(outcome, Reply) for (outcome,) in await asyncio.gather(*tasks))

    asyncio.run(scene())
    runner.stop(10)
    assert not runner.alive
