"""Mistakes that published code of this kind has made; each test would catch one of them.

Gold labels that are explained: test_attribute_command.py. Dropout, padding and signs of the
teachers that look into a network: test_gradients.py too.
"""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from training.attribution.record import PREDICTED
from training.attribution.teachers import TEACHERS, teacher_named
from training.blackbox.callable import CallableBlackBox
from training.blackbox.protocol import log_odds

TEXT = "A great film , but the ending was dull and the plot was great ."
LONG = "the ending was dull and i hated it , but the music was moving . " * 3
BUDGETS = {
    "occlusion": 0, "gradient": 0, "integrated_gradients": 12, "lrp": 0, "lime": 60,
    "kernel_shap": 60, "permutation_shap": 70, "deep_shap": 0,
}  # fmt: skip
MASKING = ("occlusion", "lime", "kernel_shap", "permutation_shap")
SHAPLEY = ("kernel_shap", "permutation_shap", "deep_shap")


def explain(black_box, texts, name, *, targets=PREDICTED):
    documents = [black_box.encoder.encode(text) for text in texts]
    targets = np.broadcast_to(np.int64(targets), len(texts))
    teacher = teacher_named(name)
    return teacher.attribute(black_box, documents, targets, budget=BUDGETS[name], seed=0)


def test_every_teacher_is_held_to_this():
    assert set(BUDGETS) == set(TEACHERS)


@pytest.mark.parametrize("name", MASKING)
def test_another_class_than_the_predicted_one(name, linear_black_box):
    """Published occlusion and gradients explain the gold label."""
    texts = ["great dull dull great", "dull", "loved", "the boring great"]
    found = explain(linear_black_box, texts, name)
    assert [record.target for record in found] == [1, 0, 1, 1]
    for record, text in zip(found, texts, strict=True):
        document = linear_black_box.encoder.encode(text)
        assert record.value > 0  # more likely than not
        [again] = explain(linear_black_box, [text], name, targets=record.target)
        assert again.weights.tolist() == record.weights.tolist()
        odds = log_odds(linear_black_box.logits([document]), record.target)
        assert record.value == odds[0]


@pytest.mark.parametrize("name", TEACHERS)
def test_another_class_than_the_predicted_one_of_a_network(name, lively_black_box):
    texts = [TEXT, LONG, "dull", "great", "quux , weak and wonderful", "boring !"]
    documents = [lively_black_box.encoder.encode(text) for text in texts]
    with torch.no_grad():  # so that both classes are predicted
        odds = np.diff(lively_black_box.logits(documents))
        lively_black_box.model.classifier.bias[1] -= float(np.median(odds))
    expected = lively_black_box.logits(documents).argmax(1)
    assert {*expected.tolist()} == {0, 1}
    found = explain(lively_black_box, texts, name)
    assert [record.target for record in found] == expected.tolist()
    again = explain(lively_black_box, texts, name, targets=expected)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
        assert one.value > 0


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize(
    ("text", "target"), [("great film of the story", 1), ("dull film of the story", 0)]
)
def test_a_wrong_sign(name, text, target, linear_black_box):
    """What speaks for the label is positive, whichever label it is."""
    [record] = explain(linear_black_box, [text], name)
    assert record.target == target
    assert record.weights[0] > 0.3
    assert record.weights[1] == pytest.approx(0, abs=0.2 if name == "lime" else 1e-9)
    [other] = explain(linear_black_box, [text], name, targets=1 - target)
    assert other.weights[0] < -0.3


@pytest.mark.parametrize("name", TEACHERS)
def test_a_made_up_null_value(name, lively_black_box):
    """It is the answer to the text with every word masked, not 0, nor the log of 1."""
    for record, text in zip(
        explain(lively_black_box, [TEXT, LONG], name, targets=1), [TEXT, LONG], strict=True
    ):
        document = lively_black_box.encoder.encode(text)
        nothing = [np.zeros(len(document.words), dtype=bool)]
        expected = log_odds(lively_black_box.logits([document], nothing), 1)[0]
        assert abs(expected) > 1e-3
        assert record.null_value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", SHAPLEY)
def test_a_sum_that_is_not_the_gap(name, lively_black_box):
    """What the wrong null value does to Shapley values."""
    tolerance = 1e-9 if name in MASKING else 1e-4
    for record in explain(lively_black_box, [TEXT, LONG, "dull"], name):
        gap = record.value - record.null_value
        assert abs(gap) > 1e-3
        assert record.weights.sum() == pytest.approx(gap, abs=tolerance)


@pytest.mark.parametrize("name", TEACHERS)
def test_padding_that_is_attended_to(name, lively_black_box):
    """Beside a long text a short one is what it is alone."""
    [alone] = explain(lively_black_box, ["dull great film"], name)
    [_, beside, _] = explain(lively_black_box, [TEXT, "dull great film", LONG], name)
    assert np.abs(alone.weights).max() > 5e-3
    np.testing.assert_allclose(beside.weights, alone.weights, atol=1e-5, rtol=0)
    assert beside.value == pytest.approx(alone.value, abs=1e-6)


@pytest.mark.parametrize("name", MASKING)
def test_log_probabilities(name):
    """Of a sure answer log p is nearly constant; its log-odds are not."""
    values = {"great": 6.0, "fine": 3.0}

    def predict(texts):
        odds = [sum(values.get(word, 0.0) for word in text.split()) for text in texts]
        chance = 1 / (1 + np.exp(-np.array(odds)))
        return np.stack([1 - chance, chance], axis=1)

    [record] = explain(CallableBlackBox(predict), ["great and fine in the story with music"], name)
    assert record.value == pytest.approx(9, abs=1e-9)
    assert record.null_value == pytest.approx(0, abs=1e-9)
    if name == "lime":
        assert 1.5 < record.weights[0] / record.weights[2] < 2.5
    else:
        np.testing.assert_allclose(record.weights[:3], [6, 0, 3], atol=1e-6)
    chance = 1 / (1 + math.exp(-9))
    assert abs(math.log(chance)) < 1e-3  # what the published value would have been


@pytest.mark.parametrize("name", MASKING)
def test_repeated_words_that_share_a_weight(name, placed_black_box):
    """Published results are keyed by the word, so that the last one holds for all."""
    [record] = explain(placed_black_box, ["great great great great"], name, targets=1)
    np.testing.assert_allclose(
        record.weights, [1.0, -0.5, 0.25, 1.0], atol=0.25 if name == "lime" else 1e-9
    )
    assert len({*record.weights.round(6).tolist()}) >= 3


@pytest.mark.parametrize("name", TEACHERS)
def test_repeated_words_that_share_a_weight_of_a_network(name, lively_black_box):
    """A network knows places: equal words have their own weights."""
    [record] = explain(lively_black_box, ["great great great great"], name)
    assert record.weights.shape == (4,)
    assert len({*record.weights.round(7).tolist()}) == 4


@pytest.mark.parametrize("name", TEACHERS)
def test_dropout_left_on(name, lively_checkpoint, load_black_box):
    """A classifier as it comes from training is explained as it answers."""
    model = AutoModelForSequenceClassification.from_pretrained(lively_checkpoint).train()
    assert model.config.hidden_dropout_prob > 0
    black_box = load_black_box()
    [expected] = explain(black_box, [TEXT], name)
    noisy = type(black_box)(model, black_box.encoder, black_box.labels)
    for _ in range(2):
        [found] = explain(noisy, [TEXT], name)
        np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5, rtol=0)
        assert found.value == pytest.approx(expected.value, abs=1e-6)
