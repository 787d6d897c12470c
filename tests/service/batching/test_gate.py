"""The gate in front of the only core: what comes meanwhile waits, and nothing is lost."""

import asyncio
from contextvars import ContextVar

from service.batching.gate import Gate

WHO: ContextVar[str] = ContextVar("who", default="nobody")


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_open_gate_lets_all_pass_at_once():
    made: list[int] = []
    Gate().pass_on(made.append, 1)
    assert made == [1]


def test_a_shut_gate_keeps_what_comes_until_it_opens():
    async def scene():
        gate, made = Gate(), list[int]()
        gate.shut()
        gate.pass_on(made.append, 1)
        gate.pass_on(made.append, 2)
        await turns()
        assert made == []
        assert gate.keeps == 2
        await asyncio.to_thread(gate.open)
        gate.pass_on(made.append, 3)  # not before those
        await turns()
        assert made == [1, 2, 3]
        gate.pass_on(made.append, 4)
        assert made == [1, 2, 3, 4]

    asyncio.run(scene())


def test_how_many_wait_is_bounded():
    async def scene():
        gate, made = Gate(), list[int]()
        gate.shut()
        for number in range(100):
            gate.pass_on(made.append, number)
        await turns()
        assert made == [*range(64)]
        gate.open()
        await turns()
        assert made == [*range(100)]

    asyncio.run(scene())


def test_nothing_waits_longer_than_a_tenth_of_a_second():
    """A run that hangs must not keep the server from saying so."""

    async def scene():
        gate, made = Gate(), list[float]()
        loop = asyncio.get_running_loop()
        gate.shut()
        for pause in (0.05, 0.2):
            begun = loop.time()
            gate.pass_on(lambda: made.append(loop.time()))
            await asyncio.sleep(pause)
            gate.pass_on(lambda: made.append(loop.time()))
            await asyncio.sleep(0.3)
            assert 0.09 < made[0] - begun < 0.25
            assert len(made) == 2
            made.clear()

    asyncio.run(scene())


def test_it_stays_open_at_the_end():
    async def scene():
        gate, made = Gate(), list[int]()
        gate.shut()
        gate.pass_on(made.append, 1)
        gate.stay_open()
        gate.shut()
        await turns()
        gate.pass_on(made.append, 2)
        assert made == [1, 2]

    asyncio.run(scene())


def test_a_gate_whose_loop_has_ended_opens():
    async def scene():
        gate.shut()
        gate.pass_on(made.append, 1)

    gate, made = Gate(), list[int]()
    asyncio.run(scene())
    gate.open()
    assert made == []


class OpenedMeanwhile(Gate):
    """Is opened by another thread when it has been found shut and nothing is kept yet."""

    @property
    def is_shut(self) -> bool:
        self._shut = False
        return super().is_shut


def test_what_comes_while_it_opens_is_not_left_behind():
    async def scene():
        gate, made = OpenedMeanwhile(), list[int]()
        gate.shut()
        gate.pass_on(made.append, 1)
        await turns()
        assert made == [1]

    asyncio.run(scene())


def test_one_that_fails_takes_no_other_with_it():
    async def scene():
        gate, made, failed = Gate(), list[int](), list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda _, told: failed.append(told))
        gate.shut()
        gate.pass_on(made.append, 1)
        gate.pass_on([].pop)
        gate.pass_on(made.append, 2)
        gate.open()
        await turns()
        assert made == [1, 2]
        assert len(failed) == 1

    asyncio.run(scene())


def test_each_is_made_in_the_context_it_came_in():
    async def scene():
        gate, made = Gate(), list[str]()
        gate.shut()
        for who in ("one", "two"):
            token = WHO.set(who)
            gate.pass_on(lambda: made.append(WHO.get()))
            WHO.reset(token)
        gate.open()
        await turns()
        assert made == ["one", "two"]

    asyncio.run(scene())
