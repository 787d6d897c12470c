"""New black boxes, before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from models.text import TextEncoder
from training.blackbox.cnn import CnnConfig, CnnForSequenceClassification
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.mlp import MlpConfig, MlpForSequenceClassification
from training.blackbox.vocabulary import (
    SPECIAL_TOKENS,
    count_words,
    most_frequent,
    word_tokenizer,
    word_vectors,
)
from training.config import BlackBox


def new_black_box(
    settings: BlackBox, labels: Sequence[str], texts: Sequence[str]
) -> HuggingFaceBlackBox:
    """Makes the black box of a recipe, ready to be trained.

    Args:
        settings: architecture and its parameters.
        labels: names of the classes.
        texts: of training; words and their order in the vocabulary come from them.

    Raises:
        DataError: when checkpoint or vectors cannot be used.
    """
    if settings.architecture == "transformer":
        return HuggingFaceBlackBox.from_checkpoint(
            settings.checkpoint,
            labels,
            max_tokens=settings.max_tokens,
            overlap=settings.overlap,
        )
    chosen = settings.vocabulary
    words = most_frequent(count_words(texts), chosen.size, skip=chosen.skip, least=chosen.least)
    encoder = TextEncoder(
        word_tokenizer(words), max_tokens=settings.max_tokens, overlap=settings.overlap
    )
    size = len(SPECIAL_TOKENS) + len(words)
    if settings.architecture == "cnn":
        return HuggingFaceBlackBox(_new_cnn(settings, words, size, labels), encoder, labels)
    return HuggingFaceBlackBox(_new_mlp(settings, size, labels), encoder, labels)


def _new_cnn(
    settings: BlackBox, words: Sequence[str], size: int, labels: Sequence[str]
) -> CnnForSequenceClassification:
    cnn = settings.cnn
    config = CnnConfig(
        vocab_size=size,
        hidden_size=cnn.vector_size,
        channels=cnn.channels,
        kernels=cnn.kernels,
        attention_heads=cnn.attention_heads,
        dropout=cnn.dropout,
        frozen_vectors=cnn.frozen_vectors,
        max_position_embeddings=settings.max_tokens,
        **_labelled(labels),
    )
    model = CnnForSequenceClassification(config)
    vectors = word_vectors(words, cnn.vectors, cnn.vector_size)
    with torch.no_grad():  # unknown, masked and padding are nothing: zero
        model.vectors.weight.zero_()
        model.vectors.weight[len(SPECIAL_TOKENS) :] = torch.from_numpy(vectors).float()
    return model


def _new_mlp(settings: BlackBox, size: int, labels: Sequence[str]) -> MlpForSequenceClassification:
    config = MlpConfig(
        vocab_size=size,
        special_ids=len(SPECIAL_TOKENS),
        units=settings.mlp.units,
        dropout=settings.mlp.dropout,
        max_position_embeddings=settings.max_tokens,
        **_labelled(labels),
    )
    return MlpForSequenceClassification(config)


def _labelled(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: row for row, label in enumerate(labels)},
    }
