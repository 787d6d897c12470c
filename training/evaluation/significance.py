"""Whether one system is better than another on the same documents, beyond chance.

Values are averaged over seeds document by document first, so that n counts documents: three seeds
on the same text are not three independent observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from models.text import FloatArray

RESAMPLES = 2000
CONFIDENCE = 0.95
# Averages that are equal on paper differ by about 1e-16: (.1 + .2) / 2 and .3 / 2. The test ranks
# differences by size, so without rounding such a zero would count as evidence.
DECIMALS = 12

Values = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """A measure of two systems, compared by document.

    Attributes:
        difference: mean over documents of the first system's value less the second's.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: its upper end.
        p: of the two-sided paired Wilcoxon test, in [0, 1], not corrected (see `holm`).
        n: documents.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int


def compare_systems(first: Values, second: Values, *, seed: int = 0) -> Comparison:
    """Compares two systems on one measure.

    The systems may have different seeds and different numbers of them: a teacher that samples
    nothing has one, its student three.

    Args:
        first: seed to document id to value, finite.
        second: likewise, on the same documents.
        seed: of the bootstrap.

    Raises:
        ValueError: when a system has no seed or document, its seeds or the two systems differ in
            documents, or a value is not finite.
    """
    one, other = average_seeds(first), average_seeds(second)
    if one.keys() != other.keys():
        raise ValueError(
            f"the systems differ in {len(one.keys() ^ other.keys())} documents: measure both on "
            "the same"
        )
    # Sorted, so that neither the result nor the bootstrap depends on the order of the documents.
    differences = np.array([one[name] - other[name] for name in sorted(one)])
    low, high = bootstrap_interval(differences, seed=seed)
    return Comparison(
        float(differences.mean()), low, high, wilcoxon_p(differences), len(differences)
    )


def average_seeds(values: Values) -> dict[str, float]:
    """Averages a system's values over its seeds, document by document.

    Args:
        values: seed to document id to value.

    Returns:
        Document id to mean value.

    Raises:
        ValueError: when there is no seed or no document, the seeds differ in documents, or a value
            is not finite.
    """
    runs = list(values.values())
    if not runs or not runs[0]:
        raise ValueError("a system needs at least one seed and one document")
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("the seeds of a system differ in documents: measure all on the same")
    if not all(np.isfinite(list(run.values())).all() for run in runs):
        raise ValueError("a value is not finite: leave its document out of both systems")
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def wilcoxon_p(differences: FloatArray) -> float:
    """Returns p of the two-sided Wilcoxon signed-rank test (1945).

    Zeros take part in the ranking and are then left out (Pratt, 1959): documents on which two
    systems agree are no evidence for either, but their number should not be without effect. p is
    exact up to 50 documents without zeros and ties and up to 13 with them; beyond, it is the
    normal approximation with its correction for ties (both by scipy).

    Args:
        differences: float64 [documents], at least one; equal to 12 decimals is equal.

    Returns:
        In [0, 1]; 1 where no difference is left.
    """
    rounded = np.round(differences, DECIMALS)
    if not rounded.any():
        return 1.0
    return float(wilcoxon(rounded, zero_method="pratt").pvalue)


def bootstrap_interval(differences: FloatArray, *, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean (Efron, 1979).

    Args:
        differences: float64 [documents], at least one; documents are drawn with replacement,
            `RESAMPLES` times.
        seed: of the draws; equal numbers of documents draw equal places, so measures of one table
            are compared on the same resamples.
    """
    rng = np.random.default_rng(seed)
    count = len(differences)
    # A hundred at a time: few calls, and little memory where there are many documents.
    means = [
        differences[rng.integers(count, size=(100, count))].mean(axis=1)
        for _ in range(RESAMPLES // 100)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Corrects the p values of one family of tests (Holm, 1979).

    The i-th smallest of m is multiplied by m - i + 1, is at least its predecessor and at most 1.
    To reject what falls below .05 keeps the chance of a single false rejection in the whole
    family below .05, however the tests depend on each other.

    Args:
        p_values: name of the test to p, in [0, 1].

    Returns:
        Name to corrected p, in the order given.

    Raises:
        ValueError: when a p is not in [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values.values()):
        raise ValueError("a p value is not in [0, 1]")
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - place)))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}
