"""How near the answers of one bundle, or one device, are to those of another.

Imports no torch: the benchmark also runs it where only a serving runtime is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.explainer import Explainer, Explanation

_GROUP: Final = 7  # texts that are asked together, to see whether company matters


@dataclass(frozen=True)
class Comparison:
    """How near one bundle's answers are to another's, on the same texts.

    Attributes:
        texts: how many.
        label_agreement: share that get the same label.
        rationale_f1: mean over texts of the F1 between the words of both rationales, each of the
            label its own bundle gives.
        largest_difference: between two logits.
        batch_equal: share of the second bundle's answers that are the same, to the last bit, in
            any company, see `batch_equal`.
        compared_on: ONNX Runtime's provider that computed the second bundle's answers; nothing
            was compared on any other.
    """

    texts: int
    label_agreement: float
    rationale_f1: float
    largest_difference: float
    batch_equal: float
    compared_on: str


def compare(before: Explainer, after: Explainer, texts: Sequence[str]) -> Comparison:
    """Asks two bundles of the same labels for the same texts."""
    first, second = before.explain(texts), after.explain(texts)
    logits = [one.logits([one.encode(text) for text in texts]) for one in (before, after)]
    pairs = list(zip(first, second, strict=True))
    return Comparison(
        texts=len(texts),
        label_agreement=_mean(mine.label == theirs.label for mine, theirs in pairs),
        rationale_f1=_mean(
            overlap(rationale_words(mine), rationale_words(theirs)) for mine, theirs in pairs
        ),
        largest_difference=float(np.abs(logits[0] - logits[1]).max()),
        batch_equal=batch_equal(after.explain, texts, second),
        compared_on=after.session.provider,
    )


def batch_equal(
    explain: Callable[[Sequence[str]], list[Explanation]],
    texts: Sequence[str],
    together: Sequence[Explanation],
) -> float:
    """Returns the share of texts whose answer does not depend on its batch, to the last bit.

    Args:
        explain: answers texts.
        texts: all of them.
        together: their answers when all are asked at once; compared with those that each text
            gets alone, in groups of a few and among all in another order.
    """
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = dict(zip(order.tolist(), explain([texts[place] for place in order]), strict=True))
    grouped = [
        answer
        for first in range(0, len(texts), _GROUP)
        for answer in explain(texts[first : first + _GROUP])
    ]
    return _mean(
        explain([text]) == [answer] and grouped[place] == answer and shuffled[place] == answer
        for place, (text, answer) in enumerate(zip(texts, together, strict=True))
    )


def rationale_words(answer: Explanation) -> set[int]:
    """Returns where the words of a rationale start."""
    words = answer.words
    return {
        word.start
        for span in answer.rationale
        for word in words
        if span.start <= word.start < span.end
    }


def overlap(mine: Set[int], theirs: Set[int]) -> float:
    """Returns the F1 between two sets of words of one text, 1 where both are empty."""
    if not mine and not theirs:
        return 1.0
    return 2 * len(mine & theirs) / (len(mine) + len(theirs))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
