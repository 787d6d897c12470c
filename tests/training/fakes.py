"""Black boxes whose answers and attributions are known; conftest.py makes fixtures of them."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from models.text import BoolArray, Document, FloatArray, TextEncoder
from training.blackbox.protocol import BlackBox


class LinearBlackBox:
    """A classifier whose every answer is a sum: each word contributes what `value_of` says.

    The log-odds of POS are `bias` plus the contributions of the words that are kept.
    """

    labels = ("NEG", "POS")
    eps = None

    def __init__(
        self, encoder: TextEncoder, value_of: Callable[[int, str], float], bias: float = 0.0
    ) -> None:
        self.encoder = encoder
        self.value_of = value_of
        self.bias = bias
        self.calls: list[int] = []  # copies in each call

    def contributions(self, document: Document) -> FloatArray:
        """What each word adds to the log-odds of POS, float64 [words]."""
        words = enumerate(document.words)
        return np.array([self.value_of(place, word.text.lower()) for place, word in words])

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """See `BlackBox.logits`."""
        self.calls.append(len(documents))
        known = {id(document): self.contributions(document) for document in documents}
        rows = np.zeros((len(documents), 2))
        for row, document in enumerate(documents):
            values = known[id(document)]
            kept = values if keep is None else values[keep[row]]
            rows[row] = 0.25, 0.25 + self.bias + kept.sum()
        return rows


@functools.cache
def _drawn(n: int) -> FloatArray:
    """What words, neighbours and the tanh's direction weigh, float64 [3, n]."""
    return np.random.default_rng(n).normal(size=(3, n))


class CurvedBlackBox:
    """A classifier in which words interact; only the places of words count.

    The log-odds of POS of n places z in {0, 1} are `0.25 + w z + sum of c_i z_i z_(i+1)`, and
    beside it, unless `pairs_only`, `2 z_0 z_(n/2) z_(n-1) + 1.5 tanh(u z)`; w, c and u are drawn
    once for each n.
    """

    labels = ("NEG", "POS")
    eps = None

    def __init__(self, encoder: TextEncoder, *, pairs_only: bool = False) -> None:
        self.encoder = encoder
        self.pairs_only = pairs_only
        self.calls: list[int] = []  # copies in each call

    def odds(self, kept: BoolArray) -> FloatArray:
        """Returns the log-odds of POS of coalitions, bool [rows, n] to float64 [rows]."""
        n = kept.shape[1]
        words, pairs, direction = _drawn(n)
        z = kept.astype(np.float64)
        found = 0.25 + z @ words + (z[:, :-1] * z[:, 1:]) @ pairs[1:]
        if not self.pairs_only:
            found += 2 * z[:, 0] * z[:, n // 2] * z[:, -1] + 1.5 * np.tanh(z @ direction)
        result: FloatArray = found
        return result

    def shapley(self, n: int) -> FloatArray:
        """Returns the Shapley values of POS, float64 [n]: the mean over all orders of words."""
        if self.pairs_only:
            empty, single = np.zeros((1, n), np.bool_), np.eye(n, dtype=np.bool_)
            both = single[:-1] | single[1:]
            alone = self.odds(single) - self.odds(empty)
            joint = self.odds(both) - self.odds(empty) - alone[:-1] - alone[1:]
            halves: FloatArray = alone + (np.r_[joint, 0] + np.r_[0, joint]) / 2
            return halves
        coalitions = np.array([*itertools.product((False, True), repeat=n)])
        value = dict(zip(map(bytes, coalitions), self.odds(coalitions), strict=True))
        found = np.zeros(n)
        for row in coalitions[:-1]:  # the last one is the whole text
            # Of n! orders |S|! (n - |S| - 1)! put exactly S before a word.
            share = 1 / (n * math.comb(n - 1, int(row.sum())))
            for word in np.flatnonzero(~row):
                more = row.copy()
                more[word] = True
                found[word] += share * (value[bytes(more)] - value[bytes(row)])
        return found

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """See `BlackBox.logits`."""
        self.calls.append(len(documents))
        masks = [np.ones(len(document.words), np.bool_) for document in documents]
        masks = masks if keep is None else [*keep]
        found = np.zeros((len(documents), 2))
        for n in {len(mask) for mask in masks}:
            rows = [row for row, mask in enumerate(masks) if len(mask) == n]
            found[rows, 1] = self.odds(np.array([masks[row] for row in rows]))
        return found


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Mortal:
    """Another black box that is killed at its call number `life`."""

    killed = Killed

    def __init__(self, inner: BlackBox, life: int) -> None:
        self.labels, self.encoder, self.eps = inner.labels, inner.encoder, inner.eps
        self.inner, self.life = inner, life

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """See `BlackBox.logits`."""
        self.life -= 1
        if self.life < 0:
            raise Killed
        return self.inner.logits(documents, keep)
