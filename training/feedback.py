"""Rounds of explanations while a classifier is trained, and what they find wrong.

Every few epochs LIME explains some training texts with a human rationale for their gold label. The
published attempt (Kadapala and Borchard, "LIME feedback") then took one more step on the label
loss of a text with its features scaled at the words that the explanation had missed. Here the words
that the explanation named in their place, the distractors, can also be put against the rationale
in the masked copies that are trained on anyway (see `training.blackbox.copies`), or both kinds of
mistakes count more in the loss of a rationale layer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.text import Document, FloatArray, Window, bucket_length, pad_rows
from training.attribution import lime
from training.blackbox.cnn import CnnForSequenceClassification
from training.blackbox.copies import (
    Finding,
    LabelledDocument,
    mark,
    rationale_inside,
    stretch,
)
from training.blackbox.fit import LabelledBatch, group_by_length
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.config import Feedback, Optimization, RecipeError
from training.data.rationale import content_words
from training.runtime import progress, write_json

SHARD = 16  # texts explained between two lines of progress


@dataclass(frozen=True)
class Rounds:
    """Explains training texts between epochs and remembers what was found.

    A round is kept in a file, so that a run that is killed in the middle of an epoch goes on with
    the findings of that epoch, not with those of the weights it has by then.

    Attributes:
        black_box: in training.
        documents: all that is trained on; those with a rationale can be explained.
        settings: see `Feedback`.
        fit: of the training, whose batches are as large.
        seed: of the choice of texts and windows, and of LIME.
        folder: holds `feedback-N.json` for the round before epoch N.
    """

    black_box: HuggingFaceBlackBox
    documents: Sequence[LabelledDocument]
    settings: Feedback
    fit: Optimization
    seed: int
    folder: Path

    @property
    def emphasis(self) -> float:
        """See `training.blackbox.fit.Feedback`."""
        return self.settings.scale if self.settings.use == "marks" else 1.0

    def findings(self, epoch: int) -> dict[str, Finding]:
        """See `training.blackbox.fit.Feedback`: all rounds so far, the newest of each text."""
        rounds = [self._round(number) for number in range(epoch + 1)]
        if self.settings.use == "scaled":
            return {}
        return {part.document.text: finding for found in rounds for part, _, finding in found}

    def steps(self, epoch: int) -> list[LabelledBatch]:
        """See `training.blackbox.fit.Feedback`: steps of the published kind, after a round."""
        if self.settings.use != "scaled":
            return []
        rows = [row for row in self._round(epoch) if row[2].hit <= self.settings.below]
        if not rows:
            return []
        lengths = [len(window.input_ids) for _, window, _ in rows]
        rng = np.random.default_rng((self.seed, epoch, 2))  # apart from the choice of texts
        groups = group_by_length(lengths, self.fit, rng)
        return [self._scaled([rows[row] for row in group]) for group in groups]

    def seconds(self) -> float:
        """Returns the time that all rounds so far have taken."""
        return sum(
            float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
            for path in sorted(self.folder.glob("feedback-*.json"))
        )

    def _round(self, epoch: int) -> list[tuple[LabelledDocument, Window, Finding]]:
        """Explains before an epoch where a round is due, unless its file is there."""
        after = epoch - self.settings.first
        if after < 0 or after % self.settings.every:
            return []
        path = self.folder / f"feedback-{epoch}.json"
        chosen = self._choose(epoch)
        if not path.exists():
            started = time.monotonic()
            strongest = list(self._explain(chosen, epoch))
            seconds = time.monotonic() - started
            write_json(path, {"seconds": seconds, "strongest": strongest})
        strongest = json.loads(path.read_text(encoding="utf-8"))["strongest"]
        return [
            (part, window, judge(part, window, words))
            for (part, window), words in zip(chosen, strongest, strict=True)
        ]

    def _choose(self, epoch: int) -> list[tuple[LabelledDocument, Window]]:
        """Draws different texts and of each a window that holds some of its rationale."""
        rng = np.random.default_rng((self.seed, epoch, 1))  # apart from the draws of the batches
        by_text = {part.document.text: part for part in self.documents if part.rationale}
        parts = list(by_text.values())
        order = rng.permutation(len(parts))[: self.settings.texts]
        chosen = []
        for row in sorted(order.tolist()):
            part = parts[row]
            windows = [w for w in part.document.windows if rationale_inside(part, w)]
            if windows:
                chosen.append((part, windows[rng.integers(len(windows))]))
        return chosen

    def _explain(
        self, chosen: Sequence[tuple[LabelledDocument, Window]], epoch: int
    ) -> Iterator[list[int]]:
        """Yields the strongest content words of each explanation, as many as were marked."""
        self.black_box.model.eval()
        shards = [chosen[first : first + SHARD] for first in range(0, len(chosen), SHARD)]
        for shard in progress(shards, total=len(shards), what=f"feedback before epoch {epoch + 1}"):
            # Words outside of the window have no pieces in these documents: they take no part.
            documents = [
                Document(part.document.text, part.document.bounds, (window,))
                for part, window in shard
            ]
            records = lime.TEACHER.attribute(
                self.black_box,
                documents,
                np.array([part.label for part, _ in shard], dtype=np.int64),
                budget=self.settings.budget,
                seed=self.seed + epoch,
            )
            for (part, window), record in zip(shard, records, strict=True):
                yield strongest_words(part, window, record.weights)

    def _scaled(self, rows: Sequence[tuple[LabelledDocument, Window, Finding]]) -> LabelledBatch:
        """Makes one batch of windows with factors on the words that explanations missed."""
        encoder = self.black_box.encoder
        windows = [window for _, window, _ in rows]
        longest = bucket_length(max(len(window.input_ids) for window in windows))
        ids, mask = pad_rows([window.input_ids for window in windows], longest, encoder.pad_id)
        factors = np.ones(ids.shape, dtype=np.float32)
        for row, (_, window, finding) in zip(factors, rows, strict=True):
            missed = np.append(finding.missed, False)[window.word_index]  # -1 is no word
            row[: len(missed)][missed] = self.settings.scale
        return LabelledBatch(
            torch.from_numpy(ids),
            torch.from_numpy(mask),
            torch.tensor([part.label for part, _, _ in rows]),
            torch.from_numpy(factors),
        )


def insist_on_use(settings: Feedback, black_box: HuggingFaceBlackBox, picks: bool) -> None:
    """Refuses feedback that a black box can make no use of.

    Args:
        settings: of the feedback.
        black_box: to be trained.
        picks: whether it has a rationale layer that learns from marks.

    Raises:
        RecipeError: naming the cure.
    """
    if settings.use == "scaled" and not isinstance(black_box.model, CnnForSequenceClassification):
        raise RecipeError("blackbox: feedback: only a cnn has features that can be scaled")
    if settings.use == "marks" and not picks:
        raise RecipeError(
            "blackbox: feedback: what goes on here has no rationale layer to learn marks: choose "
            "another use"
        )


def strongest_words(part: LabelledDocument, window: Window, weights: FloatArray) -> list[int]:
    """Returns the strongest content words of a window, as many as people marked there, or one.

    Args:
        part: the text.
        window: the stretch of it that was explained.
        weights: float64 [words], for the gold label.

    Returns:
        Places of words, by falling weight.
    """
    words = len(part.document.words)
    content = content_words(part.document) & mark([stretch(window)], words)
    marked = int((content & mark(rationale_inside(part, window), words)).sum())
    places = np.flatnonzero(content)
    ranked = places[np.argsort(-weights[places], kind="stable")]
    return [int(place) for place in ranked[: max(1, marked)]]


def judge(part: LabelledDocument, window: Window, strongest: Sequence[int]) -> Finding:
    """Compares the strongest words of an explanation with the rationale in its window."""
    spans = rationale_inside(part, window)
    named = np.zeros(len(part.document.words), dtype=np.bool_)
    named[list(strongest)] = True
    gold = mark(spans, len(named))
    return Finding(
        missed=gold & content_words(part.document) & ~named,
        distracting=named & ~gold,
        hit=float(np.mean([bool(named[first:end].any()) for first, end in spans])),
    )
