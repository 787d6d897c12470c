"""The teachers that look into a torch model; their sums: test_completeness.py."""

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import DeepLift
from torch import nn

from training.attribution import deep_shap, gradient, integrated_gradients, lrp
from training.attribution.embeddings import EmbeddingTeacher, embed, frozen, group_by_shape
from training.attribution.record import PREDICTED
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.protocol import log_odds

TEXT = "A great film , but the ending was dull and the plot was great ."
SPELLED = "quux dull , and quux great"  # quux has four pieces
LONG = "the ending was dull and i hated it , but the music was moving . " * 3
TEXTS = [TEXT, "dull", LONG, SPELLED]
MODULES = {"gradient": gradient, "integrated_gradients": integrated_gradients}
MODULES |= {"lrp": lrp, "deep_shap": deep_shap}
BUDGETS = {"gradient": 0, "integrated_gradients": 8, "lrp": 0, "deep_shap": 0}


def explain(black_box, texts, name, *, targets=1, budget=None):
    documents = [black_box.encoder.encode(text) for text in texts]
    targets = np.broadcast_to(np.int64(targets), len(texts))
    budget = BUDGETS[name] if budget is None else budget
    return MODULES[name].TEACHER.attribute(black_box, documents, targets, budget=budget, seed=0)


def embedded(black_box, text, target=1):
    """One text in the form that the teachers' functions take."""
    return embed(black_box, [black_box.encoder.encode(text)], np.array([target]))


def to_words(document, pieces):
    """Sums over pieces and windows, [windows, tokens] to [words]."""
    weights = np.zeros(len(document.words))
    for window, values in zip(document.windows, pieces, strict=True):
        for word, value in zip(window.word_index, values, strict=False):  # padding follows
            weights[word] += value if word >= 0 else 0
    return weights


class Pooled(nn.Module):
    """A body on the sum of the embeddings of attended tokens, called as transformers' models are.

    Embeddings are multiples of 1/16, that of the mask token is zero.
    """

    def __init__(self, encoder, body):
        super().__init__()
        size = encoder.tokenizer.get_vocab_size()
        self.table = nn.Embedding(size, 4)
        drawn = torch.randint(-24, 25, (size, 4), generator=torch.Generator().manual_seed(0))
        drawn[encoder.mask_id] = 0
        self.table.load_state_dict({"weight": drawn / 16})
        self.body = body

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        embeddings = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        pooled = (embeddings * attention_mask[..., None]).sum(1)
        return SimpleNamespace(logits=self.body(pooled))


def pooled_black_box(encoder, body):
    model: Any = Pooled(encoder, body)  # has what is used of a PreTrainedModel
    return HuggingFaceBlackBox(model, encoder, ("NEG", "POS"))


@pytest.fixture
def bag_of_words(encoder):
    """Log-odds of POS: the sum over tokens of the first half embedding minus the second, + 1/8."""
    body = nn.Linear(4, 2)
    body.load_state_dict(
        {
            "weight": torch.tensor([[0.5, 0.0, 0.25, 0.0], [1.0, 0.5, -0.25, -1.0]]),
            "bias": torch.tensor([0.0, 0.125]),
        }
    )
    return pooled_black_box(encoder, body)


@pytest.fixture
def three_classes(lively_black_box, enliven):
    """A lively BERT with labels A, B and C."""
    config = copy.deepcopy(lively_black_box.model.config)
    config.num_labels = 3
    torch.manual_seed(2)
    model = type(lively_black_box.model)(config)
    enliven(model)
    return HuggingFaceBlackBox(model, lively_black_box.encoder, ("A", "B", "C"))


# Known answers


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("text", [*TEXTS, "great dull great great"])
@pytest.mark.parametrize("target", [0, 1])
def test_contributions_to_a_sum_are_found(name, text, target, bag_of_words):
    """Of repeated words each its own, of a word in two windows both, over the number of windows."""
    [record] = explain(bag_of_words, [text], name, targets=target)
    document = bag_of_words.encoder.encode(text)
    direction = np.array([0.5, 0.5, -0.5, -1.0]) * (1 if target == 1 else -1)
    table = bag_of_words.model.table.weight.detach().numpy()
    pieces = [table[window.input_ids] @ direction for window in document.windows]
    expected = to_words(document, pieces) / len(document.windows)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(record.weights, expected, atol=1e-6)
    assert record.weights.sum() == pytest.approx(record.value - record.null_value, abs=1e-5)


def test_long_texts_have_several_windows(bag_of_words, black_box):
    assert len(bag_of_words.encoder.encode(LONG).windows) > 2
    assert len(black_box.encoder.encode(LONG).windows) > 1


def test_deep_shap_is_deep_lift_where_that_has_rules(encoder):
    torch.manual_seed(1)
    layers = (nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    black_box = pooled_black_box(encoder, nn.Sequential(*layers))
    [record] = explain(black_box, [SPELLED], "deep_shap")
    document = encoder.encode(SPELLED)
    batch = embedded(black_box, SPELLED)

    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = copy.deepcopy(black_box.model).double()

        def forward(self, embeddings):
            logits = self.model(inputs_embeds=embeddings, attention_mask=batch.mask[0]).logits
            return logits[:, 1] - logits[:, 0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeepLift warns of the hooks that it sets
        pieces = DeepLift(Difference()).attribute(batch.full[0].double(), batch.null[0].double())
    expected = to_words(document, pieces.sum(-1).detach().numpy())
    np.testing.assert_allclose(record.weights, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0.05


def steps_by_hand(batch, model, points):
    """Mean gradient of the difference of logits at some shares of the way from null to full."""
    total = torch.zeros_like(batch.full[0])
    for point in points:
        place = (batch.null + point * (batch.full - batch.null))[0].requires_grad_()
        logits = model(inputs_embeds=place, attention_mask=batch.mask[0]).logits.mean(0)
        total += torch.autograd.grad(logits[1] - logits[0], place)[0]
    return total / len(points)


@pytest.mark.parametrize("text", [SPELLED, LONG])
def test_gradients_by_hand(text, lively_black_box):
    """Also: a word weighs the sum over its pieces and windows."""
    document, batch = lively_black_box.encoder.encode(text), embedded(lively_black_box, text)
    model = lively_black_box.model
    pieces = (batch.full[0] * steps_by_hand(batch, model, [1.0])).sum(-1)
    [record] = explain(lively_black_box, [text], "gradient")
    np.testing.assert_allclose(record.weights, to_words(document, pieces), atol=1e-5)
    for steps in (1, 2, 6):
        middles = [(step + 0.5) / steps for step in range(steps)]
        pieces = ((batch.full - batch.null)[0] * steps_by_hand(batch, model, middles)).sum(-1)
        [record] = explain(lively_black_box, [text], "integrated_gradients", budget=steps + 2)
        np.testing.assert_allclose(record.weights, to_words(document, pieces), atol=1e-5)
    assert np.abs(record.weights).max() > 5e-3


# Targets


@pytest.mark.parametrize("name", MODULES)
def test_the_other_class_turns_every_sign(name, lively_black_box):
    [pos], [neg] = (explain(lively_black_box, [TEXT], name, targets=target) for target in (1, 0))
    assert (pos.target, neg.target, pos.teacher) == (1, 0, name)
    np.testing.assert_allclose(neg.weights, -pos.weights, atol=1e-6)
    odds = log_odds(lively_black_box.logits([lively_black_box.encoder.encode(TEXT)]), 1)
    assert pos.value == pytest.approx(odds[0], abs=1e-6) == -neg.value
    assert pos.null_value == pytest.approx(-neg.null_value)


@pytest.mark.parametrize("name", MODULES)
def test_the_predicted_class_is_explained_unless_another_is_asked_for(name, three_classes):
    black_box = three_classes
    documents = [black_box.encoder.encode(text) for text in TEXTS]
    expected = black_box.logits(documents).argmax(1)
    asked = np.where(np.arange(4) % 2 == 0, PREDICTED, (expected + 1) % 3)
    records = explain(black_box, TEXTS, name, targets=asked)
    resolved = np.where(asked == PREDICTED, expected, asked)
    assert [record.target for record in records] == resolved.tolist()
    assert len(set(resolved.tolist())) > 1
    for text, target, record in zip(TEXTS, resolved, records, strict=True):
        [alone] = explain(black_box, [text], name, targets=target)
        np.testing.assert_allclose(record.weights, alone.weights, atol=1e-5, rtol=0)


# Nothing else changes a result, and nothing is changed


@pytest.mark.parametrize("name", MODULES)
def test_a_text_gets_its_result_in_any_company(name, lively_black_box):
    black_box = lively_black_box
    together = explain(black_box, TEXTS, name)
    backwards = explain(black_box, TEXTS[::-1], name)[::-1]
    for text, *records in zip(TEXTS, together, backwards, strict=True):
        [alone] = explain(black_box, [text], name)
        assert np.abs(alone.weights).max() > 5e-3
        for record in records:
            np.testing.assert_allclose(record.weights, alone.weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODULES)
def test_padding_changes_nothing(name, lively_black_box):
    black_box = lively_black_box
    batch = embedded(black_box, TEXT)
    padded = replace(
        batch,
        full=nn.functional.pad(batch.full, (0, 0, 0, 16), value=0.5),
        null=nn.functional.pad(batch.null, (0, 0, 0, 16), value=-0.25),
        mask=nn.functional.pad(batch.mask, (0, 16)),
    )
    with frozen(black_box.model):
        expected, found = (
            MODULES[name].TEACHER.explain(texts, 8).sum(-1) for texts in (batch, padded)
        )
    torch.testing.assert_close(found[..., :-16], expected, atol=1e-5, rtol=0)
    assert not found[..., -16:].any()
    assert expected.abs().max() > 5e-3


@pytest.mark.parametrize("name", MODULES)
def test_the_model_is_left_as_it_was(name, lively_black_box):
    """In training mode with some weights frozen; dropout is off while it is explained."""
    black_box = lively_black_box
    [expected] = explain(black_box, [TEXT], name)
    model = black_box.model.train()
    assert model.config.hidden_dropout_prob > 0
    model.bert.encoder.layer[0].eval()
    model.bert.embeddings.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    document = black_box.encoder.encode(TEXT)
    ids = document.windows[0].input_ids.copy()
    targets = np.array([PREDICTED])
    [record] = MODULES[name].TEACHER.attribute(
        black_box, [document], targets, budget=BUDGETS[name], seed=0
    )
    assert (record.value, record.null_value) == (
        pytest.approx(expected.value if record.target else -expected.value),
        pytest.approx(expected.null_value if record.target else -expected.null_value),
    )
    np.testing.assert_allclose(
        record.weights if record.target else -record.weights, expected.weights, atol=1e-6
    )
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert document.windows[0].input_ids.tolist() == ids.tolist()
    assert targets.tolist() == [PREDICTED]


def test_the_model_is_left_as_it_was_when_explaining_fails(black_box):
    def fail(batch, budget):
        assert not any(part.requires_grad for part in black_box.model.parameters())
        raise RuntimeError("out of memory")

    document = black_box.encoder.encode(TEXT)
    teacher = EmbeddingTeacher("failing", fail, lambda budget: 3)
    black_box.model.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        teacher.attribute(black_box, [document], np.array([1]), budget=0, seed=0)
    assert all(part.requires_grad for part in black_box.model.parameters())
    assert all(module.training for module in black_box.model.modules())


# Records and refusals


@pytest.mark.parametrize("name", MODULES)
def test_records(name, lively_black_box):
    document = lively_black_box.encoder.encode("great \x00 film")
    [record] = explain(lively_black_box, [document.text], name)
    teacher = MODULES[name].TEACHER
    spent = {"gradient": 3, "integrated_gradients": 8, "lrp": 3, "deep_shap": 4}[name]
    assert (record.id, record.teacher, teacher.name, record.seed) == ("", name, name, 0)
    assert record.budget == teacher.spent(document, BUDGETS[name]) == spent
    assert (record.values.size, record.values.dtype, record.eps) == (0, np.float64, None)
    assert record.weights.dtype == np.float64
    assert record.weights[[0, 2]].all()
    assert record.weights[1] == 0  # has no pieces
    assert teacher.halves(document, record) is None


def test_integrated_gradients_spend_their_budget(lively_black_box):
    document = lively_black_box.encoder.encode(TEXT)
    assert integrated_gradients.TEACHER.spent(document, 20) == 20
    for ask in (
        lambda: integrated_gradients.TEACHER.spent(document, 2),
        lambda: explain(lively_black_box, [TEXT], "integrated_gradients", budget=2),
    ):
        with pytest.raises(
            ValueError, match=r"^integrated_gradients needs a budget of at least 3, not 2$"
        ):
            ask()


@pytest.mark.parametrize("name", MODULES)
def test_a_black_box_that_is_not_torch_is_refused(name, linear_black_box):
    with pytest.raises(
        ValueError, match=rf"^{name} needs a torch black box: a bundle or a checkpoint$"
    ):
        explain(linear_black_box, [TEXT], name)


def test_documents_of_many_shapes_are_grouped(lively_black_box):
    texts = [*TEXTS, TEXT, "great", LONG]
    documents = [lively_black_box.encoder.encode(text) for text in texts]
    groups = group_by_shape(documents, 8192)
    assert sorted(row for group in groups for row in group) == list(range(7))
    assert len(groups) < 7
    for group in groups:
        assert len({len(documents[row].windows) for row in group}) == 1
        assert len({len(documents[row].windows[0].input_ids) // 8 for row in group}) == 1
    assert [len(group) for group in group_by_shape(documents, 1)] == [1] * 7
