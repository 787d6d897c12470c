"""Going on from a black box that was trained before."""

import dataclasses

import numpy as np
import pytest
import torch

from models.text import TextEncoder
from training.blackbox.build import new_black_box
from training.blackbox.cnn import CnnConfig, CnnForSequenceClassification
from training.blackbox.evidence import SILENT, WORTH
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.source import BlackBoxSource
from training.blackbox.vocabulary import SPECIAL_TOKENS, word_tokenizer
from training.config import NEUTRAL, BlackBox, Cnn, RationaleLayer
from training.data import DataError

TEXTS = ["the film was great .", "the plot was awful and very dull ."]
VOCABULARY = [*SPECIAL_TOKENS, *sorted({word for text in TEXTS for word in text.split()})]


@pytest.fixture
def settings(black_box, tmp_path):
    black_box.save(tmp_path / "trained")
    return BlackBox(
        architecture="trained", checkpoint=str(tmp_path / "trained"), max_tokens=24, overlap=6
    )


def small_cnn():
    torch.manual_seed(0)
    config = CnnConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=4,
        channels=(6,),
        kernels=(3,),
        id2label={0: "NEG", 1: "POS"},
    )
    encoder = TextEncoder(word_tokenizer(VOCABULARY[3:]), max_tokens=24, overlap=6)
    return HuggingFaceBlackBox(CnnForSequenceClassification(config), encoder, ("NEG", "POS"))


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


def test_words_of_a_cnn_begin_to_vote(settings, black_box, tmp_path):
    voting = dataclasses.replace(settings, cnn=Cnn(pooling="evidence"))
    with pytest.raises(DataError, match="is no cnn: start from its encoder"):
        new_black_box(voting, black_box.labels, [])
    plain = small_cnn()
    plain.save(tmp_path / "cnn")
    voting = dataclasses.replace(voting, checkpoint=str(tmp_path / "cnn"))
    found = new_black_box(voting, plain.labels, [])
    document = found.encoder.encode(TEXTS[0])
    states = found.model(
        input_ids=torch.from_numpy(document.windows[0].input_ids)[None], output_hidden_states=True
    ).hidden_states[-1]
    says = states @ plain.model.classifier.weight.T + SILENT
    expected = WORTH * says.sigmoid().sum(1)
    np.testing.assert_allclose(
        found.logits([document]), expected.detach().numpy(), atol=1e-5, rtol=0
    )
    wider = new_black_box(voting, (*plain.labels, NEUTRAL), [])
    assert np.abs(logits(wider)[:, 2]).max() < 0.01  # no word votes for it yet
    longer = new_black_box(dataclasses.replace(voting, max_tokens=900), plain.labels, [])
    assert longer.encoder.max_tokens == 900  # a convolution has no longest text
    found.save(tmp_path / "voting")
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path / "voting"), None)
    np.testing.assert_array_equal(logits(again), logits(found))


def test_votes_keep_the_power_that_they_were_trained_with(settings, tmp_path):
    small_cnn().save(tmp_path / "cnn")
    voting = dataclasses.replace(settings, cnn=Cnn(pooling="evidence"))

    def go_on(name, power):
        wanted = dataclasses.replace(
            voting, checkpoint=str(tmp_path / name), rationale=RationaleLayer(power=power)
        )
        return new_black_box(wanted, small_cnn().labels, [])

    cubed = go_on("cnn", 3.0)
    cubed.save(tmp_path / "cubed")
    again = go_on("cubed", 3.0)
    assert again.model.config.vote_power == again.model.evidence.power == 3
    np.testing.assert_array_equal(logits(again), logits(cubed))
    assert np.abs(logits(go_on("cnn", 1.0)) - logits(cubed)).max() > 0.01
    np.testing.assert_array_equal(logits(go_on("cubed", 1.0)), logits(cubed))  # not given
    with pytest.raises(DataError, match=r"to the power 3\.0: leave rationale\.power out") as no:
        go_on("cubed", 2.0)
    assert "\n" not in str(no.value)
    voting = dataclasses.replace(voting, cnn=Cnn())
    assert go_on("cubed", 3.0).model.evidence.power == 3
    with pytest.raises(DataError, match=r"to the power 3\.0"):
        go_on("cubed", 2.0)
    with pytest.raises(DataError, match="no word votes there"):
        go_on("cnn", 2.0)


@pytest.mark.parametrize("power", [1.0, 2.0, 5.0])
def test_a_neutral_class_that_nobody_votes_for_can_be_learnt(power, settings, tmp_path):
    small_cnn().save(tmp_path / "cnn")
    voting = dataclasses.replace(
        settings, cnn=Cnn(pooling="evidence"), checkpoint=str(tmp_path / "cnn"),
        rationale=RationaleLayer(power=power),
    )  # fmt: skip
    found = new_black_box(voting, (*small_cnn().labels, NEUTRAL), [])
    document = found.encoder.encode(TEXTS[0])
    ids = torch.from_numpy(document.windows[0].input_ids)[None]
    answer = found.model(input_ids=ids).logits[0, -1]
    assert 0 < answer < 0.01
    answer.backward()
    assert found.model.classifier.bias.grad[-1] > 1e-5


def test_attention_is_added_to_a_cnn_and_changes_nothing_yet(settings, black_box, tmp_path):
    attentive = dataclasses.replace(settings, cnn=Cnn(attention_heads=3))
    with pytest.raises(DataError, match="is no cnn: leave attention_heads out"):
        new_black_box(attentive, black_box.labels, [])
    plain = small_cnn()
    plain.save(tmp_path / "cnn")
    attentive = dataclasses.replace(attentive, checkpoint=str(tmp_path / "cnn"))
    found = new_black_box(attentive, plain.labels, [])
    np.testing.assert_array_equal(logits(found), logits(plain))
    with torch.no_grad():
        found.model.attention.output.bias.fill_(1)
    assert np.abs(logits(found) - logits(plain)).max() > 1e-3
    found.save(tmp_path / "attentive")
    again = dataclasses.replace(attentive, checkpoint=str(tmp_path / "attentive"))
    np.testing.assert_array_equal(logits(new_black_box(again, plain.labels, [])), logits(found))
    other = dataclasses.replace(again, cnn=Cnn(attention_heads=2))
    with pytest.raises(DataError, match="has 3 attention heads, for always: ask for the same"):
        new_black_box(other, plain.labels, [])
    other = dataclasses.replace(again, cnn=Cnn(attention_heads=3, attention="feedback"))
    with pytest.raises(DataError, match="for always: ask for the same"):
        new_black_box(other, plain.labels, [])
    other = dataclasses.replace(attentive, cnn=Cnn(attention_heads=4))
    with pytest.raises(DataError, match="has 6 features: give a divisor"):
        new_black_box(other, plain.labels, [])


def test_other_classes_are_refused(settings):
    with pytest.raises(DataError, match="give them the same labels in the same order"):
        new_black_box(settings, ("POS", "NEG"), [])


def test_a_function_cannot_be_trained(settings):
    function = dataclasses.replace(settings, checkpoint="json:loads")
    with pytest.raises(DataError, match="cannot be trained: give a bundle"):
        new_black_box(function, ("NEG", "POS"), [])
