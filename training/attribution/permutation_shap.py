"""Shapley values by antithetic walks (Castro et al., 2009; Mitchell et al., JMLR 2022, sec. 2.2).

A walk adds the words to the null text in random order and credits each with the change; a second
walk takes the reverse order. Long texts walk in steps of several words: a step's change is shared
by its words, which shrinks every weight towards the mean by a known factor, so it is undone. Up to
32 words the estimate is unbiased; beyond, it is so up to interactions of two words, and a little
of what three or more do together is spread over the others.
"""

from __future__ import annotations

import numpy as np

from models.text import BoolArray, FloatArray, IntArray
from training.attribution.perturbation import ENDS, PerturbationTeacher, start_masks

# A walk of at most 31 evaluations: some walks fit into a budget of 200 however long the text is.
STEPS = 32


def count(words: int, budget: int) -> int:
    """Returns the copies of as many pairs of walks as fit into the budget.

    Raises:
        ValueError: when not even one fits.
    """
    size = unit(words)
    if not size:
        return ENDS
    if budget < ENDS + size:
        raise ValueError(
            f"permutation_shap needs a budget of at least {ENDS + size} for a text of {words} "
            f"words, not {budget}; {2 * STEPS} is enough for any text"
        )
    return ENDS + (budget - ENDS) // size * size


def unit(words: int) -> int:
    """Returns the evaluations of a pair of walks, the two ends not counted."""
    return 2 * (min(words, STEPS) - 1) if words > 1 else 0


def draw(words: int, copies: int, rng: np.random.Generator) -> BoolArray:
    """Draws the texts met on pairs of walks; see `PerturbationTeacher.draw`."""
    masks = start_masks(copies, words)
    size = unit(words)
    if not size:
        return masks
    steps = min(words, STEPS)
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(words), steps)])
    for first in range(ENDS, copies, size):
        place = np.argsort(rng.permutation(words))  # of each word in the order of the walk
        masks[first : first + steps - 1] = place < ends[:-1, None]
        # From the far end: after k of its steps the last k blocks are there.
        masks[first + steps - 1 : first + size] = place >= ends[-2::-1, None]
    return masks


def estimate(masks: BoolArray, values: FloatArray) -> FloatArray:
    """Averages the credits over walks; they sum to the full less the null value.

    Args:
        masks: bool [copies, words], of whole pairs of walks.
        values: float64 [copies].

    Returns:
        float64 [words].
    """
    words = masks.shape[1]
    gap = values[0] - values[1]
    size = unit(words)
    if not size:
        return np.full(words, gap)
    steps = min(words, STEPS)
    total = np.zeros(words)
    walks = 0
    for first in range(ENDS, len(masks), steps - 1):
        rows = slice(first, first + steps - 1)
        path = np.concatenate([values[1:2], values[rows], values[0:1]])
        step = _step_of_words(masks[rows])
        total += (np.diff(path) / np.bincount(step, minlength=steps))[step]
        walks += 1
    shared = total / walks
    # A word's share is phi/g of its own step of g words plus what chance put beside it. Over
    # random orders its mean is phi (B - 1)/(n - 1) + gap (n - B)/(n (n - 1)) with B steps.
    result: FloatArray = (shared - gap * (words - steps) / (words * (words - 1))) * (
        (words - 1) / (steps - 1)
    )
    return result


def _step_of_words(masks: BoolArray) -> IntArray:
    """Returns the step of the walk at which each word came, int64 [words]."""
    steps: IntArray = len(masks) - masks.sum(axis=0)
    return steps


TEACHER = PerturbationTeacher("permutation_shap", count, draw, estimate, unit)
