"""Torch classifier and explainer to one ONNX graph, and back from a bundle."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from models.bundle import Bundle
from models.text import TextEncoder
from training.attention import written_out
from training.blackbox.cnn import CnnForSequenceClassification
from training.blackbox.huggingface import WINDOWS, HuggingFaceBlackBox
from training.explainer.network import ExplainerNetwork, NetworkConfig, select_states
from training.export.integer import dequantised_weights

OPSET = 20  # the first with a node for GELU, which ONNX Runtime joins with the bias before it
EXPLANATION_OUTPUTS = ("weights", "label_probs")


class FusedModel(nn.Module):
    """Classifier, argmax and explainer as one module, the shape of the exported graph."""

    def __init__(self, classifier: PreTrainedModel, explainer: ExplainerNetwork) -> None:
        super().__init__()
        self.vocabulary: int = classifier.config.vocab_size
        self.classifier = classifier
        self.explainer = explainer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits [B, classes], weights [B, tokens], label_probs [B, tokens, 5].

        Args:
            input_ids: int64 [B, tokens].
            attention_mask: int64 [B, tokens].
            target: int64 [B], -1 for the predicted class.
        """
        output = self.classifier(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        )
        chosen = torch.where(target < 0, output.logits.argmax(-1), target)
        config = self.explainer.config
        own = config.reads == "own"
        inputs = input_ids if own else select_states(output.hidden_states, config)
        pieces = self.explainer(inputs, attention_mask, chosen)
        weights, probabilities = self.explainer.decode(pieces)
        return output.logits, weights, probabilities


def to_onnx(fused: FusedModel) -> bytes:
    """Exports the fused module.

    Weights are stored in fp16 and computed with in fp32 (`round_weights` gives the torch module
    that the graph equals). The explainer is the branch of an `If` on the input `explain`.

    Returns:
        The serialised model: inputs input_ids, attention_mask, target, explain; outputs logits,
        weights, label_probs.
    """
    fused.eval()
    longest = fused.explainer.config.positions
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", min=2, max=longest)
    # Neither dimension may be 0 or 1 in the example, or the exporter takes it for a constant.
    example = (
        torch.full((2, 7), 5),
        torch.ones(2, 7, dtype=torch.int64),
        torch.tensor([-1, 0]),
    )
    with written_out(fused.classifier), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            fused,
            example,
            input_names=["input_ids", "attention_mask", "target"],
            output_names=["logits", *EXPLANATION_OUTPUTS],
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}, {0: batch}),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # its folding would transpose weights under new names
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    branch(model)
    _store_half(model, {name for name, _ in fused.named_parameters()})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def round_weights(module: nn.Module) -> nn.Module:
    """Rounds the weights that the graph stores in fp16, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    return module


def bundle_config(black_box: HuggingFaceBlackBox, network: ExplainerNetwork) -> dict[str, Any]:
    """Returns the content of config.json: both architectures."""
    config = json.loads(black_box.model.config.to_json_string(use_diff=False))
    # The first two differ between machines, the windows are in the manifest.
    for key in ("_name_or_path", "transformers_version", WINDOWS):
        config.pop(key, None)
    return {"classifier": config, "explainer": network.config.to_dict()}


def to_torch(bundle: Bundle) -> tuple[HuggingFaceBlackBox, ExplainerNetwork]:
    """Rebuilds both torch modules from a bundle's files; logits equal the graph's within 1e-4.

    They compute in float32 whatever the bundle's precision is, with the weights it holds: a
    graph that computes in fp16 or int8 is as far off as its precision makes it.

    Raises:
        ValueError: when the graph lacks a weight of the configured architecture.
    """
    config = dict(bundle.config["classifier"])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        classifier_config = AutoConfig.from_pretrained(folder)
    classifier = AutoModelForSequenceClassification.from_config(classifier_config)
    network = ExplainerNetwork(NetworkConfig.from_dict(bundle.config["explainer"]))
    fused = FusedModel(classifier, network)
    _load_weights(fused, onnx.load_model_from_string(bundle.model_bytes()))
    manifest = bundle.manifest
    encoder = TextEncoder.from_json(
        bundle.tokenizer_json, max_tokens=manifest.max_tokens, overlap=manifest.overlap
    )
    return HuggingFaceBlackBox(classifier, encoder, manifest.labels), network.eval()


def _load_weights(fused: FusedModel, model: onnx.ModelProto) -> None:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    integers = dequantised_weights(model.graph)
    state: Mapping[str, Tensor] = fused.state_dict()
    # With the running statistics of norms; buffers of integers are only counters and places, and
    # those that a checkpoint does not hold follow from the architecture.
    parameters = {name for name, part in state.items() if part.is_floating_point()}
    # The exporter drops what no output depends on: heads that only training reads.
    unread = {f"explainer.{name}" for name in fused.explainer.unread_parameters()}
    if isinstance(fused.classifier, CnnForSequenceClassification):
        unread |= {f"classifier.{name}" for name in fused.classifier.unread_parameters()}
    missing = sorted(parameters - set(stored) - unread)
    if missing:
        raise ValueError(f"the graph has no weight {missing[0]} ({len(missing)} are missing)")
    for name in sorted(parameters):
        if name not in stored:
            state[name].zero_()
            continue
        found = integers[name] if name in integers else numpy_helper.to_array(stored[name])
        if found.dtype == np.int8:
            raise ValueError(f"weight {name} is in bytes that nothing gives a scale")
        values = torch.from_numpy(found.astype(np.float32))
        if values.shape != state[name].shape:
            raise ValueError(f"weight {name} has shape {values.shape}, not {state[name].shape}")
        state[name].copy_(values)


def strip(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes: stack traces name this machine's folders."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    model.producer_version = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def branch(model: onnx.ModelProto) -> None:
    """Moves what only the explanation needs into the then-branch of an `If`."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}

    def ancestors(names: list[str]) -> set[str]:
        seen: set[str] = set()
        while names:
            node = producers.get(names.pop())
            if node is not None and node.output[0] not in seen:
                seen.add(node.output[0])
                names += [name for name in node.input if name]
        return seen

    always = ancestors(["logits"])
    moved = [node for node in graph.node if node.output[0] not in always]
    kept = [node for node in graph.node if node.output[0] in always]
    outputs = {value.name: value for value in graph.output}
    # Names are unique across a graph and its branches, so the branches' results get their own.
    then_nodes = [*moved]
    then_outputs: list[onnx.ValueInfoProto] = []
    else_outputs: list[onnx.ValueInfoProto] = []
    else_nodes = []
    shape = helper.make_node("Shape", ["input_ids"], ["else.shape"])
    five = helper.make_node(
        "Constant", [], ["else.five"], value=numpy_helper.from_array(np.array([5], np.int64))
    )
    wide = helper.make_node("Concat", ["else.shape", "else.five"], ["else.wide"], axis=0)
    else_nodes += [shape, five, wide]
    zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    for name, source in zip(EXPLANATION_OUTPUTS, ("else.shape", "else.wide"), strict=True):
        then_nodes.append(helper.make_node("Identity", [name], [f"then.{name}"]))
        else_nodes.append(
            helper.make_node("ConstantOfShape", [source], [f"else.{name}"], value=zero)
        )
        for prefix, found in (("then", then_outputs), ("else", else_outputs)):
            value = onnx.ValueInfoProto()
            value.CopyFrom(outputs[name])
            value.name = f"{prefix}.{name}"
            found.append(value)
    for node in then_nodes[:-2]:
        _rename(node, {name: f"inner.{name}" for name in EXPLANATION_OUTPUTS})
    for node in then_nodes[-2:]:
        node.input[0] = f"inner.{node.input[0]}"
    choose = helper.make_node(
        "If",
        ["explain"],
        list(EXPLANATION_OUTPUTS),
        name="explain",
        then_branch=helper.make_graph(then_nodes, "explained", [], then_outputs),
        else_branch=helper.make_graph(else_nodes, "label_only", [], else_outputs),
    )
    del graph.node[:]
    graph.node.extend([*kept, choose])
    graph.input.append(helper.make_tensor_value_info("explain", TensorProto.BOOL, []))


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for field in (node.input, node.output):
        for place, name in enumerate(field):
            field[place] = names.get(name, name)


def _store_half(model: onnx.ModelProto, parameters: Set[str]) -> None:
    """Stores weight matrices in fp16; a Cast restores fp32, folded away when a runtime loads.

    Only parameters: a constant of the architecture, such as a mask of -3e38, would overflow.
    """
    casts, names = [], {}
    for tensor in model.graph.initializer:
        if tensor.name in parameters and len(tensor.dims) > 1:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
            names[tensor.name] = f"{tensor.name}.fp32"
            casts.append(
                helper.make_node("Cast", [tensor.name], [names[tensor.name]], to=TensorProto.FLOAT)
            )

    def redirect(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = names.get(name, name)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    redirect(attribute.g)

    redirect(model.graph)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
