"""Teachers that only see answers: draw masked copies, evaluate them, estimate weights.

What one of them is lies in two functions, `draw` and `estimate`; batching, targets, budgets that
grow and split halves are the same for all. It works for any black box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.text import BoolArray, Document, FloatArray, IntArray
from training.attribution.record import (
    PREDICTED,
    Attribution,
    has_pieces,
    predicted,
    text_rng,
)
from training.blackbox.protocol import BlackBox, explained_value

# Copies are sent to the black box in slices of this many tokens, which bounds memory.
COPY_TOKENS = 1_000_000
EVERYTHING = 2**62  # a budget for all copies of a text, where their number has an end
ENDS = 2  # every draw begins with the full and the null text


@dataclass(frozen=True)
class PerturbationTeacher:
    """A teacher made of a sampler and an estimator; see `Teacher` for the methods.

    Only words that the tokenizer left pieces of take part, n of them.

    Attributes:
        name: what the command line calls it.
        count: `count(n, budget)`, the copies drawn for n words, the two ends included.
        draw: `draw(n, copies, rng)`, bool [copies, n], False = masked. Row 0 is the full text,
            row 1 the null text; fewer copies are the first rows of more.
        estimate: `estimate(masks, values)`, weights float64 [n] from the values float64 [copies].
        unit: `unit(n)`, copies that belong together, such as a pair, from row 2 on; 0 where
            nothing is sampled.
        least: smallest budget.
        halve: `halve(masks, values)`, two estimates [n] for `halves`, or None to estimate from
            every other unit; for estimators whose noise does not halve with twice the samples.
    """

    name: str
    count: Callable[[int, int], int]
    draw: Callable[[int, int, np.random.Generator], BoolArray]
    estimate: Callable[[BoolArray, FloatArray], FloatArray]
    unit: Callable[[int], int]
    least: int = 0
    halve: Callable[[BoolArray, FloatArray], tuple[FloatArray, FloatArray] | None] | None = None

    def spent(self, document: Document, budget: int) -> int:
        """See `Teacher.spent`."""
        if budget < self.least:
            raise ValueError(f"{self.name} needs a budget of at least {self.least}, not {budget}")
        return self.count(int(has_pieces(document).sum()), budget)

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
        before = [None] * len(documents) if known is None else known
        counts = [self.spent(document, budget) for document in documents]
        masks = [
            self._masks(document, count, seed)
            for document, count in zip(documents, counts, strict=True)
        ]
        new = [
            _expand(document, mask[0 if old is None else len(old.values) :])
            for document, mask, old in zip(documents, masks, before, strict=True)
        ]
        answers = evaluate_copies(black_box, documents, new)
        classes = _classes(black_box, documents, targets, answers, before)
        records = []
        for document, target, mask, logits, old in zip(
            documents, classes.tolist(), masks, answers, before, strict=True
        ):
            values = np.zeros(0) if old is None else old.values[: len(mask)]
            values = np.concatenate([values, explained_value(black_box, logits, target)])
            records.append(
                Attribution(
                    id="",
                    target=target,
                    teacher=self.name,
                    budget=len(values),
                    seed=seed,
                    value=float(values[0]),
                    null_value=float(values[1]),
                    weights=self._weights(document, mask, values),
                    values=values,
                    eps=black_box.eps,
                )
            )
        return records

    def halves(
        self, document: Document, record: Attribution
    ) -> tuple[FloatArray, FloatArray] | None:
        """See `Teacher.halves`: from every other unit, both with the full and the null text."""
        words = int(has_pieces(document).sum())
        size = self.unit(words)
        if not size:
            return None
        if self.count(words, EVERYTHING) == len(record.values):  # all there are: nothing is chance
            return record.weights, record.weights
        if len(record.values) < ENDS + 2 * size:  # too few for two halves: nothing to compare
            return np.zeros(len(document.words)), np.zeros(len(document.words))
        masks = self._masks(document, len(record.values), record.seed)
        found = None if self.halve is None else self.halve(masks, record.values)
        first, second = found or (
            self.estimate(masks[rows], record.values[rows])
            for rows in every_other(len(masks), size)
        )
        return _place(document, first), _place(document, second)

    def copies(self, document: Document, record: Attribution) -> BoolArray:
        """Returns which words the copies kept whose values a record holds, [values, words]."""
        return _expand(document, self._masks(document, len(record.values), record.seed))

    def _masks(self, document: Document, copies: int, seed: int) -> BoolArray:
        words = int(has_pieces(document).sum())
        return self.draw(words, copies, text_rng(document.text, seed))

    def _weights(self, document: Document, masks: BoolArray, values: FloatArray) -> FloatArray:
        return _place(document, self.estimate(masks, values) if masks.shape[1] else np.zeros(0))


def evaluate_copies(
    black_box: BlackBox, documents: Sequence[Document], masks: Sequence[BoolArray]
) -> list[FloatArray]:
    """Evaluates masked copies of several documents in common batches.

    Args:
        black_box: the classifier.
        documents: D documents.
        masks: D arrays bool [copies, words]; False masks the word.

    Returns:
        D arrays float64 [copies, classes], the black box's answers.
    """
    sizes = [
        sum(len(window.input_ids) for window in document.windows) or len(document.words)
        for document in documents
    ]
    pairs = [(row, copy) for row, mask in enumerate(masks) for copy in range(len(mask))]
    logits = np.zeros((len(pairs), len(black_box.labels)))
    start = 0
    while start < len(pairs):
        end, tokens = start, 0
        while end < len(pairs) and (end == start or tokens < COPY_TOKENS):
            tokens += sizes[pairs[end][0]]
            end += 1
        part = pairs[start:end]
        logits[start:end] = black_box.logits(
            [documents[row] for row, _ in part], [masks[row][copy] for row, copy in part]
        )
        start = end
    ends = np.cumsum([len(mask) for mask in masks], dtype=np.int64)
    return [logits[end - len(mask) : end] for end, mask in zip(ends, masks, strict=True)]


def start_masks(copies: int, words: int) -> BoolArray:
    """Returns masks that keep every word but in the null text, bool [copies, words]."""
    masks = np.ones((copies, words), dtype=np.bool_)
    masks[1] = False
    return masks


def every_other(copies: int, size: int) -> tuple[BoolArray, BoolArray]:
    """Marks the copies of the odd and of the even units, each with the two ends."""
    number = (np.arange(copies) - ENDS) // size
    return (number < 0) | (number % 2 == 0), (number < 0) | (number % 2 == 1)


def _classes(
    black_box: BlackBox,
    documents: Sequence[Document],
    targets: IntArray,
    answers: Sequence[FloatArray],
    before: Sequence[Attribution | None],
) -> IntArray:
    """Returns the class to explain of each document: what is known, asked for or predicted."""
    classes = np.array(
        [
            target if old is None else old.target
            for target, old in zip(targets.tolist(), before, strict=True)
        ],
        dtype=np.int64,
    )
    rows = np.flatnonzero(classes == PREDICTED).tolist()
    if rows:
        full = np.stack([answers[row][0] for row in rows])
        classes[rows] = predicted(black_box, [documents[row] for row in rows], full)
    return classes


def _place(document: Document, values: FloatArray) -> FloatArray:
    """Spreads weights over the words that they belong to; words without pieces weigh 0."""
    weights = np.zeros(len(document.words))
    weights[has_pieces(document)] = values
    return weights


def _expand(document: Document, masks: BoolArray) -> BoolArray:
    """Spreads columns over the words that they belong to; words without pieces are kept."""
    full = np.ones((len(masks), len(document.words)), dtype=np.bool_)
    full[:, has_pieces(document)] = masks
    return full
