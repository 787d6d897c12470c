"""How well a teacher agrees with itself."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.attribution import kernel_shap, lime, occlusion, permutation_shap
from training.attribution.reliability import rank_correlation, split_half, two_runs
from training.attribution.teachers import teacher_named

TEXT = "A great film , but the ending was dull and the plot was great ."
TEXTS = [
    TEXT, "the music was moving but the script is weak and slow", "i loved this clever warm story",
    "boring , too slow and never funny", "a wonderful camera and terrible actor in a fine scene",
]  # fmt: skip


class Halves:
    """Stands for a teacher of which only the halves are asked."""

    def __init__(self, *pairs):
        self.pairs = iter(pairs)

    def halves(self, document, record):
        found = next(self.pairs)
        return None if found is None else tuple(np.array(half, dtype=float) for half in found)


def explain(black_box, texts, teacher, *, budget, seed=0):
    documents = [black_box.encoder.encode(text) for text in texts]
    records = teacher.attribute(
        black_box, documents, np.ones(len(texts), dtype=np.int64), budget=budget, seed=seed
    )
    return documents, records


def agree(black_box, texts, teacher, **settings):
    documents, records = explain(black_box, texts, teacher, **settings)
    return split_half(teacher, documents, records)


def compare(*pairs):
    nothing: Any = [None] * len(pairs)
    teacher: Any = Halves(*pairs)
    return split_half(teacher, nothing, nothing)


def test_by_hand_on_known_halves():
    """Rank correlations of 1 and 0.5 have the mean 0.75; for the whole 1.5 / 1.75."""
    found = compare(([1, 2, 3], [5, 6, 70]), ([1, 2, 3], [1, 3, 2]))
    assert found.reliability == pytest.approx(1.5 / 1.75)
    assert (found.texts, found.undefined) == (2, 0)


def test_texts_where_it_is_undefined_are_counted_and_left_out():
    """One word; a half that is constant; both."""
    found = compare(([1, 2, 3], [1, 3, 2]), ([1], [2]), ([1, 2], [4, 4]), ([0, 0], [0, 0]))
    assert found.reliability == pytest.approx(2 * 0.5 / 1.5)
    assert (found.texts, found.undefined) == (4, 3)


def test_where_nothing_is_defined_it_is_not_a_number():
    found = compare(([1], [2]))
    assert math.isnan(found.reliability)
    assert (found.texts, found.undefined) == (1, 1)


@pytest.mark.parametrize(("second", "mean"), [([3, 2, 1], -1.0), ([2, 3, 1], -0.5)])
def test_halves_that_contradict_each_other(second, mean):
    """The formula has a pole at -1; a sample too small to agree stays within [-1, 0]."""
    found = compare(([1, 2, 3], second))
    assert found.reliability == pytest.approx(2 * mean / (1 + abs(mean)))


def test_two_runs_count_as_they_are(linear_black_box):
    _, [record, other] = explain(linear_black_box, TEXTS[:2], occlusion.TEACHER, budget=0)
    turned = replace(record, weights=np.where(record.weights > 1, -9.0, record.weights))
    expected = rank_correlation(record.weights, turned.weights)
    found = two_runs([record, other], [turned, other])
    assert found.reliability == pytest.approx((expected + 1) / 2)
    assert two_runs([record], [record]).reliability == pytest.approx(1)
    flat = replace(record, weights=np.zeros(15))
    assert two_runs([record, record], [flat, record]).undefined == 1


@pytest.mark.parametrize("name", ["occlusion", "ensemble:occlusion+gradient"])
def test_what_samples_nothing_agrees_with_itself(name, lively_black_box):
    found = agree(lively_black_box, TEXTS, teacher_named(name), budget=0)
    assert found.reliability == 1.0
    assert (found.texts, found.undefined) == (5, 0)


@pytest.mark.parametrize("teacher", [lime.TEACHER, kernel_shap.TEACHER, permutation_shap.TEACHER])
def test_near_one_on_a_sum_at_a_large_budget(teacher, placed_black_box):
    """Equal contributions stand in any order, so of this black box each is its own."""
    placed_black_box.value_of = lambda place, _: (-1) ** place * (1 + place)
    assert agree(placed_black_box, [TEXT], teacher, budget=4000).reliability > 0.99


def test_low_for_lime_at_a_tiny_budget(placed_black_box):
    placed_black_box.value_of = lambda place, _: (-1) ** place * (1 + place)
    texts = [f"{text} and {other}" for text in TEXTS for other in TEXTS]
    tiny, large = (
        agree(placed_black_box, texts, lime.TEACHER, budget=budget).reliability
        for budget in (8, 1000)
    )
    assert tiny < 0.6
    assert large > 0.9


@pytest.mark.parametrize(
    ("teacher", "budget"),
    [(kernel_shap.TEACHER, 5), (permutation_shap.TEACHER, 57), (lime.TEACHER, 3)],
)
def test_a_budget_that_does_not_fill_two_halves(teacher, budget, linear_black_box):
    found = agree(linear_black_box, [TEXT], teacher, budget=budget)
    assert math.isnan(found.reliability)
    assert found.undefined == 1


def test_the_halves_are_what_the_teacher_makes_of_half_the_samples(curved_black_box):
    """Every other pair, both with the full and the null text; of 15 words with 11 pairs."""
    [document], [record] = explain(curved_black_box, [TEXT], kernel_shap.TEACHER, budget=24)
    halves = kernel_shap.TEACHER.halves(document, record)
    assert halves is not None
    for half, expected in zip(halves, of_half_the_pairs(document, record), strict=True):
        np.testing.assert_allclose(half, expected, atol=1e-12)


def of_half_the_pairs(document, record):
    masks = kernel_shap.TEACHER.copies(document, record)
    pairs = np.arange(2, len(masks)).reshape(-1, 2)
    for chosen in (pairs[::2], pairs[1::2]):
        rows = [0, 1, *chosen.ravel()]
        yield kernel_shap.estimate(masks[rows], record.values[rows])


@pytest.mark.parametrize(
    ("words", "off"),
    [(12, 0.0), (38, 0.05), (46, 0.3), (62, 0.05)],  # of 91 pairs; half of them are 45
)
def test_half_of_the_budget_may_be_as_many_pairs_as_words(words, off, curved_black_box):
    """Then regressions on halves are lost while that on all is good; two runs tell.

    `off` is by how much halves of the pairs fall short at least.
    """
    texts = [" ".join([word] * words) for word in ("film", "plot", "story", "actor", "scene")]
    teacher = kernel_shap.TEACHER
    found, halved, apart = [], [], []
    for seed in (0, 2):
        documents, records = explain(curved_black_box, texts, teacher, budget=184, seed=seed)
        _, others = explain(curved_black_box, texts, teacher, budget=184, seed=seed + 1)
        found.append(split_half(teacher, documents, records).reliability)
        apart.append(two_runs(records, others).reliability)
        pairs = zip(documents, records, strict=True)
        halved.append(compare(*(tuple(of_half_the_pairs(*pair)) for pair in pairs)).reliability)
    assert np.mean(found) == pytest.approx(np.mean(apart), abs=0.05)
    assert np.mean(halved) < np.mean(apart) - off


@pytest.mark.parametrize("budget", [26, 32, 38])
def test_about_as_many_pairs_as_words_do_not_tell(budget, curved_black_box):
    """12, 15 and 18 pairs for 14 unknowns: neither halves nor residuals are to be trusted."""
    found = agree(curved_black_box, [TEXT], kernel_shap.TEACHER, budget=budget)
    assert math.isnan(found.reliability)
    assert (found.texts, found.undefined) == (1, 1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_decides_no_rank(scale):
    """Not even across a chain or where a grid would part two numbers."""
    exact = np.array([2.0, 1.0, 1.0, 1.0, -3.0, 0.0, 0.0]) * scale
    noise = np.array([0, 1, -1, 0.5, 0, -0.5, 0.5]) * 1e-15 * scale
    other = np.array([1.0, 2, 3, 4, 5, 6, 7])
    expected = rank_correlation(exact, other)
    assert rank_correlation(exact + noise, other) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(exact + noise, exact - noise) == pytest.approx(1, abs=1e-12)
    half = np.array([0.5, 0.5 + 1e-16, 1.0]) * 1e-9 * scale + np.array([0.0, 0.0, scale])
    assert rank_correlation(half, half[[1, 0, 2]]) == pytest.approx(1, abs=1e-12)


def test_true_differences_decide_however_small_they_are():
    assert rank_correlation(np.array([1.0, 1 + 1e-6, 1 + 2e-6]), np.arange(3.0)) == pytest.approx(1)
    assert math.isnan(rank_correlation(np.array([1e-17, -2e-17, 3e-18]), np.arange(3.0)))
    assert math.isnan(rank_correlation(np.zeros(0), np.zeros(0)))


def test_the_step_up_foretells_two_independent_runs(curved_black_box):
    """Thirty texts of the toy at one budget; means over texts and seeds.

    A regression loses a little more than half its precision with half its samples, so that the
    step-up errs to the low side, by less than the tolerance.
    """
    words = ("film", "plot", "story", "actor", "scene", "music")
    texts = [" ".join([word] * number) for word in words for number in range(12, 17)]
    stepped, apart = [], []
    for seed in (0, 2, 4):
        documents, records = explain(
            curved_black_box, texts, kernel_shap.TEACHER, budget=160, seed=seed
        )
        _, others = explain(curved_black_box, texts, kernel_shap.TEACHER, budget=160, seed=seed + 1)
        stepped.append(split_half(kernel_shap.TEACHER, documents, records).reliability)
        apart.append(two_runs(records, others).reliability)
    assert 0.3 < np.mean(apart) < 0.99
    assert np.mean(stepped) == pytest.approx(np.mean(apart), abs=0.06)


def test_all_coalitions_leave_nothing_to_chance(linear_black_box):
    """Two words have one pair of coalitions: halves of it would say nothing of exact weights."""
    found = agree(linear_black_box, ["great dull", "the weak plot"], kernel_shap.TEACHER, budget=50)
    assert (found.reliability, found.undefined) == (pytest.approx(1.0), 0)
