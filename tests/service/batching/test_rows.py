"""The queue of rows: what makes the next batch."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rows import Row
from service.batching.rows import FLOOR, Entry, RowQueue


@dataclass
class Asker:
    wanted: bool = True


def entry(tokens=5, *, urgent=True, explain=True, owner=None):
    row = Row(np.ones(tokens, dtype=np.int64), explain=explain)
    return Entry(row, owner or Asker(), 0, urgent)


def queue_of(entries, max_tokens=64):
    queue: RowQueue[Asker] = RowQueue(max_tokens)
    for one in entries:
        queue.add([one])
    return queue


def test_the_oldest_row_says_which_bucket_comes_next():
    long, short, second = entry(30), entry(5), entry(31)
    queue = queue_of([long, short, second])
    assert queue.take() == ([long, second], [])
    assert queue.take() == ([short], [])
    assert queue.take() == ([], [])


def test_later_rows_of_an_owner_are_as_old_as_its_first():
    queue: RowQueue[Asker] = RowQueue(8)
    first = [entry(), entry(30)]
    place = queue.add(first)
    younger = [entry(), entry(30), entry(40)]
    for one in younger:
        queue.add([one])
    assert queue.take()[0] == [first[0]]
    again = [entry(), entry(60)]
    assert queue.add(again, place) == place
    assert {id(one) for one in queue} == {id(one) for one in (first[1], *younger, *again)}
    early = [queue.take()[0][0] for _ in range(3)]
    assert {id(one) for one in early} == {id(one) for one in (first[1], *again)}
    last = entry()
    queue.add([last])
    assert [queue.take()[0][0] for _ in range(4)] == [*younger, last]


def test_what_is_explained_and_what_is_not_never_share_a_batch():
    entries = [entry(), entry(explain=False), entry()]
    queue = queue_of(entries)
    assert queue.take()[0] == [entries[0], entries[2]]
    assert queue.take()[0] == [entries[1]]


class Leaving:
    """Is wanted when it is asked for the first time, and no more."""

    asked = 0

    @property
    def wanted(self) -> bool:
        self.asked += 1
        return self.asked == 1


def test_a_batch_may_be_empty_while_other_rows_wait():
    leaving, other = entry(owner=Leaving()), entry(30)
    queue = queue_of([leaving, other])
    assert queue.take() == ([], [leaving])
    assert queue.take() == ([other], [])


@pytest.mark.parametrize(("max_tokens", "sizes"), [(64, [8, 2]), (16, [2] * 5), (1, [1] * 10)])
def test_a_batch_has_so_many_padded_tokens_or_one_row(max_tokens, sizes):
    queue = queue_of([entry(3 + place % 5) for place in range(10)], max_tokens)
    assert [len(queue.take()[0]) for _ in sizes] == sizes
    assert len(queue) == 0


def test_unwanted_rows_are_given_back_and_take_no_place():
    gone = Asker(wanted=False)
    entries = [entry(owner=gone), entry(), entry(owner=gone), entry(40, owner=gone)]
    queue = queue_of(entries)
    batch, dropped = queue.take()
    assert batch == [entries[1]]
    assert {id(one) for one in dropped} == {id(entries[place]) for place in (0, 2, 3)}
    assert queue.take() == ([], [])


def test_background_rows_have_their_share_while_urgent_ones_wait():
    queue = queue_of([entry(urgent=False) for _ in range(100)], 8)
    served = []
    for _ in range(200):
        queue.add([entry()])
        (one,) = queue.take()[0]
        served.append(one.urgent)
    assert served[:8] == [True] * 8
    assert served.count(False) == pytest.approx(200 * FLOOR, abs=1)


def test_background_rows_earn_nothing_while_there_are_none():
    queue = queue_of([entry() for _ in range(500)], 8)
    for _ in range(400):
        queue.take()
    queue.add([entry(urgent=False)])
    assert queue.take()[0][0].urgent


@given(
    st.lists(st.tuples(st.integers(1, 600), st.booleans(), st.booleans(), st.booleans())),
    st.integers(1, 1000),
)
def test_each_row_comes_once_and_in_its_turn(drawn, max_tokens):
    entries = [
        entry(tokens, urgent=urgent, explain=explain, owner=Asker(wanted))
        for tokens, urgent, explain, wanted in drawn
    ]
    queue = queue_of(entries, max_tokens)
    assert len(queue) == len(entries)
    left, seen = list(entries), []
    while len(queue):
        assert queue.tokens == sum(one.row.bucket for one in left)
        assert queue.urgent_tokens == sum(one.row.bucket for one in left if one.urgent)
        batch, dropped = queue.take()
        assert all(one.owner.wanted for one in batch)
        assert not any(one.owner.wanted for one in dropped)
        if batch:
            kinds = {(one.urgent, one.row.explain, one.row.bucket) for one in batch}
            assert len(kinds) == 1
            assert len(batch) == 1 or len(batch) * batch[0].row.bucket <= max_tokens
            oldest = next(one for one in left if one.owner.wanted and one.urgent == batch[0].urgent)
            assert batch[0] is oldest
        left = [one for one in left if one not in [*batch, *dropped]]
        seen += [*batch, *dropped]
        assert len(queue) == len(left)
    assert len(seen) == len({id(one) for one in seen}) == len(entries)
