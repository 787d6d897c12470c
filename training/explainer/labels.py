"""The 5-way labels of L2E (Situ et al., ACL 2021, section 3.2)."""

from __future__ import annotations

import numpy as np

from models.text import FloatArray, IntArray

HIGH_NEGATIVE, LOW_NEGATIVE, NEUTRAL, LOW_POSITIVE, HIGH_POSITIVE = range(5)
# Decoded by expected value; argmax would tie most words of a text.
CLASS_VALUES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def five_way(weights: FloatArray) -> IntArray:
    """Discretises the weights of one text.

    The thresholds are the text's own means: high positive above the mean of the positive
    weights, high negative below the mean of the negative ones, neutral at zero (after rounding
    to 8 decimals).

    Args:
        weights: float64 [words].

    Returns:
        int64 [words], 0 (high negative) to 4 (high positive).
    """
    rounded = np.round(weights, 8)
    labels = np.full(len(rounded), NEUTRAL, dtype=np.int64)
    positive, negative = rounded > 0, rounded < 0
    if positive.any():
        high = rounded > rounded[positive].mean()
        labels[positive] = np.where(high[positive], HIGH_POSITIVE, LOW_POSITIVE)
    if negative.any():
        high = rounded < rounded[negative].mean()
        labels[negative] = np.where(high[negative], HIGH_NEGATIVE, LOW_NEGATIVE)
    return labels
