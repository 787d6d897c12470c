"""The waiting line and its runner: bounds, deadlines, clients that leave, errors."""

import asyncio
import time

import pytest

from service.batching import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    Query,
    Reply,
    Runner,
    Wish,
)


@pytest.fixture
def runner(held):
    runner = Runner(held, max_waiting=2)
    yield runner
    held.gate.set()
    runner.stop(10)
    assert not runner.alive


def ask(runner, *texts, timeout=10.0, wish=None):
    return runner.ask([Query(text) for text in texts], wish or Wish(), timeout=timeout)


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
    assert held.seen == ["great", "poison", "fine", "great", "poison", "fine"]


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
        with pytest.raises(OverloadedError):
            await ask(runner, "four")
        assert 1 <= runner.retry_after <= 60
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


def test_client_that_leaves_while_computing_stops_after_the_chunk(runner, held):
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
    assert held.seen == [*texts[:32], "next"]


def test_large_texts_make_small_chunks(runner, held):
    texts = ["great " * 2000] * 4
    held.hold(at_call=2)

    async def scene():
        return await ask(runner, *texts, timeout=5)

    async def watch():
        work = await start(scene())
        await asyncio.to_thread(held.wait_until_entered)
        await asyncio.to_thread(held.wait_until_entered)
        assert len(held.seen) == 2
        held.gate.set()
        await work

    asyncio.run(watch())


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
