"""The gate in front of the only core: what comes meanwhile waits, and nothing is lost."""

import asyncio
import threading
import time

from service.gate import Gate


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
        await asyncio.sleep(0.01)
        assert made == []
        await asyncio.to_thread(gate.open)
        await asyncio.sleep(0)
        assert made == [1, 2]
        gate.pass_on(made.append, 3)
        assert made == [1, 2, 3]

    asyncio.run(scene())


def test_what_waits_is_bounded():
    async def scene():
        gate, made = Gate(), list[int]()
        gate.shut()
        for number in range(100):
            gate.pass_on(made.append, number)
        assert made == [*range(64)]
        gate.open()
        await asyncio.sleep(0)
        assert made == [*range(100)]

    asyncio.run(scene())


def test_a_gate_whose_loop_has_ended_opens():
    async def scene():
        gate.shut()
        gate.pass_on(list.append, [], 1)

    gate = Gate()
    asyncio.run(scene())
    gate.open()


def test_nothing_is_lost_however_often_it_opens():
    async def scene():
        gate, made, over = Gate(), list[int](), threading.Event()

        def turns():
            while not over.is_set():
                gate.shut()
                time.sleep(0)
                gate.open()

        thread = threading.Thread(target=turns)
        thread.start()
        for number in range(20_000):
            gate.pass_on(made.append, number)
            if number % 100 == 0:
                await asyncio.sleep(0)
        over.set()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
        assert sorted(made) == [*range(20_000)]

    asyncio.run(scene())
