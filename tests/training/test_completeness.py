"""What the contributions of the teachers that look into a torch model sum to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from training.attribution import deep_shap, gradient, integrated_gradients, lrp
from training.attribution.embeddings import embed, frozen
from training.attribution.propagation import Propagation
from training.blackbox.huggingface import HuggingFaceBlackBox

LONG = "the ending was dull and i hated it , but the music was moving . " * 3
TEXTS = ["A great film , but the ending was dull .", "dull", LONG, "quux dull , and quux great"]
SMALL: Any = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
NETWORKS: dict[str, Callable[..., PreTrainedConfig]] = {
    "bert": lambda **kind: BertConfig(**SMALL, **kind),
    "bert gelu_new": lambda **kind: BertConfig(hidden_act="gelu_new", **SMALL, **kind),
    "roberta": lambda **kind: RobertaConfig(**SMALL, **kind),
    "distilbert": lambda **kind: DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, **kind
    ),
}


def explain(black_box, texts, teacher, *, target=1, budget=0):
    documents = [black_box.encoder.encode(text) for text in texts]
    targets = np.full(len(texts), target)
    return teacher.attribute(black_box, documents, targets, budget=budget, seed=0)


@pytest.fixture
def make_network(black_box):
    """Random transformers with weights so large that every word counts, biases too."""

    def make(name="bert", classes=2, attention="sdpa"):
        config = NETWORKS[name](
            vocab_size=black_box.encoder.tokenizer.get_vocab_size(),
            max_position_embeddings=64,
            num_labels=classes,
            pad_token_id=black_box.encoder.pad_id,
        )
        torch.manual_seed(4)
        model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(16)
                else:
                    parameter.add_(torch.randn_like(parameter) / 10)
        return HuggingFaceBlackBox(model, black_box.encoder, tuple("ABC"[:classes]))

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_deep_shap_is_complete(network, classes, attention, make_network):
    black_box = make_network(network, classes, attention)
    for record in explain(black_box, TEXTS, deep_shap.TEACHER, target=classes - 1):
        gap = record.value - record.null_value
        assert abs(gap) > 5e-3
        assert record.weights.sum() == pytest.approx(gap, rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("classes", [2, 3])
def test_integrated_gradients_are_complete(classes, attention, make_network):
    black_box = make_network("bert", classes, attention)
    for record in explain(black_box, TEXTS[::2], integrated_gradients.TEACHER, budget=302):
        assert record.weights.sum() == pytest.approx(record.value - record.null_value, rel=0.01)


@pytest.mark.parametrize("teacher", [integrated_gradients.TEACHER, deep_shap.TEACHER])
def test_the_lively_model_is_explained_in_full(teacher, lively_black_box):
    for record in explain(lively_black_box, TEXTS, teacher, budget=302):
        gap = record.value - record.null_value
        assert abs(gap) > 0.02
        assert record.weights.sum() == pytest.approx(gap, rel=0.01)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_relevance_and_what_biases_absorb_sum_to_the_difference(
    network, classes, attention, make_network
):
    """Euler's theorem: the linear model is homogeneous in embeddings and constants together."""
    black_box = make_network(network, classes, attention)
    document = black_box.encoder.encode(LONG)
    with frozen(black_box.model):
        batch = embed(black_box, [document], np.array([1]))
        relevances = lrp.relevances(batch, 0)
        inputs = batch.full.clone().requires_grad_()
        constants = [
            parameter.requires_grad_()
            for name, parameter in black_box.model.named_parameters()
            if name.endswith("bias") or "position_embed" in name or "token_type_embed" in name
        ]
        with Propagation(lrp.LrpRules()):
            value = batch.value(inputs, batch.mask, batch.targets)
        # Those of queries and keys have no effect but the attention weights: zero.
        grads = torch.autograd.grad(value.sum(), [inputs, *constants], materialize_grads=True)
    torch.testing.assert_close(relevances, (inputs * grads[0]).detach(), atol=1e-6, rtol=1e-4)
    absorbed = sum((part * by).sum().item() for part, by in zip(constants, grads[1:], strict=True))
    z = black_box.logits([document])[0]
    p = np.exp(z) / (np.exp(z).sum() - np.exp(z[1])) * (np.arange(classes) != 1)
    assert float(relevances.sum()) + absorbed == pytest.approx(z[1] - p @ z, rel=1e-4, abs=1e-4)
    assert abs(absorbed) > 0.02  # else the relevances alone would do
    plain = gradient.multiply(batch, 0)
    assert float(plain.sum()) != pytest.approx(float(relevances.sum()), rel=0.01)


@pytest.mark.parametrize("teacher", [lrp.TEACHER, deep_shap.TEACHER])
def test_rules_run_in_full_precision(teacher, make_network):
    """Slopes are quotients of small differences, of which bfloat16 keeps two digits or none."""
    black_box = make_network()
    [expected] = explain(black_box, TEXTS[:1], teacher)
    [own] = explain(black_box, TEXTS[:1], gradient.TEACHER)
    black_box.precision = "bf16"
    [record] = explain(black_box, TEXTS[:1], teacher)
    np.testing.assert_allclose(record.weights, expected.weights, atol=1e-6)
    [rounded] = explain(black_box, TEXTS[:1], gradient.TEACHER)
    assert np.abs(rounded.weights - own.weights).max() > 1e-4  # the others take the fast way
