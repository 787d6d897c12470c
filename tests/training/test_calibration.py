import math

import numpy as np
import pytest

from training.evaluation.calibration import calibration_error, fit_temperature


@pytest.mark.parametrize("right", [0.6, 0.75, 0.95])
@pytest.mark.parametrize("logit", [0.5, 2.0, 6.0])
def test_the_temperature_makes_confidence_the_accuracy(right, logit):
    """All texts have the same logits: the best T gives sigmoid(logit / T) = accuracy."""
    logits = np.tile([0.0, logit], (100, 1))
    gold = (np.arange(100) < round(100 * right)).astype(np.int64)
    expected = logit / math.log(right / (1 - right))
    assert fit_temperature(logits, gold) == pytest.approx(expected, rel=1e-3)


def test_scaled_logits_scale_the_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gold = np.array([rng.choice(3, p=row) for row in chance])
    assert fit_temperature(logits, gold) == pytest.approx(1.0, abs=0.06)
    assert fit_temperature(3 * logits, gold) == pytest.approx(
        3 * fit_temperature(logits, gold), rel=1e-3
    )


def test_a_perfect_classifier_gets_a_finite_temperature():
    assert 0.05 <= fit_temperature(np.array([[0.0, 9.0], [9.0, 0.0]]), np.array([1, 0])) < 5


def test_calibration_error_by_hand():
    """Three texts at .8 of which two are right, one at .6 that is wrong: bins apart."""
    probabilities = np.array([[0.2, 0.8], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]])
    gold = np.array([1, 0, 0, 0])
    expected = 3 / 4 * abs(2 / 3 - 0.8) + 1 / 4 * abs(0 - 0.6)
    assert calibration_error(probabilities, gold) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_within_a_bin_takes_means():
    """.61 and .65 share the bin [.6, .667): mean confidence .63, half of them right."""
    probabilities = np.array([[0.39, 0.61], [0.35, 0.65]])
    assert calibration_error(probabilities, np.array([1, 0])) == pytest.approx(0.13, abs=1e-12)


def test_certainty_has_a_bin():
    sure = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert calibration_error(sure, np.array([1, 0])) == 0
    assert calibration_error(sure, np.array([0, 1])) == 1
