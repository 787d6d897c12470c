"""What a classifier must offer to be explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.text import BoolArray, Document, FloatArray, TextEncoder


class BlackBox(Protocol):
    """A classifier seen from outside.

    A document's answer never depends on the documents beside it. With `keep`, words are
    replaced by the mask token (never deleted).
    """

    labels: tuple[str, ...]
    encoder: TextEncoder

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """Returns float64 [documents, classes].

        Args:
            documents: encoded by `encoder`.
            keep: one bool array [words] per document; False replaces the word by the mask token.
        """
        ...


def log_odds(logits: FloatArray, target: int | npt.NDArray[np.int64]) -> FloatArray:
    """Returns `z_c - logsumexp(z_others)` in float64, never clipped.

    Args:
        logits: float64 [n, classes].
        target: one class for all rows, or int [n].

    Returns:
        float64 [n].
    """
    rows = np.arange(len(logits))
    targets = np.broadcast_to(np.asarray(target), len(logits))
    others = logits.astype(np.float64)
    chosen = others[rows, targets]
    others[rows, targets] = -np.inf
    peak = others.max(axis=1)
    rest: FloatArray = chosen - peak - np.log(np.exp(others - peak[:, None]).sum(axis=1))
    return rest


def softmax(logits: FloatArray) -> FloatArray:
    """Returns probabilities float64 [n, classes]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result
