"""New black boxes, before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from models import bundle as bundles
from models.text import TextEncoder
from training.blackbox.callable import is_function_spec
from training.blackbox.cnn import CnnConfig, CnnForSequenceClassification
from training.blackbox.evidence import unheard
from training.blackbox.huggingface import WINDOWS, HuggingFaceBlackBox, longest_window
from training.blackbox.mlp import MlpConfig, MlpForSequenceClassification
from training.blackbox.rationale import RationaleConfig, RationaleForSequenceClassification
from training.blackbox.source import BlackBoxSource
from training.blackbox.vocabulary import (
    SPECIAL_TOKENS,
    count_words,
    most_frequent,
    word_tokenizer,
    word_vectors,
)
from training.config import NEUTRAL, BlackBox, Cnn
from training.data.example import DataError


def new_black_box(
    settings: BlackBox, labels: Sequence[str], texts: Sequence[str]
) -> HuggingFaceBlackBox:
    """Makes or opens the black box of a recipe, ready to be trained.

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
    if settings.architecture == "trained":
        return _go_on(settings, tuple(labels))
    if settings.architecture == "rationale":
        return _new_rationale(settings, labels)
    chosen = settings.vocabulary
    words = most_frequent(count_words(texts), chosen.size, skip=chosen.skip, least=chosen.least)
    encoder = TextEncoder(
        word_tokenizer(words), max_tokens=settings.max_tokens, overlap=settings.overlap
    )
    size = len(SPECIAL_TOKENS) + len(words)
    if settings.architecture == "cnn":
        return HuggingFaceBlackBox(_new_cnn(settings, words, size, labels), encoder, labels)
    return HuggingFaceBlackBox(_new_mlp(settings, size, labels), encoder, labels)


def _go_on(settings: BlackBox, labels: tuple[str, ...]) -> HuggingFaceBlackBox:
    """Opens a black box trained before; a neutral class that it lacks is added."""
    name = settings.checkpoint
    found = _open(name)
    model = found.model
    _add_to_cnn(model, settings, name)
    _insist_on_power(model, settings.rationale.power, name)
    if labels == (*found.labels, NEUTRAL):
        _add_class(model, name)
    elif labels != found.labels:
        raise DataError(
            f"{name} has the classes {', '.join(found.labels)}, the recipe {', '.join(labels)}: "
            "give them the same labels in the same order"
        )
    for key, value in _labelled(labels).items():
        setattr(model.config, key, value)
    return HuggingFaceBlackBox(model, _encoder_of(found, settings), labels)


def _add_to_cnn(model: Any, settings: BlackBox, name: str) -> None:
    """Adds what the recipe asks for beyond what was trained before."""
    wanted = settings.cnn
    if not isinstance(model, CnnForSequenceClassification):
        if wanted.attention_heads:
            raise DataError(f"{name} is no cnn: leave attention_heads out")
        if wanted.pooling == "evidence":
            raise DataError(f"{name} is no cnn: start from its encoder, as architecture rationale")
        return
    model.revive_attention()
    if wanted.attention_heads:
        _attend(model, wanted, name)
    if wanted.pooling == "evidence" and model.evidence is None:
        model.sum_evidence(settings.rationale.power)


def _insist_on_power(model: Any, power: float, name: str) -> None:
    """Refuses a power other than that which votes have been trained with."""
    evidence = getattr(model, "evidence", None)
    if evidence is None and power != 1:
        raise DataError(f"{name}: no word votes there: leave rationale.power out")
    if evidence is not None and power not in (1, evidence.power):
        raise DataError(
            f"{name} counts votes to the power {evidence.power}: leave rationale.power out, which "
            "keeps it"
        )


def _attend(model: CnnForSequenceClassification, wanted: Cnn, name: str) -> None:
    config = model.config
    if model.attention is None:
        if config.channels[-1] % wanted.attention_heads:
            raise DataError(
                f"{name} has {config.channels[-1]} features: give a divisor as attention_heads"
            )
        model.add_attention(wanted.attention_heads, wanted.attention)
    if (config.attention_heads, config.attention) != (wanted.attention_heads, wanted.attention):
        raise DataError(
            f"{name} has {config.attention_heads} attention heads, for {config.attention}: "
            "ask for the same, or leave attention_heads out"
        )


def _open(name: str, *, new_head: bool = False) -> HuggingFaceBlackBox:
    """Opens a torch black box; with `new_head` a bare encoder will do."""
    if is_function_spec(name):
        raise DataError(f"{name} is a function and cannot be trained: give a bundle or checkpoint")
    if new_head and not (Path(name) / bundles.MANIFEST).is_file():
        return HuggingFaceBlackBox.from_checkpoint(name, None)
    found = BlackBoxSource(name).open()
    assert isinstance(found, HuggingFaceBlackBox)
    return found


def _encoder_of(found: HuggingFaceBlackBox, settings: BlackBox) -> TextEncoder:
    """Returns a black box's tokenizer with the recipe's windows, as far as the model takes them."""
    if isinstance(found.model, (CnnForSequenceClassification, MlpForSequenceClassification)):
        found.model.config.max_position_embeddings = settings.max_tokens  # they have no positions
    return TextEncoder.from_json(
        found.encoder.to_json(),
        max_tokens=longest_window(found.model, settings.max_tokens),
        overlap=settings.overlap,
    )


def _add_class(model: Any, name: str) -> None:
    """Gives the last layer one more row, of zeros: the new class starts between the others.

    Where words vote, no word does for it.
    """
    last = getattr(model, "classifier", None)
    if not isinstance(last, nn.Linear):
        raise DataError(
            f"{name} has no linear layer `classifier` to add {NEUTRAL} to: start from its encoder"
        )
    wider = nn.Linear(last.in_features, last.out_features + 1)
    with torch.no_grad():
        for new, old in ((wider.weight, last.weight), (wider.bias, last.bias)):
            new.zero_()[: len(old)] = old
        if getattr(model, "evidence", None) is not None:
            wider.bias[-1] = unheard(model.evidence.power)
            model.evidence.add_class()
    model.classifier = wider
    model.num_labels = wider.out_features


def _new_rationale(settings: BlackBox, labels: Sequence[str]) -> HuggingFaceBlackBox:
    """Puts a fresh rationale layer and classifier on the encoder of a checkpoint or bundle."""
    found = _open(settings.checkpoint, new_head=True)
    trunk: Any = found.model.base_model
    if trunk is found.model:  # as the small models of ours
        raise DataError(f"{settings.checkpoint} has no encoder to take: give a transformer")
    encoder = _encoder_of(found, settings)
    shape = trunk.config.to_dict()
    # What belongs to the checkpoint: its folder, its own head and windows.
    for key in ("_name_or_path", "architectures", "id2label", "label2id", WINDOWS):
        shape.pop(key, None)
    inside = (encoder.encode("a").windows[0].word_index >= 0).nonzero()[0]
    config = RationaleConfig(
        trunk=AutoConfig.for_model(**shape),
        pooling=settings.rationale.pooling,
        vote_power=settings.rationale.power,
        dropout=settings.rationale.dropout,
        prefix_tokens=int(inside[0]),
        suffix_tokens=encoder.special_tokens - int(inside[0]),
        **_labelled(labels),
    )
    model = RationaleForSequenceClassification(config)
    learnt = {
        key: value for key, value in trunk.state_dict().items() if not key.startswith("pooler.")
    }
    model.trunk.load_state_dict(learnt)
    return HuggingFaceBlackBox(model, encoder, labels)


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
        attention=cnn.attention,
        pooling=cnn.pooling,
        vote_power=settings.rationale.power,
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
