"""Copies of training texts with a rationale, what they ask for, and the neutral measure."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.blackbox.copies import (
    LabelledDocument,
    draw_copy,
    mark,
    mark_at_random,
    random_spans,
    stretch,
)
from training.blackbox.fit import encode_examples, make_batches, validation_scores
from training.config import NEUTRAL, Copies, Optimization
from training.data import Example
from training.evaluation.neutral import measure_neutral

TEXT = "the film was great and very moving but the music was dull , i think"
GREAT, MOVING, DULL = 3, 6, 11
ALL_KINDS = Copies(without_rationale=0.25, random_spans=0.25, only_rationale=0.25, graded=0.25)


@pytest.fixture
def part(encoder):
    """Two marked spans: `great`, and `very moving`."""
    return LabelledDocument(encoder.encode(TEXT), 1, ((3, 4), (5, 7)))


@pytest.fixture
def draw(part):
    def make(copies, *, count=1, classes=2, of=part, window=0):
        rng = np.random.default_rng(0)
        return [
            draw_copy(of, of.document.windows[window], copies, classes, rng) for _ in range(count)
        ]

    return make


def words(part, copy):
    return [word.text for word, kept in zip(part.document.words, copy.keep, strict=True) if kept]


def test_without_the_rationale_nothing_is_left_to_say(part, draw):
    [copy] = draw(Copies(without_rationale=1))
    assert " ".join(words(part, copy)) == "the film was and but the music was dull , i think"
    assert copy.target.tolist() == [0.5, 0.5]
    [copy] = draw(Copies(without_rationale=1, neutral=True), classes=3)
    assert copy.target.tolist() == [0, 0, 1]


def test_only_the_rationale_is_enough(part, draw):
    [copy] = draw(Copies(only_rationale=1))
    assert words(part, copy) == ["great", "very", "moving"]
    assert copy.target.tolist() == [0, 1]


def test_without_as_much_text_elsewhere_the_label_stays(part, draw):
    places = set()
    for copy in draw(Copies(random_spans=1), count=50):
        assert {"great", "very", "moving"} <= set(words(part, copy))
        lengths = sorted(np.diff(np.flatnonzero(np.diff(copy.keep, prepend=1, append=1)))[::2])
        assert lengths in ([1, 2], [3])  # two spans, or two that touch
        assert copy.target.tolist() == [0, 1]
        places.add(copy.keep.tobytes())
    assert len(places) > 10


def test_graded_targets_follow_the_share_of_the_rationale(part, draw):
    shares = set()
    gold = mark(part.rationale, len(part.document.words))
    for copy in draw(Copies(graded=1), count=60):
        share = copy.keep[gold].mean()
        assert copy.target == pytest.approx([(1 - share) / 2, (1 + share) / 2])
        shares.add(round(share, 2))
    assert shares == {0, 0.33, 0.67, 1}
    [copy, *_] = draw(Copies(graded=1, neutral=True), classes=3)
    assert copy.target[0] == 0
    assert copy.target.sum() == 1


def test_each_kind_has_its_share(draw):
    found = draw(Copies(without_rationale=0.5, only_rationale=0.2), count=4000)
    kinds = ["none" if copy is None else str(copy.target.tolist()) for copy in found]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert shares == pytest.approx({"[0.5, 0.5]": 0.5, "[0.0, 1.0]": 0.2, "none": 0.3}, abs=0.03)


def test_a_text_or_window_without_rationale_is_like_any_other(encoder, draw):
    document = encoder.encode(" ".join([TEXT] * 4))
    assert len(document.windows) > 2
    nothing = LabelledDocument(document, 1)
    assert draw(Copies(only_rationale=1), of=nothing) == [None]
    early = LabelledDocument(document, 1, ((0, 2),))
    assert draw(Copies(only_rationale=1), of=early, window=len(document.windows) - 1) == [None]
    [copy] = draw(Copies(only_rationale=1), of=early)
    assert np.flatnonzero(copy.keep).tolist() == [0, 1]


def test_masks_lie_where_no_rationale_is_too(encoder, draw):
    document = encoder.encode(" ".join([TEXT] * 4))
    early = LabelledDocument(document, 1, ((0, 2), (3, 4)))
    last = len(document.windows) - 1
    inside = mark([stretch(document.windows[last])], len(document.words))
    lengths = set()
    for copy in draw(Copies(random_spans=1), count=60, of=early, window=last):
        masked = ~copy.keep
        assert masked.any()
        assert not (masked & ~inside).any()
        assert copy.target.tolist() == [0, 1]
        lengths.add(int(masked.sum()))
    assert lengths == {1, 2, 3}  # either span, or both
    kinds = draw(Copies(random_spans=0.5, without_rationale=0.5), count=400, of=early, window=last)
    assert np.mean([copy is None for copy in kinds]) == pytest.approx(0.5, abs=0.07)
    nothing = LabelledDocument(document, 1)
    assert draw(Copies(random_spans=1), of=nothing, window=last) == [None]


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_random_spans_lie_in_free_places_and_apart(free, lengths, seed):
    free = np.array(free)
    placed = random_spans([(0, n) for n in lengths], free, np.random.default_rng(seed))
    marked = mark(placed, len(free))
    assert free[marked].all()
    assert marked.sum() == sum(end - first for first, end in placed)
    ordered = sorted(lengths, reverse=True)
    assert all(end - first <= n for (first, end), n in zip(placed, ordered, strict=False))
    if len(placed) < len(lengths):
        assert not (free & ~marked).any()


def test_the_control_marks_as_much_text_anywhere(part, encoder):
    bare = LabelledDocument(encoder.encode("the film"), 0)
    lengths = sorted(end - first for first, end in part.rationale)
    found = [mark_at_random([part, bare], np.random.default_rng(seed)) for seed in range(30)]
    assert all(other == bare for _, other in found)
    assert all(one.document is part.document and one.label == part.label for one, _ in found)
    [first, again, _] = mark_at_random([part, part, bare], np.random.default_rng(0))
    assert first.rationale == again.rationale != part.rationale
    spans = [one.rationale or () for one, _ in found]
    assert all(sorted(end - first for first, end in each) == lengths for each in spans)
    reached = {first for each in spans for first, _ in each}
    assert len(reached) > len(part.document.words) / 2


def test_batches_carry_targets_only_where_copies_are_drawn(black_box):
    examples = [
        Example(str(row), TEXT, ("NEG", "POS")[row % 2], ((13, 18),) if row < 8 else None)
        for row in range(12)
    ]
    documents = encode_examples(black_box, examples)
    assert documents[0].rationale == ((GREAT, GREAT + 1),)
    assert documents[9].rationale is None
    settings = Optimization(batch_rows=4)
    plain = make_batches(black_box, documents, settings, 0.5, 1, 0)
    assert all(batch.targets.dtype == torch.int64 for batch in plain)
    drawn = make_batches(black_box, documents, settings, 0.5, 1, 0, ALL_KINDS)
    targets = torch.cat([batch.targets for batch in drawn])
    assert targets.dtype == torch.float32
    assert targets.shape == (12, 2)
    assert torch.allclose(targets.sum(1), torch.ones(12))
    again = make_batches(black_box, documents, settings, 0.5, 1, 0, ALL_KINDS)
    for mine, theirs in zip(drawn, again, strict=True):
        assert torch.equal(mine.input_ids, theirs.input_ids)
        assert torch.equal(mine.targets, theirs.targets)


class Judge:
    """Answers by the words it sees: POS for great, NEG for dull, neutral for neither."""

    labels: tuple[str, ...] = ("NEG", "POS", NEUTRAL)
    eps: float | None = None

    def __init__(self, encoder):
        self.encoder = encoder

    def logits(self, documents, keep=None):
        rows = []
        for row, document in enumerate(documents):
            seen = np.ones(len(document.words), bool) if keep is None else keep[row]
            texts = [word.text for word, kept in zip(document.words, seen, strict=True) if kept]
            good, bad = texts.count("great"), texts.count("dull")
            rows.append([2.0 * bad, 2.0 * good, 1.0])
        return np.array(rows)


def test_the_neutral_measure_counts_texts_that_were_right(encoder):
    def labelled(text, label, *spans):
        return LabelledDocument(encoder.encode(text), label, spans or None)

    parts = [
        labelled("a great film for all of us", 1, (1, 2)),  # neutral without its word
        labelled("great and great again", 1, (0, 1)),  # not
        labelled("a dull film", 1, (1, 2)),  # wrong: does not count
        labelled("a great film", 1),  # no rationale: does not count
        labelled("dull", 0, (0, 1)),  # no room for another span
    ]
    found = measure_neutral(Judge(encoder), parts, seed=0)
    assert found["texts"] == 3
    assert found["without_rationale"] == pytest.approx(2 / 3)
    assert found["random_spans"] == 0
    assert found["masked_ratio"] == pytest.approx(3 / 4)
    assert measure_neutral(Judge(encoder), parts[3:4], seed=0)["without_rationale"] is None


def test_an_epoch_is_judged_by_all_that_it_was_to_teach(encoder):
    """Right, right and wrong; of the two that were right one turns neutral, none by chance."""
    parts = [
        LabelledDocument(encoder.encode("a great film for all of us"), 1, ((1, 2),)),
        LabelledDocument(encoder.encode("great and great again"), 1, ((0, 1),)),
        LabelledDocument(encoder.encode("a dull film"), 1, ((1, 2),)),
    ]
    judge: Any = Judge(encoder)
    found = validation_scores(judge, {"one": parts, "two": parts[2:]}, True, False, 0)
    assert found["one"] == pytest.approx(2 / 3)
    assert found["two"] == 0
    assert found["without_rationale"] == 0.5  # of set two nothing counts
    assert found["random_spans"] == 0
    assert found["score"] == pytest.approx((1 / 3 + 0.5 + 1) / 3)
    assert validation_scores(judge, {"one": parts}, False, False, 0)["score"] == found["one"]


def test_a_recipe_names_the_classes(recipe):
    assert recipe.classes == ("NEG", "POS")
    copies = Copies(neutral=True)
    changed = dataclasses.replace(
        recipe, blackbox=dataclasses.replace(recipe.blackbox, copies=copies)
    )
    assert changed.classes == ("NEG", "POS", NEUTRAL)
