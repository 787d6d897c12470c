"""Several teachers at once: the mean of their rank-normalised attributions.

Teachers err in different places and each has a scale of its own; ranks put them on one scale
before the mean, the aggregation of Rieger and Hansen (2020) with ranks for their normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from models.text import Document, FloatArray, IntArray
from training.attribution.record import Attribution, Teacher, resolve_targets
from training.blackbox.protocol import BlackBox

PREFIX = "ensemble:"


@dataclass(frozen=True)
class EnsembleTeacher:
    """The mean of its members; see `Teacher` for the methods.

    Attributes:
        members: at least two different teachers; each spends the whole budget.
    """

    members: tuple[Teacher, ...]

    @property
    def name(self) -> str:
        """`ensemble:` and the members' names."""
        return PREFIX + "+".join(member.name for member in self.members)

    def spent(self, document: Document, budget: int) -> int:
        """See `Teacher.spent`; the sum over members."""
        return sum(member.spent(document, budget) for member in self.members)

    def attribute(
        self,
        black_box: BlackBox,
        documents: Sequence[Document],
        targets: IntArray,
        *,
        budget: int,
        seed: int,
        known: Sequence[Attribution | None] | None = None,
    ) -> list[Attribution]:
        """See `Teacher.attribute`."""
        targets = resolve_targets(black_box, documents, targets)  # once for all members
        before = (
            [()] * len(documents)
            if known is None
            else [old.members if old else () for old in known]
        )
        found = []
        for place, member in enumerate(self.members):
            parts = [old[place] if old else None for old in before]
            found.append(
                member.attribute(
                    black_box, documents, targets, budget=budget, seed=seed, known=parts
                )
            )
        return [self.combine(records) for records in zip(*found, strict=True)]

    def combine(self, records: Sequence[Attribution]) -> Attribution:
        """Returns the mean of the members' records of one text, in the order of the members."""
        first = records[0]
        return Attribution(
            id=first.id,
            target=first.target,
            teacher=self.name,
            budget=sum(record.budget for record in records),
            seed=first.seed,
            value=first.value,
            null_value=first.null_value,
            weights=mean_ranks([record.weights for record in records]),
            values=np.zeros(0),
            eps=first.eps,
            members=tuple(records),
        )

    def halves(
        self, document: Document, record: Attribution
    ) -> tuple[FloatArray, FloatArray] | None:
        """See `Teacher.halves`; a member that samples nothing is the same in both.

        Where a member's halves tell nothing, those of the ensemble are constant and tell nothing.
        """
        halves = [
            member.halves(document, part) or (part.weights, part.weights)
            for member, part in zip(self.members, record.members, strict=True)
        ]
        for pair, part in zip(halves, record.members, strict=True):
            if np.ptp(part.weights) > 0 and any(np.ptp(half) == 0 for half in pair):
                return np.zeros(len(part.weights)), np.zeros(len(part.weights))
        if all(first is second for first, second in halves):
            return None
        first, second = zip(*halves, strict=True)
        return mean_ranks(first), mean_ranks(second)


def mean_ranks(weights: Sequence[FloatArray]) -> FloatArray:
    """Averages rank-normalised attributions.

    The rank of |w| among a text's n words over n, ties shared, with the sign of w: order and
    sign are kept, a weight of 0 stays 0. Weights below a billionth of the largest count as 0, and
    so do smaller differences: rounding must not decide a rank.

    Args:
        weights: arrays float64 [n].

    Returns:
        float64 [n] in [-1, 1].
    """
    result: FloatArray = np.mean([_signed_ranks(part) for part in weights], axis=0)
    return result


def _signed_ranks(weights: FloatArray) -> FloatArray:
    largest = np.abs(weights).max(initial=0.0)
    if largest == 0:
        return np.zeros(len(weights))
    rounded = np.round(weights / largest, 9)
    ranks: FloatArray = np.sign(rounded) * rankdata(np.abs(rounded)) / len(weights)
    return ranks
