"""The attribution record and the shape of a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.text import BoolArray, Document, FloatArray, IntArray
from training.blackbox.protocol import BlackBox, log_odds

# Copies are sent to the black box in slices of this many tokens, which bounds memory.
COPY_TOKENS = 1_000_000
# Share of texts of which a student learns why they do not have another label.
OTHER_SHARE = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """What each word contributed to the log-odds of `target`.

    Attributes:
        id: of the text.
        target: index of the explained class.
        teacher: its name.
        budget: black-box evaluations spent, full and null text included.
        seed: of the teacher's sampling.
        value: log-odds of `target` for the full text, from logits, never clipped.
        null_value: the same with every word masked.
        weights: float64 [words], in log-odds; positive supports `target`.
    """

    id: str
    target: int
    teacher: str
    budget: int
    seed: int
    value: float
    null_value: float
    weights: FloatArray


class Teacher(Protocol):
    """An explanation algorithm."""

    def __call__(
        self,
        black_box: BlackBox,
        documents: Sequence[Document],
        targets: IntArray,
        *,
        budget: int,
        seed: int,
    ) -> list[Attribution]:
        """Explains documents.

        Args:
            black_box: the classifier.
            documents: encoded by the black box's encoder.
            targets: int64 [documents], the class to explain of each.
            budget: black-box evaluations per text; deterministic teachers record what they used.
            seed: a text's result depends on this, its content and nothing else.

        Returns:
            One record per document, with an empty id.
        """
        ...


def evaluate_copies(
    black_box: BlackBox,
    documents: Sequence[Document],
    targets: IntArray,
    masks: Sequence[BoolArray],
) -> list[FloatArray]:
    """Evaluates masked copies of several documents in common batches.

    Args:
        black_box: the classifier.
        documents: D documents.
        targets: int64 [D].
        masks: D arrays bool [copies, words]; False masks the word.

    Returns:
        D arrays float64 [copies], the log-odds of the target.
    """
    sizes = [sum(len(window.input_ids) for window in document.windows) for document in documents]
    pairs = [(row, copy) for row, mask in enumerate(masks) for copy in range(len(mask))]
    values = np.zeros(len(pairs))
    start = 0
    while start < len(pairs):
        end, tokens = start, 0
        while end < len(pairs) and (end == start or tokens < COPY_TOKENS):
            tokens += sizes[pairs[end][0]]
            end += 1
        part = pairs[start:end]
        logits = black_box.logits(
            [documents[row] for row, _ in part], [masks[row][copy] for row, copy in part]
        )
        values[start:end] = log_odds(logits, targets[[row for row, _ in part]])
        start = end
    return np.split(values, np.cumsum([len(mask) for mask in masks])[:-1])


def build_records(
    teacher: str,
    documents: Sequence[Document],
    targets: IntArray,
    ends: Sequence[FloatArray],
    weights: Sequence[FloatArray],
    *,
    budgets: Sequence[int],
    seed: int,
) -> list[Attribution]:
    """Builds the records of several documents; a word without pieces weighs 0.

    Args:
        teacher: its name.
        documents: D documents.
        targets: int64 [D].
        ends: D arrays whose first two values are those of the full and of the null text.
        weights: D arrays float64 [words].
        budgets: D numbers of evaluations.
        seed: of the teacher's sampling.
    """
    return [
        Attribution(
            id="",
            target=int(target),
            teacher=teacher,
            budget=budget,
            seed=seed,
            value=float(values[0]),
            null_value=float(values[1]),
            weights=np.where(has_pieces(document), weight, 0.0),
        )
        for document, target, values, weight, budget in zip(
            documents, targets, ends, weights, budgets, strict=True
        )
    ]


def predicted(black_box: BlackBox, documents: Sequence[Document]) -> IntArray:
    """Returns the predicted class of each document, int64 [documents]."""
    classes: IntArray = black_box.logits(documents).argmax(axis=1)
    return classes


def has_pieces(document: Document) -> BoolArray:
    """Marks the words that the tokenizer left pieces of, bool [words]; the others weigh 0."""
    found = np.zeros(len(document.words) + 1, dtype=np.bool_)
    for window in document.windows:
        found[window.word_index] = True  # -1, no word, marks the extra place at the end
    return found[:-1]


def training_targets(black_box: BlackBox, documents: Sequence[Document], seed: int) -> IntArray:
    """Returns the class to explain of each training text, int64 [documents].

    It is the predicted one. With more than two classes a share of the texts gets one of the
    others, so that a student can answer for any; with two, the other class's log-odds are the
    negative and need no teacher.
    """
    targets = predicted(black_box, documents)
    classes = len(black_box.labels)
    if classes > 2:
        for row, document in enumerate(documents):
            rng = text_rng(document.text, seed + 2)  # apart from the teacher's own draws
            if rng.random() < OTHER_SHARE:
                targets[row] = (targets[row] + rng.integers(1, classes)) % classes
    return targets


def text_rng(text: str, seed: int) -> np.random.Generator:
    """Returns a generator that depends on the text and the seed only."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])
