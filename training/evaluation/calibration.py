"""Temperature scaling and the calibration error (Guo et al., ICML 2017)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from models.text import FloatArray, IntArray
from training.blackbox.protocol import softmax

BINS = 15


def fit_temperature(logits: FloatArray, gold: IntArray) -> float:
    """Returns the temperature in [0.05, 20] with the least negative log-likelihood.

    Args:
        logits: float64 [n, classes].
        gold: int64 [n].
    """

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(gold)), gold], 1e-12)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(found.x)), 4)


def calibration_error(probabilities: FloatArray, gold: IntArray) -> float:
    """Returns the expected calibration error in [0, 1], 15 bins of equal width.

    Args:
        probabilities: float64 [n, classes].
        gold: int64 [n].
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == gold
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(correct[bins == number].mean() - confidence[bins == number].mean())
        * (bins == number).mean()
        for number in np.unique(bins)
    ]
    return float(np.sum(gaps))
