"""Calls that are put off: none is lost, none is made twice."""

import threading

import pytest

from service.deferred import Deferred


def test_calls_wait_and_are_made_in_their_order():
    made: list[int] = []
    calls = Deferred(most=3)
    calls.add(made.append, 1)
    calls.add(made.extend, [2, 3])
    assert made == []
    calls.make()
    assert made == [1, 2, 3]
    calls.make()
    assert made == [1, 2, 3]


def test_who_adds_the_last_of_so_many_makes_all():
    made: list[int] = []
    calls = Deferred(most=3)
    for number in range(7):
        calls.add(made.append, number)
    assert made == [0, 1, 2, 3, 4, 5]


def test_a_call_that_fails_takes_no_other_with_it():
    made: list[int] = []
    calls = Deferred(most=10)
    calls.add(made.append, 1)
    calls.add([].pop)
    calls.add(made.append, 2)
    with pytest.raises(IndexError, match="empty list"):
        calls.make()
    assert made == [1]
    calls.make()
    assert made == [1, 2]


def test_threads_make_each_call_once():
    made: list[tuple[int, int]] = []
    calls = Deferred(most=5)

    def work(thread: int) -> None:
        for number in range(5_000):
            calls.add(made.append, (thread, number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls.make()
    assert sorted(made) == [(thread, number) for thread in range(4) for number in range(5_000)]
