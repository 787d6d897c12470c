"""Fine-tunes a classifier on windows of labelled texts, optionally with words masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.text import FloatArray, IntArray, bucket_length, pad_rows
from training.blackbox.copies import Finding, LabelledDocument, draw_copy
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.rationale_fit import (
    marked_weight,
    measure_rationale,
    piece_emphasis,
    piece_targets,
    rationale_loss,
)
from training.config import NO_COPIES, Copies, Optimization, RationaleLayer
from training.data.example import Example
from training.data.rationale import word_ranges
from training.evaluation.neutral import measure_neutral
from training.loop import Loop, Progress

NO_FINDINGS: Mapping[str, Finding] = MappingProxyType({})


@dataclass(frozen=True)
class LabelledBatch:
    """Rows of ids padded to one length, int64 [rows, tokens], and targets.

    Targets are classes, int64 [rows], or where copies are drawn their probabilities, float32
    [rows, classes]. A step of scaled feedback has factors on the features of each token, float32
    [rows, tokens]. Where a rationale layer is trained, and something is known of a row, there is
    what people marked, see `piece_targets`, float32 [rows, tokens], and the gold classes of the
    rows, int64 [rows]; with feedback on it also how often each piece counts there, float32
    [rows, tokens].
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    feature_scale: Tensor | None = None
    rationale: Tensor | None = None
    labels: Tensor | None = None
    emphasis: Tensor | None = None


class Feedback(Protocol):
    """What explanations of training texts say to the epochs that follow them."""

    @property
    def emphasis(self) -> float:
        """How often what they missed or named wrongly counts in the loss of a rationale layer."""
        ...

    def findings(self, epoch: int) -> Mapping[str, Finding]:
        """Returns by text what the copies of an epoch should know."""
        ...

    def steps(self, epoch: int) -> list[LabelledBatch]:
        """Returns further steps at the end of an epoch."""
        ...


def encode_examples(
    black_box: HuggingFaceBlackBox, examples: Sequence[Example]
) -> list[LabelledDocument]:
    """Encodes examples for training or validation."""
    index = {label: row for row, label in enumerate(black_box.labels)}
    found = []
    for example in examples:
        document = black_box.encoder.encode(example.text)
        spans = example.rationale
        ranges = tuple(word_ranges(document, spans)) if spans else None
        found.append(LabelledDocument(document, index[example.label], ranges))
    return found


def fit(
    black_box: HuggingFaceBlackBox,
    train: Sequence[LabelledDocument],
    validation: Mapping[str, Sequence[LabelledDocument]],
    settings: Optimization,
    *,
    mask_share: float,
    copies: Copies = NO_COPIES,
    feedback: Feedback | None = None,
    rationale: RationaleLayer | None = None,
    seed: int,
    folder: Path,
) -> Progress:
    """Fine-tunes in place; the best epoch by its validation score is kept.

    Where more is taught than labels, all of it decides, see `validation_scores`: the labels are
    learnt epochs before the rest is.

    An epoch visits one random window of each document. In a share of each batch, words are
    replaced by the mask token at a rate drawn from U(0, 1) per row, so that a masked text is
    nothing unusual to the classifier and masking-based explanations measure the words, not
    the surprise (Madsen et al., 2024, masked fine-tuning).

    Args:
        black_box: fitted in place.
        train: repeated entries are visited repeatedly.
        validation: measured over whole documents after each epoch.
        settings: of the loop.
        mask_share: in [0, 1].
        copies: see `Copies`; by default none.
        feedback: see `Feedback`; by default none.
        rationale: how the black box's rationale layer is trained on what people marked; None where
            it has none, or learns from the labels alone.
        seed: of order, windows, masks and dropout.
        folder: for the checkpoint of a run that may be killed.
    """

    def validate() -> dict[str, float]:
        return validation_scores(black_box, validation, copies.neutral, bool(rationale), seed)

    share = rationale.weight if rationale else 0.0
    weight = marked_weight(train, rationale.pos_weight) if rationale else 0.0

    def batches(epoch: int) -> list[LabelledBatch]:
        findings = feedback.findings(epoch) if feedback else {}
        found = make_batches(
            black_box, train, settings, mask_share, seed, epoch, copies, findings,
            marks=rationale is not None, emphasis=feedback.emphasis if feedback else 1.0,
        )  # fmt: skip
        return found + (feedback.steps(epoch) if feedback else [])

    def loss(batch: LabelledBatch) -> Tensor:
        scaled = {} if batch.feature_scale is None else {"feature_scale": batch.feature_scale}
        output = black_box.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **scaled
        )
        of_labels = functional.cross_entropy(output.logits.float(), batch.targets)
        if batch.rationale is None:
            return of_labels
        assert batch.labels is not None
        marked = rationale_loss(
            output.rationale_logits, batch.rationale, batch.labels, weight, batch.emphasis
        )
        return of_labels + share * marked

    black_box.precision = settings.precision
    return Loop(
        module=black_box.model,
        batches=batches,
        loss=loss,
        validate=validate,
        settings=settings,
        folder=folder,
        seed=seed,
        what="black box",
    ).run()


def validation_scores(
    black_box: HuggingFaceBlackBox,
    validation: Mapping[str, Sequence[LabelledDocument]],
    neutral: bool,
    picks: bool,
    seed: int,
) -> dict[str, float]:
    """Measures an epoch by all that it was to teach.

    Args:
        black_box: in training.
        validation: name to documents.
        neutral: whether texts without their rationale are to turn neutral.
        picks: whether a rationale layer is taught what people marked.
        seed: of the spans that are masked to see whether masks alone make a text neutral.

    Returns:
        Accuracy by name; `rationale_auprc`; `without_rationale` and `random_spans`, see
        `measure_neutral`; each in [0, 1] and only where it is asked and something can be measured,
        as a mean over the validation sets. `score` is their mean, in which `random_spans` counts
        the other way round.
    """
    found = {name: measure_accuracy(black_box, part) for name, part in validation.items()}
    goals = [float(np.mean(list(found.values())))]
    marked = [part for part in validation.values() if any(text.rationale for text in part)]
    if picks and marked:
        measured = [measure_rationale(black_box, part)["auprc"] for part in marked]
        found["rationale_auprc"] = float(np.mean(measured))
        goals.append(found["rationale_auprc"])
    turned = [measure_neutral(black_box, part, seed) for part in marked] if neutral else []
    for name in ("without_rationale", "random_spans"):
        shares = [share for part in turned if (share := part[name]) is not None]
        if shares:
            found[name] = float(np.mean(shares))
            goals.append(found[name] if name == "without_rationale" else 1 - found[name])
    return {**found, "score": float(np.mean(goals))}


def measure_accuracy(
    black_box: HuggingFaceBlackBox, documents: Sequence[LabelledDocument]
) -> float:
    """Returns the share of documents whose predicted class is the gold one."""
    predicted = black_box.logits([part.document for part in documents]).argmax(axis=1)
    return float(np.mean(predicted == [part.label for part in documents]))


def make_batches(
    black_box: HuggingFaceBlackBox,
    documents: Sequence[LabelledDocument],
    settings: Optimization,
    mask_share: float,
    seed: int,
    epoch: int,
    copies: Copies = NO_COPIES,
    findings: Mapping[str, Finding] = NO_FINDINGS,
    *,
    marks: bool = False,
    emphasis: float = 1.0,
) -> list[LabelledBatch]:
    """Draws one window per document and groups rows of like length, in random order.

    With `marks` the batches say what people marked, for a rationale layer; see `Feedback` for
    `emphasis`.
    """
    rng = np.random.default_rng((seed, epoch))
    draws = copies != NO_COPIES  # else the random numbers stay those of a run without copies
    classes = len(black_box.labels)
    rows: list[IntArray] = []
    targets: list[FloatArray] = []
    marked: list[npt.NDArray[np.float32]] = []
    counts: list[npt.NDArray[np.float32]] = []
    for part in documents:
        window = part.document.windows[rng.integers(len(part.document.windows))]
        keep, target = None, np.eye(classes)[part.label]
        finding = findings.get(part.document.text)
        against = finding if emphasis == 1 else None  # findings serve one purpose at a time
        copy = draw_copy(part, window, copies, classes, rng, against) if draws else None
        if copy is not None:
            keep, target = copy.keep, copy.target
        elif rng.random() < mask_share:
            keep = rng.random(len(part.document.words)) >= rng.random()
        ids = window.input_ids
        rows.append(ids if keep is None else black_box.encoder.masked_ids(window, keep))
        targets.append(target)
        if marks:
            marked.append(piece_targets(part, window, keep))
            counts.append(piece_emphasis(window, finding, emphasis))
    every = torch.tensor(np.array(targets, dtype=np.float32))
    if not draws:
        every = every.argmax(1)
    batches = []
    for group in group_by_length([len(row) for row in rows], settings, rng):
        longest = bucket_length(max(len(rows[row]) for row in group))
        ids, mask = pad_rows([rows[row] for row in group], longest, black_box.encoder.pad_id)
        batches.append(
            LabelledBatch(
                torch.from_numpy(ids),
                torch.from_numpy(mask),
                every[group],
                rationale=_pad([marked[row] for row in group], longest) if marks else None,
                labels=torch.tensor([documents[row].label for row in group]) if marks else None,
                emphasis=_pad([counts[row] for row in group], longest) if emphasis != 1 else None,
            )
        )
    return batches


def _pad(rows: Sequence[npt.NDArray[np.float32]], length: int) -> Tensor | None:
    """Pads values of pieces with NaN; None where nothing is known of any row."""
    padded = np.full((len(rows), length), np.nan, dtype=np.float32)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return None if np.isnan(padded).all() else torch.from_numpy(padded)


def group_by_length(
    lengths: Sequence[int], settings: Optimization, rng: np.random.Generator
) -> list[list[int]]:
    """Shuffles rows into batches of like length.

    Sorting everything would make batches of one kind of text; rows are sorted inside shuffled
    pools of some fifty batches instead, which leaves little padding and keeps the mixture.
    """
    order = rng.permutation(len(lengths))
    pool = 50 * settings.batch_rows
    groups: list[list[int]] = []
    for first in range(0, len(order), pool):
        group: list[int] = []
        for row in sorted(order[first : first + pool], key=lambda row: lengths[row]):
            longest = bucket_length(lengths[row])  # sorted: the newest row is the longest
            full = len(group) >= settings.batch_rows
            if group and (full or (len(group) + 1) * longest > settings.batch_tokens):
                groups.append(group)
                group = []
            group.append(int(row))
        groups.append(group)
    return [groups[row] for row in rng.permutation(len(groups))]
