"""Distills a teacher's attributions into an explainer network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from models.text import Document, FloatArray, bucket_length, merge_pieces, pad_rows
from training.attribution.record import OTHER_SHARE, Attribution
from training.blackbox.fit import group_by_length
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.config import Optimization, Student
from training.explainer.labels import five_way
from training.explainer.losses import labelling_loss, ranking_loss, regression_loss
from training.explainer.network import ExplainerNetwork, NetworkConfig, Pieces, select_states
from training.explainer.states import States
from training.loop import Loop, Progress
from training.runtime import autocast


@dataclass(frozen=True)
class Lesson:
    """A one-window document and what the teacher said of its words, float64 [words]."""

    document: Document
    target: int
    weights: FloatArray


def other_class(lesson: Lesson) -> Lesson:
    """Returns the lesson about the other of two classes, whose log-odds are the negative."""
    return Lesson(lesson.document, 1 - lesson.target, -lesson.weights)


@dataclass(frozen=True)
class LessonBatch:
    """Tensors of a batch; `pooling` [texts, words, tokens] averages pieces into words."""

    input_ids: Tensor
    attention_mask: Tensor
    target: Tensor
    pooling: Tensor
    weights: Tensor  # in units of the network's scale
    labels: Tensor
    valid: Tensor


def make_lessons(
    black_box: HuggingFaceBlackBox, texts: Mapping[str, str], attributions: Sequence[Attribution]
) -> list[Lesson]:
    """Pairs texts with their attributions.

    Raises:
        ValueError: when a text needs several windows (the teacher explains chunks).
    """
    lessons = []
    for record in attributions:
        document = black_box.encoder.encode(texts[record.id])
        if len(document.windows) > 1:
            raise ValueError(f"text {record.id} has several windows; lower chunk_tokens")
        lessons.append(Lesson(document, record.target, record.weights))
    return lessons


def distill(
    black_box: HuggingFaceBlackBox,
    train: Sequence[Lesson],
    validation: Sequence[Lesson],
    settings: Student,
    *,
    seed: int,
    folder: Path,
) -> tuple[ExplainerNetwork, Progress]:
    """Trains a new explainer; the epoch with the best validation Spearman is kept.

    Args:
        black_box: frozen; its states are the student's input.
        train: lessons of the training texts.
        validation: lessons of other texts.
        settings: architecture, losses and loop.
        seed: of initialisation, order and dropout.
        folder: for the checkpoint of a run that may be killed.
    """
    torch.manual_seed(seed)
    scale = float(np.std(np.concatenate([lesson.weights for lesson in train])))
    network = ExplainerNetwork(network_config(black_box, settings, scale))
    black_box.model.requires_grad_(False)
    states = States(black_box, network.config)
    windows = [each for lesson in (*train, *validation) for each in lesson.document.windows]
    started = time.monotonic()
    states.keep(windows, most=settings.keep_gb * 1e9)
    kept = time.monotonic() - started

    def batches(epoch: int) -> list[LessonBatch]:
        return make_batches(black_box, train, settings.fit, scale, (seed, epoch))

    def loss(batch: LessonBatch) -> Tensor:
        read = states.read(batch.input_ids, batch.attention_mask)
        return lesson_loss(network, read, batch, settings)

    def validate() -> dict[str, float]:
        found = measure_agreement(black_box, network, validation, settings.fit, states)
        if len(black_box.labels) == 2:
            others = [other_class(lesson) for lesson in validation]
            other = measure_agreement(black_box, network, others, settings.fit, states)
            found["other_class"] = other["score"]
        return found

    progress = Loop(
        module=network,
        batches=batches,
        loss=loss,
        validate=validate,
        settings=settings.fit,
        folder=folder,
        seed=seed,
        what="explainer",
    ).run()
    progress.seconds += kept
    return network, progress


def network_config(
    black_box: HuggingFaceBlackBox, settings: Student, scale: float
) -> NetworkConfig:
    """Derives the network's shape from the black box and the recipe.

    Raises:
        ValueError: when the black box shows no states to read.
    """
    config = black_box.model.config
    width = 0
    if settings.reads != "own":
        states = black_box.hidden_states(torch.zeros((1, 2), dtype=torch.int64), torch.ones(1, 2))
        if not states:
            raise ValueError('the black box shows no states of words: set explainer.reads = "own"')
        width = select_states(states, settings).shape[-1]
    return NetworkConfig(
        classes=len(black_box.labels),
        input_width=width,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        reads=settings.reads,
        layers=settings.layers,
        width=settings.width,
        blocks=settings.blocks,
        heads=settings.heads,
        dropout=settings.dropout,
        decode=settings.decode,
        scale=scale,
    )


def make_batches(
    black_box: HuggingFaceBlackBox,
    lessons: Sequence[Lesson],
    settings: Optimization,
    scale: float,
    seed: tuple[int, int],
) -> list[LessonBatch]:
    """Groups lessons of like length into shuffled batches.

    With two classes a share of the lessons, drawn anew in each epoch, is about the other class.
    Otherwise the label token would say nothing that the states do not, and "why not the other
    label?" would get the answer to another question.
    """
    rng = np.random.default_rng(seed)
    if len(black_box.labels) == 2:
        flipped = rng.random(len(lessons)) < OTHER_SHARE
        lessons = [
            other_class(lesson) if flip else lesson
            for lesson, flip in zip(lessons, flipped, strict=True)
        ]
    lengths = [len(lesson.document.windows[0].input_ids) for lesson in lessons]
    return [
        collate(black_box, [lessons[row] for row in group], scale)
        for group in group_by_length(lengths, settings, rng)
    ]


def collate(black_box: HuggingFaceBlackBox, lessons: Sequence[Lesson], scale: float) -> LessonBatch:
    """Pads lessons to one batch."""
    windows = [lesson.document.windows[0] for lesson in lessons]
    length = bucket_length(max(len(window.input_ids) for window in windows))
    ids, mask = pad_rows([window.input_ids for window in windows], length, black_box.encoder.pad_id)
    words = max(len(lesson.weights) for lesson in lessons)
    pooling = np.zeros((len(lessons), words, length), dtype=np.float32)
    weights = np.zeros((len(lessons), words), dtype=np.float32)
    labels = np.zeros((len(lessons), words), dtype=np.int64)
    for row, (lesson, window) in enumerate(zip(lessons, windows, strict=True)):
        places = np.flatnonzero(window.word_index >= 0)
        pooling[row, window.word_index[places], places] = 1.0
        weights[row, : len(lesson.weights)] = lesson.weights / scale
        labels[row, : len(lesson.weights)] = five_way(lesson.weights)
    counts = pooling.sum(2, keepdims=True)
    return LessonBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.tensor([lesson.target for lesson in lessons]),
        torch.from_numpy(pooling / np.maximum(counts, 1.0)),
        torch.from_numpy(weights),
        torch.from_numpy(labels),
        torch.from_numpy(counts[:, :, 0] > 0),  # a word without pieces cannot be learnt
    )


def lesson_loss(
    network: ExplainerNetwork, states: Tensor, batch: LessonBatch, settings: Student
) -> Tensor:
    """Weighted sum of the losses that the recipe asks for, at the level of words."""
    pieces: Pieces = network(states, batch.attention_mask, batch.target)
    total = torch.zeros(())
    if settings.regression:
        scores = _pool(batch, pieces.weights) / network.config.scale
        total = total + settings.regression * regression_loss(scores, batch.weights, batch.valid)
    if settings.ranking:
        scores = _pool(batch, pieces.ranking)
        total = total + settings.ranking * ranking_loss(scores, batch.weights, batch.valid)
    if settings.labelling:
        probabilities = torch.einsum(
            "bwt,btc->bwc", batch.pooling, pieces.label_logits.float().softmax(-1)
        )
        term = labelling_loss(probabilities, batch.labels, batch.valid)
        total = total + settings.labelling * term
    return total


def measure_agreement(
    black_box: HuggingFaceBlackBox,
    network: ExplainerNetwork,
    lessons: Sequence[Lesson],
    settings: Optimization,
    states: States,
) -> dict[str, float]:
    """Returns the mean Spearman correlation with the teacher, for each head; `score` is served.

    Texts whose weights are all equal have no rank correlation and count as 0.
    """
    heads = ("regression", "ranking", "labelling")
    found: dict[str, list[float]] = {head: [] for head in heads}
    for lesson in lessons:
        batch = collate(black_box, [lesson], network.config.scale)
        with torch.inference_mode(), autocast(settings.precision):
            read = states.read(batch.input_ids, batch.attention_mask)
            pieces = network(read, batch.attention_mask, batch.target)
        for head in heads:
            weights = network.decode(pieces, head)[0][0].double().numpy()
            words = merge_pieces(lesson.document, [weights])
            constant = np.ptp(words) == 0 or np.ptp(lesson.weights) == 0
            found[head].append(0.0 if constant else float(spearmanr(words, lesson.weights)[0]))
    means = {head: float(np.mean(values)) for head, values in found.items()}
    return {**means, "score": means[network.config.decode]}


def _pool(batch: LessonBatch, scores: Tensor) -> Tensor:
    """Averages piece scores [texts, tokens] into word scores [texts, words]."""
    return torch.einsum("bwt,bt->bw", batch.pooling, scores.float())
