"""Kernel SHAP against brute force, against `shap`, and its draws against the kernel."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.attribution import kernel_shap
from training.attribution.kernel_shap import LISTED, coalition_weights, count, draw, estimate
from training.blackbox.protocol import log_odds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    import shap

TEXT = "A great film , but the ending was dull and the plot was great ."
LONG = "the ending was dull and i hated it , but the music was moving . " * 5
ALL = 10**6  # a budget that covers everything


def explain(black_box, text, *, target=1, budget=ALL, seed=0):
    document = black_box.encoder.encode(text)
    [record] = kernel_shap.TEACHER.attribute(
        black_box, [document], np.array([target]), budget=budget, seed=seed
    )
    return record


def words(number):
    return " ".join(["film"] * number)


def codes(masks):
    return {row.tobytes() for row in masks}


# Known answers


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("text", [TEXT, LONG, "great", "dull great", "great dull quux"])
def test_contributions_to_a_sum_are_exact(text, target, linear_black_box, placed_black_box):
    """Once there are as many coalitions as words, every regression finds a linear function."""
    sign = 1 if target == 1 else -1
    for black_box in (linear_black_box, placed_black_box):
        truth = sign * black_box.contributions(black_box.encoder.encode(text))
        for budget in (4 * len(truth), 6 * len(truth) + 1):
            record = explain(black_box, text, target=target, budget=budget)
            np.testing.assert_allclose(record.weights, truth, atol=1e-9)


@pytest.mark.parametrize("n", range(1, 11))
def test_all_coalitions_give_shapley_values(n, curved_black_box):
    record = explain(curved_black_box, words(n))
    truth = curved_black_box.shapley(n)
    assert record.budget == max(2, 2**n)
    np.testing.assert_allclose(record.weights, truth, atol=1e-6)
    if n > 2:  # words do interact: no single one's absence tells
        alone = [curved_black_box.odds(~np.eye(n, dtype=bool)[[word]])[0] for word in range(n)]
        assert np.abs(record.value - np.array(alone) - truth).max() > 0.1


def test_shapley_values_by_hand():
    """v = 1, 4, 2, 9 for {}, {0}, {1}, {0, 1}: (3 + 7) / 2 and (1 + 5) / 2."""
    masks = np.array([[1, 1], [0, 0], [1, 0], [0, 1]], dtype=bool)
    np.testing.assert_allclose(estimate(masks, np.array([9.0, 1, 4, 2])), [5, 3], atol=1e-12)


@pytest.mark.parametrize("n", [12, 20, 70])
def test_paired_draws_are_exact_where_words_interact_in_pairs(n, paired_black_box):
    """In v(S) - v(not S) such interactions are linear: nothing is left of the error."""
    truth = paired_black_box.shapley(n)
    for seed in range(3):
        record = explain(paired_black_box, words(n), budget=4 * n, seed=seed)
        np.testing.assert_allclose(record.weights, truth, atol=1e-9)


@pytest.mark.parametrize("n", [7, 8])
def test_estimates_of_curved_functions_come_nearer(n, curved_black_box):
    truth = curved_black_box.shapley(n)
    errors = []
    for budget in (30, 90, 2**n):
        runs = [explain(curved_black_box, words(n), budget=budget, seed=seed) for seed in range(8)]
        errors.append(np.mean([np.square(run.weights - truth).mean() for run in runs]))
    assert errors[0] > 3 * errors[1]
    assert errors[2] < 1e-18


@given(st.integers(1, 40), st.integers(4, 120), st.integers(0, 3))
def test_weights_sum_to_the_gap(n, budget, seed):
    """Also where there are fewer coalitions than words, whatever the values are."""
    rng = np.random.default_rng(seed)
    masks = draw(n, count(n, budget), rng)
    values = rng.normal(size=len(masks)) * 10
    weights = estimate(masks, values)
    assert weights.sum() == pytest.approx(values[0] - values[1], abs=1e-9)
    assert np.isfinite(weights).all()


def test_a_budget_below_the_words_keeps_what_is_known(linear_black_box):
    """Efficiency holds, and words that no coalition tells apart share alike."""
    record = explain(linear_black_box, LONG, budget=4)
    assert len(record.values) == 4
    assert record.weights.sum() == pytest.approx(record.value - record.null_value, abs=1e-9)
    masks = draw(75, 4, np.random.default_rng(0))
    weights = estimate(masks, np.array([5.0, 1, 3, 2]))
    for side in (masks[2], masks[3]):
        assert np.ptp(weights[side]) < 1e-12
    # v(S) = 3 and v(not S) = 2 over the null value of 1: S has 2 + 1/2, the rest 1 + 1/2.
    assert weights[masks[2]].sum() == pytest.approx(2.5)
    assert weights[masks[3]].sum() == pytest.approx(1.5)


# Against the package


@pytest.mark.parametrize("n", [2, 5, 9])
def test_with_all_coalitions_it_is_the_package(n, curved_black_box):
    explainer = shap.KernelExplainer(
        lambda rows: curved_black_box.odds(rows.astype(bool)), np.zeros((1, n))
    )
    expected = explainer.shap_values(np.ones(n), nsamples=2**n, l1_reg=False, silent=True)
    np.testing.assert_allclose(explain(curved_black_box, words(n)).weights, expected, atol=1e-8)


def solve_with_the_package(masks, values, weights):
    """`shap`'s own solver on coalitions and weights that it has not drawn itself."""
    n = masks.shape[1]
    explainer = shap.KernelExplainer(lambda rows: rows.sum(axis=1), np.zeros((1, n)))
    explainer.M, explainer.l1_reg = n, False
    explainer.maskMatrix = masks[2:].astype(np.float64)
    explainer.kernelWeights = weights
    explainer.ey = values[2:, None]
    explainer.fx, explainer.fnull = values[:1], values[1:2]
    found, _ = explainer.solve(1.0, 0)
    return found


@pytest.mark.parametrize(("n", "budget"), [(6, 40), (12, 100), (20, 200), (40, 300), (70, 260)])
def test_the_regression_is_that_of_the_package(n, budget, curved_black_box):
    masks = draw(n, budget, np.random.default_rng(n))
    values = curved_black_box.odds(masks)
    weights = coalition_weights(n, budget // 2 - 1)[masks[2:].sum(1) - 1]
    expected = solve_with_the_package(masks, values, weights)
    np.testing.assert_allclose(estimate(masks, values), expected, atol=1e-6)


@pytest.mark.parametrize("n", [2, 7, 13])
def test_the_weights_of_all_coalitions_are_the_kernel(n):
    """Up to a factor (n - 1) / (C(n, s) s (n - s)), Lundberg and Lee's theorem 2."""
    found = coalition_weights(n, 2 ** (n - 1) - 1)
    sizes = np.arange(1, n)
    kernel = [(n - 1) / (math.comb(n, s) * s * (n - s)) for s in range(1, n)]
    np.testing.assert_allclose(found / np.array(kernel), found[0] / kernel[0], rtol=1e-9)
    assert sum(math.comb(n, s) * found[s - 1] / 2 for s in sizes) == pytest.approx(1)


# What is drawn


@pytest.mark.parametrize(
    ("n", "budget", "copies"),
    [
        (0, 50, 2), (1, 50, 2), (2, 4, 4), (2, 50, 4), (3, 5, 4), (3, 7, 6), (3, 8, 8), (3, 99, 8),
        (10, 1024, 1024), (10, 1023, 1022), (10, 5000, 1024), (60, 200, 200), (61, 201, 200),
        (500, 4, 4),
    ],
)  # fmt: skip
def test_pairs_that_fit_into_the_budget(n, budget, copies):
    assert count(n, budget) == copies


@given(st.integers(2, 20), st.integers(4, 300), st.integers(0, 99))
def test_pairs_are_complements_and_none_comes_twice(n, budget, seed):
    masks = draw(n, count(n, budget), np.random.default_rng(seed))
    assert masks[0].all()
    assert not masks[1].any()
    assert (masks[2::2] == ~masks[3::2]).all()
    assert len(codes(masks)) == len(masks) == count(n, budget)
    assert ((masks[2:].sum(1) > 0) & (masks[2:].sum(1) < n)).all()


@given(st.integers(1, 20), st.integers(4, 200), st.integers(4, 200), st.integers(0, 99))
def test_fewer_draws_are_the_first_of_more(n, one, other, seed):
    small, large = sorted((count(n, one), count(n, other)))
    first, more = (draw(n, copies, np.random.default_rng(seed)) for copies in (small, large))
    assert (more[:small] == first).all()


def test_two_words_have_one_pair(linear_black_box):
    record = explain(linear_black_box, "great dull", budget=4)
    assert record.budget == 4
    np.testing.assert_allclose(record.weights, [1.5, -0.75], atol=1e-12)


def test_one_word_has_the_whole_gap(curved_black_box):
    record = explain(curved_black_box, "film", budget=4)
    assert (record.budget, curved_black_box.calls) == (2, [2])
    assert record.weights.tolist() == [record.value - record.null_value]


def test_a_budget_that_is_too_small_is_refused(linear_black_box):
    with pytest.raises(ValueError, match=r"^kernel_shap needs a budget of at least 4, not 3$"):
        explain(linear_black_box, TEXT, budget=3)


@pytest.mark.parametrize("n", [5, 10, LISTED + 1, 40])
def test_first_pairs_are_drawn_by_the_kernel(n):
    """Sizes, a pair's two together, and places, equally likely; 4 standard errors.

    Of the list only the first pair: those that follow are drawn from what is left.
    """
    draws = 1000
    rng = np.random.default_rng(0)
    first = np.array([draw(n, 4, rng)[2] for _ in range(draws)])
    sizes = np.arange(1, n)
    chance = 1 / (sizes * (n - sizes))
    chance = chance / chance.sum()
    together = [
        chance[s - 1] + (chance[n - s - 1] if 2 * s != n else 0) for s in range(1, n // 2 + 1)
    ]
    smaller = np.minimum(first.sum(1), n - first.sum(1))
    share = np.bincount(smaller, minlength=n // 2 + 1)[1:] / draws
    error = 4 * np.sqrt(np.array(together) / draws)
    assert (np.abs(share - together) < error).all()
    # A word is in the smaller part as often as the sizes say.
    minority = np.where((first.sum(1) <= n / 2)[:, None], first, ~first)
    clear = minority[minority.sum(1) < n / 2]
    rate = clear.mean()
    np.testing.assert_allclose(clear.mean(0), rate, atol=4 * math.sqrt(rate / len(clear)) + 1e-9)


@pytest.mark.parametrize(
    ("n", "pairs"), [(4, 3), (8, 20), (20, 100), (40, 700), (100, 99), (500, 3)]
)
def test_weights_are_the_kernel_over_the_chance_to_be_drawn(n, pairs):
    """p / (1 - (1 - p)^L), L such that so many different pairs are expected."""
    weights = coalition_weights(n, pairs)
    sizes = np.arange(1, n)
    log_count = np.array(
        [math.lgamma(n + 1) - math.lgamma(s + 1) - math.lgamma(n - s + 1) for s in sizes]
    )
    kernel = 1 / (sizes * (n - sizes))
    log_chance = np.log(2 * kernel / kernel.sum()) - log_count  # of a pair
    chance = np.exp(log_chance)
    drawn = chance / weights  # of a pair, in L draws
    assert (drawn <= 1 + 1e-9).all()
    expected = (np.exp(log_count) / 2 * drawn).sum()
    assert expected == pytest.approx(pairs, rel=1e-5)
    # The same L for every size: from 1 - (1 - p)^L.
    clear = (drawn < 0.999) & (chance > 1e-11)
    draws = np.log1p(-drawn[clear]) / np.log1p(-chance[clear])
    np.testing.assert_allclose(draws, draws[0], rtol=1e-3)


def test_the_expected_number_of_different_pairs_is_met_by_draws():
    """Draws with replacement, as the weights suppose: L of them give so many different pairs."""
    n, pairs = 8, 30
    weights = coalition_weights(n, pairs)
    kernel = 1 / (np.arange(1, n) * np.arange(n - 1, 0, -1))
    kernel = kernel / kernel.sum()
    chance = 2 * kernel[0] / n
    draws = math.log1p(-chance / weights[0]) / math.log1p(-chance)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        seen = set()
        for size in rng.choice(np.arange(1, n), size=round(draws), p=kernel):
            row = np.zeros(n, dtype=bool)
            row[rng.permutation(n)[:size]] = True
            seen.add(min(row.tobytes(), (~row).tobytes()))
        found.append(len(seen))
    assert np.mean(found) == pytest.approx(
        pairs, abs=4 * float(np.std(found)) / math.sqrt(300) + 0.5
    )


def test_the_value_explained_is_the_log_odds(curved_black_box):
    document = curved_black_box.encoder.encode(TEXT)
    record = explain(curved_black_box, TEXT, target=0, budget=50)
    full = log_odds(curved_black_box.logits([document]), 0)
    assert record.value == pytest.approx(full[0], abs=1e-12)
    assert len(record.values) == record.budget == 50
