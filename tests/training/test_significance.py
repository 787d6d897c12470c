"""Is a difference between two systems more than chance?"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata, wilcoxon

from training.evaluation.significance import (
    RESAMPLES,
    Comparison,
    average_seeds,
    bootstrap_interval,
    compare_systems,
    holm,
    wilcoxon_p,
)

# Multiples of 1/64: sums and differences are exact.
EXACT = st.integers(-64, 64).map(lambda number: number / 64)


def named(values):
    return {f"d{place:03}": value for place, value in enumerate(values)}


# Wilcoxon


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # all signs alike: one case of 32 at each end
        ([-1, 2, 3, 4, 5], 4 / 32),  # the sum of minus ranks is 0 or 1: two cases
        ([-1, -2, -3, -4, -5], 2 / 32),
        ([0, -1, 2, 3], 2 * 2 / 8),  # ranks 2, 3, 4 remain; {3, 4} and {2, 3, 4} reach 7
        ([0.25], 1.0),
        ([0, 0, 0], 1.0),
        ([0], 1.0),
    ],
)
def test_wilcoxon_by_hand(differences, p):
    assert wilcoxon_p(np.array(differences, dtype=float)) == pytest.approx(p)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_wilcoxon_by_trying_all_signs(differences):
    ranks = rankdata(np.abs(differences)) * (np.array(differences) != 0)
    sums = [ranks @ np.array(signs) for signs in product((0, 1), repeat=len(ranks))]
    observed = ranks @ (np.array(differences) > 0)
    tails = np.mean(sums <= observed), np.mean(sums >= observed)
    found = wilcoxon_p(np.array(differences, dtype=float))
    assert found == pytest.approx(min(1.0, 2 * min(tails)))


@given(st.lists(EXACT, min_size=1, max_size=90).filter(any))
def test_wilcoxon_is_scipys_with_pratts_zeros(differences):
    expected = wilcoxon(differences, zero_method="pratt", alternative="two-sided").pvalue
    assert wilcoxon_p(np.array(differences)) == pytest.approx(expected)


def test_zeros_make_p_larger():
    """Wilcoxon's own treatment would forget the forty documents without a difference."""
    differences = np.linspace(-0.2, 1, 20)
    with_zeros = np.concatenate([differences, np.zeros(40)])
    assert wilcoxon_p(with_zeros) > wilcoxon_p(differences)


def test_rounding_errors_are_not_evidence():
    noise = np.array([0.1 + 0.2 - 0.3] * 20)
    assert noise.all()
    assert wilcoxon_p(noise) == 1.0
    signal = np.array([0.5, 0.25, -0.125])
    assert wilcoxon_p(np.concatenate([signal, noise])) == pytest.approx(
        wilcoxon_p(np.concatenate([signal, np.zeros(20)]))
    )


# Holm


def test_holm_by_hand():
    """.005 x 4, .01 x 3, .03 x 2, and .04 x 1, which is raised to its predecessor."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


@pytest.mark.parametrize(
    ("given_p", "expected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02] * 3, [0.06] * 3),
        ([0, 1], [0, 1]),
    ],
)
def test_holm_at_the_ends(given_p, expected):
    assert list(holm(named(given_p)).values()) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.02]), min_size=1, max_size=12))
def test_holm_as_a_formula(values):
    """The largest product, among what is not larger, of a p and the number of p at least as large.

    Equal p are corrected alike.
    """
    products = [(p, p * sum(other >= p for other in values)) for p in values]
    expected = [min(1.0, max(product for q, product in products if q <= p)) for p in values]
    assert list(holm(named(values)).values()) == pytest.approx(expected)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        holm({"a": 0.5, "b": p})


# Bootstrap


def test_the_interval_of_a_constant():
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25)


def test_the_interval_of_two_documents():
    """The mean is 0, 1/2 or 1 with chances 1/4, 1/2 and 1/4, so both tails of 2.5 % are ends."""
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_the_interval_of_many_documents_is_the_normal_one():
    differences = np.random.default_rng(1).exponential(size=400)
    low, high = bootstrap_interval(differences, seed=2)
    half = norm.ppf(0.975) * differences.std() / 20
    assert RESAMPLES == 2000
    assert low == pytest.approx(differences.mean() - half, abs=half / 8)
    assert high == pytest.approx(differences.mean() + half, abs=half / 8)


def test_the_interval_depends_on_the_seed_alone():
    differences = np.random.default_rng(1).normal(size=30)
    assert bootstrap_interval(differences, seed=4) == bootstrap_interval(differences, seed=4)
    assert bootstrap_interval(differences, seed=4) != bootstrap_interval(differences, seed=5)


# Two systems


def test_a_comparison_by_hand():
    """Averages over seeds .5, .75, .25 against .25, .25, .125: all three better, p = 2/8."""
    first = {1: {"a": 0.25, "b": 0.5, "c": 0.25}, 2: {"a": 0.75, "b": 1.0, "c": 0.25}}
    second = {7: {"c": 0.125, "b": 0.25, "a": 0.25}}
    found = compare_systems(first, second)
    assert found.n == 3
    assert found.difference == pytest.approx(0.875 / 3)
    assert found.p == pytest.approx(2 / 8)
    assert (found.low, found.high) == (0.125, 0.5)  # 1/27 of the resamples are one document


def test_a_system_and_itself():
    values = {seed: named([0.1 * seed, 0.2, 0.7]) for seed in (1, 2, 3)}
    assert compare_systems(values, values) == Comparison(0.0, 0.0, 0.0, 1.0, 3)


def test_seeds_are_averaged_before_documents_are_counted():
    """Three equal seeds add no evidence."""
    values, others = named(np.arange(10) / 16), named(np.arange(10)[::-1] / 16 - 0.25)
    once = compare_systems({0: values}, {0: others})
    thrice = compare_systems(dict.fromkeys((1, 2, 3), values), dict.fromkeys((1, 2, 3), others))
    assert once == thrice
    assert once.n == 10
    assert average_seeds({1: {"a": 0.0, "b": 1.0}, 2: {"b": 0.5, "a": 0.5}}) == {
        "a": 0.25,
        "b": 0.75,
    }


@given(st.lists(st.tuples(EXACT, EXACT), min_size=1, max_size=5), st.randoms())
def test_documents_pair_by_id_and_the_systems_are_alike(pairs, random):
    first, second = named(pair[0] for pair in pairs), named(pair[1] for pair in pairs)
    found = compare_systems({0: first}, {0: second})
    shuffled = list(second.items())
    random.shuffle(shuffled)
    assert compare_systems({0: first}, {0: dict(shuffled)}) == found
    turned = compare_systems({0: second}, {0: first})
    assert (turned.difference, turned.p, turned.n) == (-found.difference, found.p, found.n)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert found.low <= found.high


@pytest.mark.parametrize("other", [{"a": 1.0}, {"a": 1.0, "c": 1.0}, {"a": 1.0, "b": 1, "c": 1}])
def test_documents_that_differ(other):
    values = {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match=r"the systems differ in [12] documents"):
        compare_systems({0: values}, {0: other})
    with pytest.raises(ValueError, match="the seeds of a system differ in documents"):
        compare_systems({0: values, 1: other}, {0: values})


@pytest.mark.parametrize("values", [{}, {0: {}}])
def test_nothing_to_compare(values):
    with pytest.raises(ValueError, match="at least one seed and one document"):
        compare_systems(values, values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value):
    with pytest.raises(ValueError, match="not finite"):
        average_seeds({0: {"a": 0.5, "b": value}, 1: {"a": 0.5, "b": -value}})
