"""The attribution record and the shape of a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.text import BoolArray, Document, FloatArray, IntArray
from training.blackbox.callable import CallableBlackBox
from training.blackbox.protocol import BlackBox

PREDICTED = -1  # as a target: the class that the black box predicts
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
        value: log-odds of `target` for the full text, from logits never clipped.
        null_value: the same with every word masked.
        weights: float64 [words], in log-odds; positive supports `target`. Those of an ensemble
            are ranks in [-1, 1].
        values: float64 [budget], log-odds of each masked copy in the order drawn, from which a
            larger budget goes on; empty where the teacher does not mask copies.
        eps: bounds of a callable's probabilities, [eps, 1 - eps]; None where there are logits.
        members: of an ensemble, what it is made of.
    """

    id: str
    target: int
    teacher: str
    budget: int
    seed: int
    value: float
    null_value: float
    weights: FloatArray
    values: FloatArray
    eps: float | None = None
    members: tuple[Attribution, ...] = ()


class Teacher(Protocol):
    """An explanation algorithm."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    def spent(self, document: Document, budget: int) -> int:
        """Returns the black-box evaluations that a budget comes to for a document.

        Raises:
            ValueError: when the budget is too small.
        """
        ...

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
        """Explains documents.

        Args:
            black_box: the classifier.
            documents: encoded by the black box's encoder.
            targets: int64 [documents], the class to explain of each, or `PREDICTED`.
            budget: black-box evaluations per text; a teacher for which the text decides records
                what it used.
            seed: a text's result depends on this, its content and nothing else.
            known: what this teacher found for a document with this seed and another budget, so
                that only the difference is evaluated.

        Returns:
            One record per document, with an empty id.

        Raises:
            ValueError: when the budget is too small or the black box of a kind that this teacher
                cannot look into.
        """
        ...

    def halves(
        self, document: Document, record: Attribution
    ) -> tuple[FloatArray, FloatArray] | None:
        """Estimates twice, each as noisy as half of the samples of one record make it.

        Returns:
            Two arrays float64 [words], or None where nothing is sampled; constant ones where the
            samples do not tell.
        """
        ...


def predicted(
    black_box: BlackBox, documents: Sequence[Document], logits: FloatArray | None = None
) -> IntArray:
    """Returns the predicted class of each document, the first of equal ones, int64 [documents].

    Args:
        black_box: a callable decides on its probabilities before they are clipped.
        documents: whole texts.
        logits: float64 [documents, classes], where they are known already.
    """
    known = black_box.logits(documents) if logits is None else logits
    if isinstance(black_box, CallableBlackBox):
        return black_box.predicted(documents, known)
    classes: IntArray = known.argmax(axis=1)
    return classes


def resolve_targets(
    black_box: BlackBox, documents: Sequence[Document], targets: IntArray
) -> IntArray:
    """Returns the targets with `PREDICTED` replaced by the predicted class, int64 [documents]."""
    open_rows = np.flatnonzero(targets == PREDICTED)
    if not len(open_rows):
        return targets
    found = targets.copy()
    found[open_rows] = predicted(black_box, [documents[int(row)] for row in open_rows])
    return found


def has_pieces(document: Document) -> BoolArray:
    """Marks the words that the tokenizer left pieces of, bool [words]; the others weigh 0.

    A callable reads text, not pieces: its documents have no windows and all their words count.
    """
    if not document.windows:
        return np.ones(len(document.words), dtype=np.bool_)
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
    classes = len(black_box.labels)
    if classes == 2:
        return np.full(len(documents), PREDICTED, dtype=np.int64)
    targets = predicted(black_box, documents)
    for row, document in enumerate(documents):
        rng = text_rng(document.text, seed + 2)  # apart from the teacher's own draws
        if rng.random() < OTHER_SHARE:
            targets[row] = (targets[row] + rng.integers(1, classes)) % classes
    return targets


def text_rng(text: str, seed: int) -> np.random.Generator:
    """Returns a generator that depends on the text and the seed only."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])
