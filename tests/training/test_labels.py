from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.explainer.labels import (
    CLASS_VALUES,
    HIGH_NEGATIVE,
    HIGH_POSITIVE,
    LOW_NEGATIVE,
    LOW_POSITIVE,
    NEUTRAL,
    five_way,
)


def by_the_paper(weights):
    """One word at a time, in exact arithmetic on weights rounded to 8 decimals."""
    exact = [Fraction(round(Fraction(weight) * 10**8), 10**8) for weight in weights]
    positive = [weight for weight in exact if weight > 0]
    negative = [weight for weight in exact if weight < 0]
    labels = []
    for weight in exact:
        if weight == 0:
            labels.append(2)
        elif weight > 0:
            labels.append(4 if weight > sum(positive) / Fraction(len(positive)) else 3)
        else:
            labels.append(0 if weight < sum(negative) / Fraction(len(negative)) else 1)
    return labels


def test_known_thresholds():
    """The mean of 1, 2, 6 is 3; of -1, -3 it is -2."""
    weights = np.array([1.0, -1.0, 0.0, 6.0, -3.0, 2.0])
    assert five_way(weights).tolist() == [3, 1, 2, 4, 0, 3]


def test_names_and_values_go_from_opposing_to_supporting():
    names = [HIGH_NEGATIVE, LOW_NEGATIVE, NEUTRAL, LOW_POSITIVE, HIGH_POSITIVE]
    assert names == [0, 1, 2, 3, 4]
    assert list(CLASS_VALUES) == sorted(CLASS_VALUES)
    assert CLASS_VALUES[NEUTRAL] == 0


def test_the_mean_itself_is_low():
    assert five_way(np.array([1.0, 2.0, 3.0])).tolist() == [3, 3, 4]
    assert five_way(np.array([-1.0, -2.0, -3.0])).tolist() == [1, 1, 0]


def test_only_zero_is_neutral():
    """Zero after rounding to 8 decimals: 4e-9 is, 6e-9 is not."""
    weights = np.array([4e-9, -4e-9, 0.0, -0.0, 6e-9, -6e-9, 1e-3, -1e-3])
    assert five_way(weights).tolist() == [2, 2, 2, 2, 3, 1, 4, 0]


@pytest.mark.parametrize(
    ("weights", "labels"),
    [
        ([0.5], [3]),
        ([-0.5], [1]),
        ([0.0, 0.0], [2, 2]),
        ([0.1, 0.9], [3, 4]),
        ([-0.1, -0.9], [1, 0]),
        ([], []),
    ],
)
def test_one_sided_texts(weights, labels):
    assert five_way(np.array(weights, dtype=np.float64)).tolist() == labels


@pytest.mark.parametrize("weight", [0.7, 0.1, 0.3, -0.7, -1.1])
@pytest.mark.parametrize("words", [3, 6, 7, 10])
def test_equal_weights_are_all_low(weight, words):
    """None is above the mean, whatever a floating-point mean says."""
    expected = LOW_POSITIVE if weight > 0 else LOW_NEGATIVE
    assert set(five_way(np.full(words, weight)).tolist()) == {expected}


@given(st.lists(st.integers(-300, 300).map(lambda number: number / 100), max_size=12))
def test_equals_the_definition(weights):
    assert five_way(np.array(weights, dtype=np.float64)).tolist() == by_the_paper(weights)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12), st.randoms())
def test_the_order_of_words_does_not_matter(weights, chance):
    order = list(range(len(weights)))
    chance.shuffle(order)
    labels = five_way(np.array(weights))
    assert five_way(np.array(weights)[order]).tolist() == labels[order].tolist()


@given(st.lists(st.integers(-500, 500).map(lambda number: number / 64), max_size=12))
def test_turning_the_signs_mirrors_the_labels(weights):
    values = np.array(weights, dtype=np.float64)
    assert five_way(-values).tolist() == (4 - five_way(values)).tolist()
