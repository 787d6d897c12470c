"""LIME (Ribeiro et al., KDD 2016) with the words of the text as features.

The neighbourhood is that of `lime.lime_text` (number of removed words uniform in 1..n, positions
without replacement, cosine distance, kernel width 25); the local model is fitted by the `lime`
package. Unlike there, repeated words are separate features, removed words are masked, the value
is the log-odds of the class, and all copies of many texts share the black box's batches.
"""

from __future__ import annotations

import numpy as np
from lime.lime_base import LimeBase

from models.text import BoolArray, FloatArray
from training.attribution.perturbation import ENDS, PerturbationTeacher, start_masks

KERNEL_WIDTH = 25.0  # of the cosine distance in percent, as in lime.lime_text


def draw(words: int, copies: int, rng: np.random.Generator) -> BoolArray:
    """Draws the neighbourhood; see `PerturbationTeacher.draw`."""
    masks = start_masks(copies, words)
    for row in range(ENDS, copies):  # one by one, so that fewer copies are the first of more
        removed = rng.integers(1, words + 1)
        masks[row, rng.permutation(words)[:removed]] = False
    return masks


def estimate(masks: BoolArray, values: FloatArray) -> FloatArray:
    """Fits LIME's weighted ridge regression.

    Args:
        masks: bool [copies, words]; row 0 is the full text.
        values: float64 [copies].

    Returns:
        Coefficients, float64 [words].
    """
    data = masks.astype(np.float64)
    base = LimeBase(_kernel, random_state=0)
    _, coefficients, _, _ = base.explain_instance_with_data(
        data,
        values[:, None],
        _cosine_distances(data),
        label=0,
        num_features=data.shape[1],
        feature_selection="none",
    )
    weights = np.zeros(data.shape[1])
    for word, weight in coefficients:
        weights[word] = weight
    return weights


def _kernel(distances: FloatArray) -> FloatArray:
    result: FloatArray = np.sqrt(np.exp(-(distances**2) / KERNEL_WIDTH**2))
    return result


def _cosine_distances(data: FloatArray) -> FloatArray:
    """Returns 100 times the cosine distance to the full text; for 0/1 rows cos = sqrt(kept/n)."""
    result: FloatArray = 100.0 * (1.0 - np.sqrt(data.mean(axis=1)))
    return result


TEACHER = PerturbationTeacher(
    "lime",
    count=lambda words, budget: budget if words else ENDS,
    draw=draw,
    estimate=estimate,
    unit=lambda words: 1,
    least=3,
)
