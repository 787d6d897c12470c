"""Shapley values by walks: exact sums, known contributions, no bias."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.attribution import permutation_shap
from training.attribution.permutation_shap import STEPS, count, draw, estimate, unit

TEXT = "A great film , but the ending was dull and the plot was great ."
LONG = "the ending was dull and i hated it , but the music was moving . " * 5


def explain(black_box, text, *, target=1, budget=200, seed=0):
    document = black_box.encoder.encode(text)
    [record] = permutation_shap.TEACHER.attribute(
        black_box, [document], np.array([target]), budget=budget, seed=seed
    )
    return record


def words(number):
    return " ".join(["film"] * number)


def sample(odds, n, copies, seeds):
    """Estimates of many seeds, [seeds, n]."""
    found = []
    for seed in range(seeds):
        masks = draw(n, copies, np.random.default_rng(seed))
        found.append(estimate(masks, odds(masks)))
    return np.array(found)


def check_mean(found, truth):
    """The mean over seeds lies within 4 standard errors of the truth, word by word."""
    error = 4 * found.std(axis=0, ddof=1) / math.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - truth) <= error + 1e-12).all()


# Known answers


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("text", [TEXT, "great", "dull great", "great dull quux"])
def test_contributions_to_a_sum_are_exact(text, target, linear_black_box, placed_black_box):
    """A single pair of walks finds a linear function."""
    sign = 1 if target == 1 else -1
    for black_box in (linear_black_box, placed_black_box):
        truth = sign * black_box.contributions(black_box.encoder.encode(text))
        for budget in (2 + unit(len(truth)), 100):
            record = explain(black_box, text, target=target, budget=budget)
            np.testing.assert_allclose(record.weights, truth, atol=1e-9)


def test_long_texts_have_a_sampling_error_that_falls_with_the_budget(placed_black_box):
    """75 words in 32 steps: a word shares a step with 1 or 2 others, drawn anew in each walk.

    Its share errs by the difference to the others' mean; with values of variance v and steps of
    about 75/32 words the variance of a walk is below v x 75/31, and walks in pairs are two looks
    at one drawing at worst.
    """
    truth = placed_black_box.contributions(placed_black_box.encoder.encode(LONG))
    for pairs in (4, 64):
        runs = [explain(placed_black_box, LONG, budget=2 + 62 * pairs, seed=s) for s in range(4)]
        error = np.mean([np.square(run.weights - truth).mean() for run in runs])
        assert error < truth.var() * 75 / 31 / pairs
        assert error > 1e-6  # it is a sample


def test_shapley_values_by_hand():
    """v = 1, 4, 2, 9 for {}, {0}, {1}, {0, 1}: (3 + 7) / 2 and (1 + 5) / 2."""
    masks = draw(2, 4, np.random.default_rng(0))
    value = {(True, True): 9.0, (False, False): 1, (True, False): 4, (False, True): 2}
    values = np.array([value[tuple(row)] for row in masks.tolist()])
    np.testing.assert_allclose(estimate(masks, values), [5, 3], atol=1e-12)


@pytest.mark.parametrize("n", [3, 6, 9])
def test_the_mean_over_seeds_is_the_shapley_value(n, curved_black_box):
    found = sample(curved_black_box.odds, n, 2 + unit(n), seeds=400)
    check_mean(found, curved_black_box.shapley(n))
    if n > 3:
        assert found.std(axis=0).max() > 0.05  # it could have been seen


@pytest.mark.parametrize("n", [STEPS, STEPS + 1, 45, 70, 130])
def test_steps_of_several_words_have_no_bias_where_words_interact_in_pairs(n, paired_black_box):
    found = sample(paired_black_box.odds, n, 2 + unit(n), seeds=200)
    truth = paired_black_box.shapley(n)
    error = found.std(axis=0, ddof=1) / math.sqrt(200)
    away = np.abs(found.mean(axis=0) - truth) / (error + 1e-12)
    assert np.sqrt(np.mean(away**2)) < 1.25  # 1 without bias
    assert away.max() < 4.5  # of so many words


def test_the_estimate_comes_nearer_as_the_budget_grows(curved_black_box):
    truth = curved_black_box.shapley(7)
    errors = [
        np.square(sample(curved_black_box.odds, 7, 2 + unit(7) * pairs, 12) - truth).mean()
        for pairs in (1, 16)
    ]
    assert 6 < errors[0] / errors[1] < 40  # as one over the budget


@given(st.integers(1, 90), st.integers(64, 200), st.integers(0, 9))
def test_weights_sum_to_the_gap(n, budget, seed):
    rng = np.random.default_rng(seed)
    masks = draw(n, count(n, budget), rng)
    values = rng.normal(size=len(masks)) * 10
    assert estimate(masks, values).sum() == pytest.approx(values[0] - values[1], abs=1e-9)


# What is drawn


@given(st.integers(1, 90), st.integers(64, 200), st.integers(64, 200), st.integers(0, 9))
def test_fewer_draws_are_the_first_of_more(n, one, other, seed):
    small, large = sorted((count(n, one), count(n, other)))
    first, more = (draw(n, copies, np.random.default_rng(seed)) for copies in (small, large))
    assert (more[:small] == first).all()


@given(st.integers(2, 90), st.integers(1, 3), st.integers(0, 9))
def test_walks_add_words_and_come_in_reversed_pairs(n, pairs, seed):
    """Each step adds some of the words that were missing; the second walk goes the other way."""
    masks = draw(n, 2 + unit(n) * pairs, np.random.default_rng(seed))
    assert masks[0].all()
    assert not masks[1].any()
    steps = min(n, STEPS)
    assert unit(n) == 2 * (steps - 1)
    for walk in masks[2:].reshape(pairs, 2, steps - 1, n):
        there, back = (np.vstack([masks[1], half, masks[0]]) for half in walk)
        for path in (there, back):
            assert (path[1:] >= path[:-1]).all()
            added = (path[1:] & ~path[:-1]).sum(axis=1)
            assert added.sum() == n
            assert set(added.tolist()) <= {n // steps, -(-n // steps)}
        assert (back == ~there[::-1]).all()


def test_every_order_is_as_likely():
    """Of three words: six orders, in 1,200 walks; 4 standard errors."""
    found: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        masks = draw(3, 6, np.random.default_rng(seed))
        key = tuple(masks[2:4].sum(axis=0).tolist())
        found[key] = found.get(key, 0) + 1
    assert len(found) == 6
    assert all(abs(number - 200) < 4 * math.sqrt(1200 * 5 / 36) for number in found.values())


@pytest.mark.parametrize(
    ("n", "budget", "copies"),
    [
        (0, 5, 2), (1, 0, 2), (2, 4, 4), (2, 5, 4), (2, 100, 100), (15, 30, 30), (15, 57, 30),
        (15, 58, 58), (32, 64, 64), (33, 64, 64), (5000, 125, 64), (5000, 126, 126),
    ],
)  # fmt: skip
def test_pairs_of_walks_that_fit_into_the_budget(n, budget, copies):
    assert count(n, budget) == copies


@pytest.mark.parametrize(("n", "budget", "least"), [(2, 3, 4), (15, 29, 30), (45, 63, 64)])
def test_a_budget_that_holds_no_walk_is_refused(n, budget, least, linear_black_box):
    message = (
        rf"^permutation_shap needs a budget of at least {least} for a text of {n} words, "
        rf"not {budget}; 64 is enough for any text$"
    )
    with pytest.raises(ValueError, match=message):
        explain(linear_black_box, words(n), budget=budget)
    assert linear_black_box.calls == []


def test_one_word_has_the_whole_gap(curved_black_box):
    record = explain(curved_black_box, "film", budget=1)
    assert (record.budget, curved_black_box.calls) == (2, [2])
    assert record.weights.tolist() == [record.value - record.null_value]
