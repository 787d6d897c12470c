"""What a classifier must offer to be explained, and the value that is explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.text import BoolArray, Document, FloatArray, IntArray


class Encoder(Protocol):
    """Turns texts into documents for one black box."""

    mask_token: str

    def encode(self, text: str) -> Document:
        """Splits a text into words.

        Raises:
            ValueError: see `models.text.check_text`.
        """
        ...


class BlackBox(Protocol):
    """A classifier seen from outside.

    A document's answer never depends on the documents beside it. With `keep`, words are
    replaced by the mask token (never deleted).

    Attributes:
        labels: names of the classes, in the order of the answers.
        encoder: makes the documents.
        eps: None where answers are logits; where they are logarithms of probabilities, these
            lie in [eps, 1 - eps].
    """

    labels: tuple[str, ...]
    eps: float | None

    @property
    def encoder(self) -> Encoder:
        """Makes the documents."""
        ...

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """Returns float64 [documents, classes].

        Args:
            documents: encoded by `encoder`.
            keep: one bool array [words] per document; False replaces the word by the mask token.
        """
        ...


def explained_value(black_box: BlackBox, logits: FloatArray, target: int | IntArray) -> FloatArray:
    """Returns the log-odds of the target, float64 [n].

    From logits `log_odds`; from a callable's probabilities `log(p / (1 - p))`, p clipped.

    Args:
        black_box: says which of the two its answers are.
        logits: float64 [n, classes], its answers.
        target: one class for all rows, or int [n].
    """
    if black_box.eps is None:
        return log_odds(logits, target)
    chosen = logits[np.arange(len(logits)), target]
    # log(1 - p) of the clipped p: not the sum over the others, which are clipped on their own.
    result: FloatArray = chosen - np.log1p(-np.exp(chosen))
    return result


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
