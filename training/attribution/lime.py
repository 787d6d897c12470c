"""LIME (Ribeiro et al., KDD 2016) with the words of the text as features.

The neighbourhood is that of `lime.lime_text` (number of removed words uniform in 1..n, positions
without replacement, cosine distance, kernel width 25); the local model is fitted by the `lime`
package. Unlike there, repeated words are separate features, removed words are masked, the value
is the log-odds of the class, and all copies of many texts share the black box's batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lime.lime_base import LimeBase

from models.text import BoolArray, Document, FloatArray, IntArray
from training.attribution.record import (
    Attribution,
    build_records,
    evaluate_copies,
    text_rng,
)
from training.blackbox.protocol import BlackBox

KERNEL_WIDTH = 25.0  # of the cosine distance in percent, as in lime.lime_text


def attribute(
    black_box: BlackBox,
    documents: Sequence[Document],
    targets: IntArray,
    *,
    budget: int,
    seed: int,
) -> list[Attribution]:
    """Explains documents; see `Teacher`. `budget` is at least 3."""
    if budget < 3:
        raise ValueError(f"lime needs a budget of at least 3 evaluations, not {budget}")
    masks = [
        sample_masks(len(document.words), budget, text_rng(document.text, seed))
        for document in documents
    ]
    values = evaluate_copies(black_box, documents, targets, masks)
    weights = [fit_local_model(mask, value) for mask, value in zip(masks, values, strict=True)]
    return build_records(
        "lime", documents, targets, values, weights, budgets=[budget] * len(masks), seed=seed
    )


def sample_masks(words: int, budget: int, rng: np.random.Generator) -> BoolArray:
    """Draws the neighbourhood: row 0 is the full text, row 1 the null text.

    Returns:
        bool [budget, words], False = masked.
    """
    masks = np.ones((budget, words), dtype=np.bool_)
    masks[1] = False
    for row, removed in enumerate(rng.integers(1, words + 1, size=budget - 2), 2):
        masks[row, rng.permutation(words)[:removed]] = False
    return masks


def fit_local_model(masks: BoolArray, values: FloatArray) -> FloatArray:
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
