"""Fine-tunes a classifier on windows of labelled texts, optionally with words masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.text import FloatArray, IntArray, bucket_length, pad_rows
from training.blackbox.copies import LabelledDocument, draw_copy
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.config import NO_COPIES, Copies, Optimization
from training.data.example import Example
from training.data.rationale import word_ranges
from training.loop import Loop, Progress


@dataclass(frozen=True)
class LabelledBatch:
    """Rows of ids padded to one length, int64 [rows, tokens], and targets.

    Targets are classes, int64 [rows], or where copies are drawn their probabilities, float32
    [rows, classes].
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor


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
    seed: int,
    folder: Path,
) -> Progress:
    """Fine-tunes in place; the best epoch by mean validation accuracy is kept.

    An epoch visits one random window of each document. In a share of each batch, words are
    replaced by the mask token at a rate drawn from U(0, 1) per row, so that a masked text is
    nothing unusual to the classifier and masking-based explanations measure the words, not
    the surprise (Madsen et al., 2024, masked fine-tuning).

    Args:
        black_box: fitted in place.
        train: repeated entries are visited repeatedly.
        validation: accuracy is computed for each of these over whole documents.
        settings: of the loop.
        mask_share: in [0, 1].
        copies: see `Copies`; by default none.
        seed: of order, windows, masks and dropout.
        folder: for the checkpoint of a run that may be killed.
    """

    def validate() -> dict[str, float]:
        accuracy = {name: measure_accuracy(black_box, part) for name, part in validation.items()}
        return {**accuracy, "score": float(np.mean(list(accuracy.values())))}

    def loss(batch: LabelledBatch) -> Tensor:
        output = black_box.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return functional.cross_entropy(output.logits.float(), batch.targets)

    black_box.precision = settings.precision
    return Loop(
        module=black_box.model,
        batches=lambda epoch: make_batches(
            black_box, train, settings, mask_share, seed, epoch, copies
        ),
        loss=loss,
        validate=validate,
        settings=settings,
        folder=folder,
        seed=seed,
        what="black box",
    ).run()


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
) -> list[LabelledBatch]:
    """Draws one window per document and groups rows of like length, in random order."""
    rng = np.random.default_rng((seed, epoch))
    draws = copies != NO_COPIES  # else the random numbers stay those of a run without copies
    classes = len(black_box.labels)
    rows: list[IntArray] = []
    targets: list[FloatArray] = []
    for part in documents:
        window = part.document.windows[rng.integers(len(part.document.windows))]
        ids, target = window.input_ids, np.eye(classes)[part.label]
        copy = draw_copy(part, window, copies, classes, rng) if draws else None
        if copy is not None:
            ids, target = black_box.encoder.masked_ids(window, copy.keep), copy.target
        elif rng.random() < mask_share:
            keep = rng.random(len(part.document.words)) >= rng.random()
            ids = black_box.encoder.masked_ids(window, keep)
        rows.append(ids)
        targets.append(target)
    every = torch.tensor(np.array(targets, dtype=np.float32))
    if not draws:
        every = every.argmax(1)
    batches = []
    for group in group_by_length([len(row) for row in rows], settings, rng):
        longest = max(len(rows[row]) for row in group)
        ids, mask = pad_rows(
            [rows[row] for row in group], bucket_length(longest), black_box.encoder.pad_id
        )
        batches.append(LabelledBatch(torch.from_numpy(ids), torch.from_numpy(mask), every[group]))
    return batches


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
