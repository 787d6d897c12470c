"""Faithfulness by masking words: ERASER's AOPC measures, log-odds drop, agreement.

Words are taken by signed weight, k = ceil(share x n); dropped words become the mask token; the
class is the predicted one; probabilities are the softmax of the raw logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.text import BoolArray, Document, FloatArray
from training.blackbox.protocol import BlackBox, explained_value, softmax

AOPC_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of words; DeYoung et al. (ACL 2020), section 5
TOP_SHARE = 0.3  # Situ et al. (ACL 2021), section 4.2
RANDOM_DRAWS = 5


@dataclass(frozen=True)
class Measure:
    """What is known of a metric: its range and which end is good."""

    low: float
    high: float
    higher_is_better: bool


MEASURES: Mapping[str, Measure] = {
    "aopc_comprehensiveness": Measure(-1.0, 1.0, True),
    "aopc_sufficiency": Measure(-1.0, 1.0, False),
    "log_odds_drop": Measure(-np.inf, np.inf, True),
    "agreement": Measure(0.0, 1.0, True),
}


def measure_faithfulness(
    black_box: BlackBox, document: Document, target: int, weights: Sequence[FloatArray]
) -> list[dict[str, float]]:
    """Measures several explanations of one document in common batches.

    Args:
        black_box: the classifier.
        document: with n words.
        target: the predicted class.
        weights: explanations, float64 [n] each.

    Returns:
        For each explanation the `MEASURES` of this document: comprehensiveness p(x) - p(x without
        the top words) and sufficiency p(x) - p(top words only), both averaged over `AOPC_SHARES`;
        the fall of the log-odds without the top 30 %; 1.0 where the prediction on the top 30 %
        alone is that on the whole, else 0.0.
    """
    masks = [np.ones(len(document.words), dtype=np.bool_)]
    for explanation in weights:
        for share in (*AOPC_SHARES, TOP_SHARE):
            top = top_words(explanation, share)
            masks += [~top, top]
    logits = black_box.logits([document] * len(masks), masks)
    chance, odds = softmax(logits)[:, target], explained_value(black_box, logits, target)
    label = int(logits[0].argmax())
    results = []
    for row in range(len(weights)):
        first = 1 + row * 2 * (len(AOPC_SHARES) + 1)
        aopc = slice(first, first + 2 * len(AOPC_SHARES))
        dropped, only = aopc.stop, aopc.stop + 1
        results.append(
            {
                "aopc_comprehensiveness": float(chance[0] - chance[aopc][0::2].mean()),
                "aopc_sufficiency": float(chance[0] - chance[aopc][1::2].mean()),
                "log_odds_drop": float(odds[0] - odds[dropped]),
                "agreement": float(logits[only].argmax() == label),
            }
        )
    return results


def top_words(weights: FloatArray, share: float) -> BoolArray:
    """Marks the ceil(share x n) words of largest signed weight, ties to the earlier word.

    Args:
        weights: float64 [n].
        share: in (0, 1].

    Returns:
        bool [n].
    """
    # 0.1 x 30 is 3.0000000000000004 in binary; the ceiling is meant of the exact product.
    count = int(np.ceil(round(share * len(weights), 9)))
    chosen = np.zeros(len(weights), dtype=np.bool_)
    chosen[np.argsort(-weights, kind="stable")[:count]] = True
    return chosen


def random_weights(words: int, rng: np.random.Generator) -> list[FloatArray]:
    """Draws the random explanations, `RANDOM_DRAWS` arrays float64 [words]."""
    return [rng.random(words) for _ in range(RANDOM_DRAWS)]
