import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.config import Optimization, Student
from training.explainer.distill import (
    Lesson,
    collate,
    lesson_loss,
    make_batches,
    other_class,
)
from training.explainer.losses import labelling_loss, ranking_loss, regression_loss
from training.explainer.states import States

# Few values, so that ties are common.
WEIGHTS = st.sampled_from([-1.5, -0.5, 0.0, 0.25, 2.0])
SCORES = st.floats(-4, 4, width=32)


@st.composite
def batches(draw):
    """Texts as lists of words (score, weight, 5-way label, probabilities, valid)."""
    probability = st.lists(st.floats(0.02, 1), min_size=5, max_size=5)
    word = st.tuples(SCORES, WEIGHTS, st.integers(0, 4), probability, st.booleans())
    return draw(st.lists(st.lists(word, min_size=1, max_size=6), min_size=1, max_size=3))


def padded(texts, part, junk):
    """Column `part` of the words as a tensor, `junk` where a text has no more words."""
    longest = max(map(len, texts)) + 2
    rows = [[word[part] for word in text] + [junk] * (longest - len(text)) for text in texts]
    return torch.tensor(rows, dtype=torch.int64 if part == 2 else None)


def mean(values):
    return sum(values) / len(values) if values else 0.0


def slow_ranking(texts):
    """log(1 + exp(-(s_i - s_j))) over pairs with w_i > w_j."""
    means = []
    for text in texts:
        words = [word for word in text if word[4]]
        terms = [
            math.log(1 + math.exp(-(above[0] - below[0])))
            for above in words
            for below in words
            if above[1] > below[1]
        ]
        if terms:
            means.append(mean(terms))
    return mean(means)


def slow_regression(texts):
    """Huber: d^2 / 2 up to 1, then linear."""

    def huber(gap):
        return gap * gap / 2 if gap <= 1 else gap - 0.5

    return mean([mean([huber(abs(w[0] - w[1])) for w in text if w[4]]) for text in texts])


def slow_labelling(texts):
    return mean([mean([-math.log(w[3][w[2]]) for w in text if w[4]]) for text in texts])


@given(batches())
def test_ranking_equals_the_loop(texts):
    found = ranking_loss(padded(texts, 0, 1e4), padded(texts, 1, -1e4), padded(texts, 4, False))
    assert found.item() == pytest.approx(slow_ranking(texts), rel=1e-5, abs=1e-6)


@given(batches())
def test_regression_equals_the_loop(texts):
    found = regression_loss(padded(texts, 0, 1e4), padded(texts, 1, 0.0), padded(texts, 4, False))
    assert found.item() == pytest.approx(slow_regression(texts), rel=1e-5, abs=1e-6)


@given(batches())
def test_labelling_equals_the_loop(texts):
    found = labelling_loss(
        padded(texts, 3, [0.0] * 5), padded(texts, 2, 3), padded(texts, 4, False)
    )
    assert found.item() == pytest.approx(slow_labelling(texts), rel=1e-5, abs=1e-6)


def test_ranking_of_two_words_by_hand():
    weights, valid = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    equal = ranking_loss(torch.zeros(1, 2), weights, valid)
    right = ranking_loss(torch.tensor([[3.0, 1.0]]), weights, valid)
    wrong = ranking_loss(torch.tensor([[1.0, 3.0]]), weights, valid)
    assert equal.item() == pytest.approx(math.log(2))
    assert right.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    assert wrong.item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


def test_ranking_uses_signed_weights():
    """The word that opposes most belongs at the bottom, not beside the one that supports most."""
    weights = torch.tensor([[2.0, 0.0, -3.0]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    signed = ranking_loss(torch.tensor([[2.0, 1.0, 0.0]]), weights, valid)
    absolute = ranking_loss(torch.tensor([[1.0, 0.0, 2.0]]), weights, valid)
    assert signed < math.log(2) < absolute


def test_ties_push_no_word():
    scores = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    loss = ranking_loss(scores, torch.full((1, 3), 0.7), torch.ones(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_a_text_of_ties_does_not_dilute_the_others():
    scores, weights = torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [0.5, 0.5]])
    found = ranking_loss(scores, weights, torch.ones(2, 2, dtype=torch.bool))
    assert found.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [ranking_loss, regression_loss])
def test_padding_gets_no_gradient(loss):
    scores = torch.tensor([[0.5, -1.0, 80.0, -90.0]], requires_grad=True)
    weights = torch.tensor([[1.0, -0.2, 7.0, 7.5]])
    loss(scores, weights, torch.tensor([[True, True, False, False]])).backward()
    assert scores.grad is not None
    assert scores.grad[0, :2].all()
    assert not scores.grad[0, 2:].any()


def test_a_probability_of_zero_costs_a_finite_amount():
    probabilities = torch.tensor([[[1.0, 0.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    loss = labelling_loss(probabilities, torch.tensor([[4]]), torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert probabilities.grad is not None
    assert torch.isfinite(probabilities.grad).all()


@pytest.fixture
def lesson_batch(lively_black_box):
    """Two texts; `quux` has four pieces, the NUL none."""
    encode = lively_black_box.encoder.encode
    lessons = [
        Lesson(encode("great quux \x00 film"), 1, np.array([2.0, -1.0, 5.0, 0.5])),
        Lesson(encode("dull"), 0, np.array([3.0])),
    ]
    return lessons, collate(lively_black_box, lessons, scale=2.0)


def test_collate_pools_pieces_and_scales_weights(lesson_batch):
    lessons, batch = lesson_batch
    windows = [lesson.document.windows[0] for lesson in lessons]
    assert [windows[0].word_index.tolist().count(word) for word in range(4)] == [1, 4, 0, 1]
    places = torch.arange(batch.input_ids.shape[1], dtype=torch.float32)
    means = torch.einsum("bwt,t->bw", batch.pooling, places)
    assert means.tolist() == [[1.0, 3.5, 0.0, 6.0], [1.0, 0.0, 0.0, 0.0]]
    assert batch.weights.tolist() == [[1.0, -0.5, 2.5, 0.25], [1.5, 0, 0, 0]]
    assert batch.valid.tolist() == [[True, True, False, True], [True, False, False, False]]
    # Means of 2, 5 and 0.5, and of -1 alone: only the 5 is above its mean.
    assert batch.labels.tolist() == [[3, 1, 4, 3], [3, 0, 0, 0]]
    assert batch.target.tolist() == [1, 0]
    assert batch.attention_mask.sum(1).tolist() == [8, 3]


@pytest.mark.parametrize(
    "shares", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.5, 0.25)]
)
def test_the_loss_of_a_batch_is_the_sum_over_words(
    shares, lesson_batch, lively_black_box, make_network
):
    """Worked out in loops from piece scores: a word is the mean of its pieces."""
    lessons, batch = lesson_batch
    network = make_network(lively_black_box, "all", "regression")
    settings = Student(regression=shares[0], ranking=shares[1], labelling=shares[2])
    with torch.no_grad():
        states = States(lively_black_box, network.config).read(
            batch.input_ids, batch.attention_mask
        )
        pieces = network(states, batch.attention_mask, batch.target)
        found = lesson_loss(network, states, batch, settings).item()
    texts: tuple[list, list] = ([], [])
    for row, lesson in enumerate(lessons):
        index = lesson.document.windows[0].word_index
        words: tuple[list, list] = ([], [])
        for word in range(len(lesson.weights)):
            at = np.flatnonzero(index == word)
            if len(at) == 0:
                continue
            weight = lesson.weights[word] / 2.0
            values = pieces.weights[row, at].mean().item() / network.config.scale
            ranking = pieces.ranking[row, at].mean().item()
            chances = pieces.label_logits[row, at].softmax(-1).mean(0).tolist()
            label = batch.labels[row, word].item()
            words[0].append((values, weight, label, chances, True))
            words[1].append((ranking, weight, label, chances, True))
        for kind in (0, 1):
            texts[kind].append(words[kind])
    expected = (
        shares[0] * slow_regression(texts[0])
        + shares[1] * slow_ranking(texts[1])
        + shares[2] * slow_labelling(texts[0])
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_other_of_two_classes_is_the_mirror_image(lesson_batch, lively_black_box):
    lessons, batch = lesson_batch
    others = collate(lively_black_box, [other_class(lesson) for lesson in lessons], scale=2.0)
    assert torch.equal(others.weights, -batch.weights)
    assert torch.equal(others.target, 1 - batch.target)
    assert torch.equal(others.labels[batch.valid], 4 - batch.labels[batch.valid])
    assert torch.equal(others.pooling, batch.pooling)


def test_an_epoch_holds_every_lesson_once_for_one_of_its_classes(lively_black_box):
    """Which lessons are turned changes from epoch to epoch, a quarter on average."""
    lessons = [
        Lesson(lively_black_box.encoder.encode("great film"), 1, np.array([number + 1.0, 0.0]))
        for number in range(200)
    ]
    turned = []
    for epoch in range(2):
        settings = Optimization(batch_rows=32)
        batches = make_batches(lively_black_box, lessons, settings, 2.0, (0, epoch))
        weights = torch.cat([batch.weights[:, 0] for batch in batches]) * 2
        targets = torch.cat([batch.target for batch in batches])
        assert sorted(weights.abs().tolist()) == [number + 1.0 for number in range(200)]
        assert torch.equal(weights > 0, targets == 1)
        turned.append(set(weights[targets == 0].tolist()))
        # 4 standard errors of a share of 200.
        assert abs(len(turned[-1]) / 200 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 200)
    assert turned[0] != turned[1]
