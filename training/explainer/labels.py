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
    # In whole units of 1e-8: the floating-point mean of equal weights may lie below all of them.
    units = np.rint(weights * 1e8).astype(np.int64)
    labels = np.full(len(units), NEUTRAL, dtype=np.int64)
    positive, negative = units > 0, units < 0
    high = units * positive.sum() > units[positive].sum()
    labels[positive] = np.where(high[positive], HIGH_POSITIVE, LOW_POSITIVE)
    high = units * negative.sum() < units[negative].sum()
    labels[negative] = np.where(high[negative], HIGH_NEGATIVE, LOW_NEGATIVE)
    return labels
