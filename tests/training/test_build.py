"""Going on from a black box that was trained before."""

import dataclasses

import numpy as np
import pytest

from training.blackbox.build import new_black_box
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.source import BlackBoxSource
from training.config import NEUTRAL, BlackBox
from training.data import DataError

TEXTS = ["the film was great .", "the plot was awful and very dull ."]


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


def test_other_classes_are_refused(settings):
    with pytest.raises(DataError, match="give them the same labels in the same order"):
        new_black_box(settings, ("POS", "NEG"), [])


def test_a_function_cannot_be_trained(settings):
    function = dataclasses.replace(settings, checkpoint="json:loads")
    with pytest.raises(DataError, match="cannot be trained: give a bundle"):
        new_black_box(function, ("NEG", "POS"), [])
