"""Going on from a black box that was trained before."""

import dataclasses

import numpy as np
import pytest
import torch

from models.text import TextEncoder
from training.blackbox.build import new_black_box
from training.blackbox.cnn import OPEN, CnnConfig, CnnForSequenceClassification
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.source import BlackBoxSource
from training.blackbox.vocabulary import SPECIAL_TOKENS, word_tokenizer
from training.config import NEUTRAL, BlackBox, Cnn
from training.data import DataError

TEXTS = ["the film was great .", "the plot was awful and very dull ."]
VOCABULARY = [*SPECIAL_TOKENS, *sorted({word for text in TEXTS for word in text.split()})]


@pytest.fixture
def settings(black_box, tmp_path):
    black_box.save(tmp_path / "trained")
    return BlackBox(
        architecture="trained", checkpoint=str(tmp_path / "trained"), max_tokens=24, overlap=6
    )


def logits(black_box):
    return black_box.logits([black_box.encoder.encode(text) for text in TEXTS])


def test_a_checkpoint_goes_on_with_its_weights_and_the_recipes_windows(settings, black_box):
    found = new_black_box(settings, black_box.labels, [])
    np.testing.assert_array_equal(logits(found), logits(black_box))
    assert (found.encoder.max_tokens, found.encoder.overlap) == (24, 6)
    assert all(parameter.requires_grad for parameter in found.model.parameters())


def test_a_bundle_goes_on_too(settings, torch_bundle):
    name = str(torch_bundle.path)
    opened = BlackBoxSource(name).open()
    windows = torch_bundle.manifest.max_tokens
    same = dataclasses.replace(settings, checkpoint=name, max_tokens=windows)
    found = new_black_box(same, opened.labels, [])
    np.testing.assert_array_equal(logits(found), logits(opened))


def test_a_neutral_class_is_added_between_the_others(settings, black_box, tmp_path):
    labels = (*black_box.labels, NEUTRAL)
    found = new_black_box(settings, labels, [])
    np.testing.assert_array_equal(logits(found)[:, :-1], logits(black_box))
    assert not logits(found)[:, -1].any()
    found.save(tmp_path / "wider")
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path / "wider"), None)
    assert again.labels == labels
    np.testing.assert_array_equal(logits(again), logits(found))


def test_a_rationale_layer_is_added_to_a_cnn(settings, black_box, tmp_path):
    gated = dataclasses.replace(settings, cnn=Cnn(rationale_layer=True))
    with pytest.raises(DataError, match="is no cnn: start from its encoder"):
        new_black_box(gated, black_box.labels, [])
    config = CnnConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=4,
        channels=(6,),
        kernels=(3,),
        id2label={0: "NEG", 1: "POS"},
    )
    encoder = TextEncoder(word_tokenizer(VOCABULARY[3:]), max_tokens=24, overlap=6)
    plain = HuggingFaceBlackBox(CnnForSequenceClassification(config), encoder, ("NEG", "POS"))
    plain.save(tmp_path / "cnn")
    gated = dataclasses.replace(gated, checkpoint=str(tmp_path / "cnn"))
    found = new_black_box(gated, plain.labels, [])
    gate = 1 / (1 + np.exp(-OPEN))
    document = found.encoder.encode(TEXTS[0])
    states = found.model(
        input_ids=torch.from_numpy(document.windows[0].input_ids)[None], output_hidden_states=True
    ).hidden_states[-1]
    expected = found.model.classifier(states.amax(1) * gate)
    np.testing.assert_allclose(
        found.logits([document]), expected.detach().numpy(), atol=1e-5, rtol=0
    )
    longer = new_black_box(dataclasses.replace(gated, max_tokens=900), plain.labels, [])
    assert longer.encoder.max_tokens == 900  # a convolution has no longest text
    found.save(tmp_path / "gated")
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path / "gated"), None)
    np.testing.assert_array_equal(logits(again), logits(found))


def test_other_classes_are_refused(settings):
    with pytest.raises(DataError, match="give them the same labels in the same order"):
        new_black_box(settings, ("POS", "NEG"), [])


def test_a_function_cannot_be_trained(settings):
    function = dataclasses.replace(settings, checkpoint="json:loads")
    with pytest.raises(DataError, match="cannot be trained: give a bundle"):
        new_black_box(function, ("NEG", "POS"), [])
