"""How well a teacher agrees with itself: the ceiling of what a student of it can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from models.text import Document, FloatArray, IntArray
from training.attribution.record import Attribution, Teacher

# Weights that differ by less are equal: relative to the largest, and in log-odds, which are sums of
# numbers of order 1 to 100 in float64.
ROUNDING = 1e-9
FLOOR = 1e-12


@dataclass(frozen=True)
class Reliability:
    """The agreement of a teacher with itself at a budget.

    Attributes:
        reliability: in [-1, 1]; 1 where nothing is sampled; NaN where nothing is defined.
        texts: how many there are.
        undefined: texts left out, because all weights of a half are equal, such as those of one
            word, or the budget does not fill two halves, or (`kernel_shap`) comes to about as many
            pairs as there are words.
    """

    reliability: float
    texts: int
    undefined: int


def split_half(
    teacher: Teacher, documents: Sequence[Document], records: Sequence[Attribution]
) -> Reliability:
    """Compares the two halves of each record's samples.

    The mean over texts of the rank correlation r between halves is stepped up to the whole
    budget, 2r / (1 + r) (Spearman, 1910; Brown, 1910); a negative r, a sign of too few samples,
    becomes 2r / (1 - r), which has no pole.

    Args:
        teacher: that made the records.
        documents: as encoded for the black box.
        records: of these documents.
    """
    pairs = [
        teacher.halves(document, record)
        for document, record in zip(documents, records, strict=True)
    ]
    if all(pair is None for pair in pairs):
        return Reliability(1.0, len(records), 0)
    found = [float("nan") if pair is None else rank_correlation(*pair) for pair in pairs]
    mean, undefined = _mean(found)
    return Reliability(2 * mean / (1 + abs(mean)), len(records), undefined)


def two_runs(first: Sequence[Attribution], second: Sequence[Attribution]) -> Reliability:
    """Compares two runs with different seeds, text by text; r counts as it is."""
    found = [
        rank_correlation(one.weights, other.weights)
        for one, other in zip(first, second, strict=True)
    ]
    mean, undefined = _mean(found)
    return Reliability(mean, len(found), undefined)


def rank_correlation(first: FloatArray, second: FloatArray) -> float:
    """Returns Spearman's rho of two arrays [n], NaN where one of them is constant.

    Numbers that only rounding tells apart (`ROUNDING`) share their rank.
    """
    levels = [_levels(np.asarray(part, dtype=np.float64)) for part in (first, second)]
    if any(part.max(initial=0) == 0 for part in levels):
        return float("nan")
    return float(spearmanr(*levels).statistic)


def _levels(values: FloatArray) -> IntArray:
    """Numbers different values in their order, from 0, int64 [n].

    Neighbours in that order are one level when they are within rounding of each other, wherever
    they lie: a grid would part some of them.
    """
    order = np.argsort(values, kind="stable")
    least = max(ROUNDING * np.abs(values).max(initial=0.0), FLOOR)
    levels = np.zeros(len(values), dtype=np.int64)
    levels[order[1:]] = np.cumsum(np.diff(values[order]) > least)
    return levels


def _mean(values: Sequence[float]) -> tuple[float, int]:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan"), len(values) - len(known)
