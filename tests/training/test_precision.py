"""Bundles in fp16 and int8: what the graphs hold, how near they are, what is refused."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from transformers import AlbertConfig, AutoModelForSequenceClassification

from models import bundle as bundles
from models.bundle import CorruptFileError, MismatchError
from models.device import integer_options, processor_flags
from models.explainer import Explainer
from models.graph import split
from models.session import OnnxSession
from tests.graphs import every_graph
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.evaluation.classifier_graph import classifier_alone
from training.export.agreement import Comparison, batch_equal, compare, overlap, rationale_words
from training.export.graph import FusedModel, branch, round_weights, to_onnx, to_torch
from training.export.half import to_half
from training.export.integer import FACTORS, SCALE, dequantised_weights, to_int8
from training.export.precision import LEAST, PrecisionError, check, derive, derive_run, export_as
from training.export.scales import Bytes, Scale, choose_scale, choose_scales, linear_layers

TEXTS = [
    "the plot was great and very funny .",
    "dull",
    "the ending was weak and i hated the music , but we loved the clever script . " * 4,
    "A Warm film; NOT boring!",
    "two hours of dull music and a terrible plot , terrible",
    "a moving story and a wonderful scene",
]


@pytest.fixture(scope="module")
def explainer(torch_bundle):
    return Explainer.load(torch_bundle.path, device="cpu")


@pytest.fixture(scope="module")
def half(torch_bundle):
    return to_half(torch_bundle.model_bytes())


@pytest.fixture(scope="module")
def scales(torch_bundle, explainer):
    return choose_scales(torch_bundle.model_bytes(), explainer.encoder, TEXTS)


@pytest.fixture(scope="module")
def integer(torch_bundle, scales):
    return to_int8(torch_bundle.model_bytes(), scales)


@pytest.fixture(scope="module")
def bare(load_black_box, make_network, quiet_exporter):
    """In float32, the same classifier; its explainer has no block, as the one that ships."""
    black_box = load_black_box()
    return to_onnx(FusedModel(black_box.model, make_network(black_box, "layers")))


@pytest.fixture(scope="module")
def bare_half(bare):
    return to_half(bare)


@pytest.fixture(scope="module")
def bare_integer(bare, explainer):
    return to_int8(bare, choose_scales(bare, explainer.encoder, TEXTS))


def rows(batch, tokens):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 60, (batch, tokens))
    mask = np.ones_like(ids)
    for row in range(1, batch, 2):
        mask[row, tokens - tokens // 3 :] = 0
    return ids, mask, np.arange(batch) % 3 - 1


def answers(model, batch, tokens):
    ids, mask, target = rows(batch, tokens)
    found = OnnxSession(model, device="cpu", threads=1).run(ids, mask, target, explain=True)
    inside = mask == 1
    return found.logits, found.weights[inside], found.label_probs[inside]


def stored(model):
    graph = onnx.load_model_from_string(model).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def types(model):
    """The element type of every value, in all graphs."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model), strict_mode=True)
    found: dict[str, int] = {}
    for graph in every_graph(proto.graph):
        values = (*graph.value_info, *graph.output, *graph.input)
        found |= {value.name: value.type.tensor_type.elem_type for value in values}
        found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return found


def reference(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    """What ONNX's own evaluator says, which rounds every number to its type."""
    return list(ReferenceEvaluator(model, new_ops=[GatherElements]).run(None, feed))


def nodes(model, *kinds):
    graph = onnx.load_model_from_string(model).graph
    return [node for one in every_graph(graph) for node in one.node if node.op_type in kinds]


# fp16


class GatherElements(OpRun):
    """The reference's own fails where an axis is broadcast."""

    def _run(self, data, indices, axis=None):
        return (np.take_along_axis(data, indices, axis),)


@pytest.mark.parametrize("shape", [(1, 3), (5, 33)])
def test_half_is_near(shape, torch_bundle, half):
    for mine, theirs in zip(
        answers(half, *shape), answers(torch_bundle.model_bytes(), *shape), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-2)


def test_half_is_near_where_every_number_is_rounded(torch_bundle, half):
    """As on a GPU; ONNX Runtime on a processor leaves out some of the rounding."""
    ids, mask, target = rows(2, 9)
    proto = onnx.load_model_from_string(split(half, explain=True))
    feed = {"input_ids": ids, "attention_mask": mask, "target": target}
    logits, weights, chances = reference(proto, feed)
    inside = mask == 1
    theirs = answers(torch_bundle.model_bytes(), 2, 9)
    for mine, wanted in zip((logits, weights[inside], chances[inside]), theirs, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, wanted, atol=2e-2)


def test_what_is_half_and_what_is_not(half, torch_bundle):
    kinds = types(half)
    products = nodes(half, "MatMul")
    assert len(products) > 10
    for node in products:
        assert {kinds[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
    for node in nodes(half, "LayerNormalization", "Softmax"):
        assert {kinds[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
    before = types(torch_bundle.model_bytes())
    for name in ("input_ids", "attention_mask", "target", "explain", "logits", "weights"):
        assert kinds[name] == before[name]
    [head] = [node for node in nodes(half, "Gemm") if "logits" in node.output]
    assert {kinds[name] for name in head.input} == {TensorProto.FLOAT}
    for node in nodes(half, "CastLike"):  # ONNX Runtime 1.24 fails where it gives float16
        assert kinds[node.output[0]] == TensorProto.INT64


def test_half_keeps_the_weights(half, torch_bundle):
    mine, theirs = stored(half), stored(torch_bundle.model_bytes())
    for name, values in theirs.items():
        np.testing.assert_array_equal(mine[name], values, err_msg=name)
    assert sum(values.nbytes for name, values in mine.items() if name not in theirs) < 10_000


def test_half_has_room_for_masks():
    """A mask of -3e38 would be minus infinity, and 0 times that is no number."""
    node, value = helper.make_node, helper.make_tensor_value_info
    lowest = numpy_helper.from_array(np.array(-3e38, np.float32))
    nowhere = numpy_helper.from_array(np.array(-np.inf, np.float32))
    last = numpy_helper.from_array(np.array([-1]))
    five = numpy_helper.from_array(np.ones(5, np.float32))
    graph = helper.make_graph(
        [
            node("Constant", [], ["lowest"], value=lowest),
            node("Constant", [], ["nowhere"], value=nowhere),
            node("Constant", [], ["low"], value_float=-1e30),
            node("Cast", ["attention_mask"], ["keep"], to=TensorProto.FLOAT),
            node("Cast", ["target"], ["where"], to=TensorProto.BOOL),
            node("Mul", ["keep", "lowest"], ["mask"]),
            node("Where", ["where", "low", "mask"], ["some"]),
            node("Where", ["where", "some", "nowhere"], ["sum"]),
            node("Identity", ["sum"], ["logits"]),
            node("Add", ["sum", "keep"], ["weights"]),
            node("Constant", [], ["last"], value=last),
            node("Constant", [], ["five"], value=five),
            node("Unsqueeze", ["weights", "last"], ["column"]),
            node("Mul", ["column", "five"], ["label_probs"]),
        ],
        "masks",
        [
            value(name, TensorProto.INT64, [1, 4])
            for name in ("input_ids", "attention_mask", "target")
        ],
        [
            *(value(name, TensorProto.FLOAT, [1, 4]) for name in ("logits", "weights")),
            value("label_probs", TensorProto.FLOAT, [1, 4, 5]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    branch(model)
    half = split(to_half(model.SerializeToString()), explain=True)
    feed = {name: np.array([[0, 1, 0, 1]]) for name in ("input_ids", "attention_mask")}
    feed["target"] = np.array([[1, 1, 0, 0]])
    logits, weights, _ = reference(onnx.load_model_from_string(half), feed)
    assert logits.dtype == np.float32
    assert logits.tolist() == [[-30_000.0, -30_000.0, -np.inf, -np.inf]]
    assert not np.isnan(weights).any()


# Places at which CUDA's kernels read what lies in the processor's memory.
HOST = {
    **{"Reshape": {1}, "Expand": {1}, "Slice": {1, 2, 3, 4}, "Range": {0, 1, 2}, "Pad": {1}},
    **{"ConstantOfShape": {0}, "Unsqueeze": {1}, "Squeeze": {1}, "ReduceSum": {1}},
}


def crossings(model):
    """Values that would have to travel between processor and GPU during a run.

    ONNX Runtime records no such run as a CUDA graph. It leaves what only follows from shapes on
    the processor; this repeats that rule, after the runtime's own simplification of the graph.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    host: set[str] = set()
    found = []
    for node in model.graph.node:
        places = HOST.get(node.op_type, set())
        inputs = {place: name for place, name in enumerate(node.input) if name not in constants}
        data = [name for place, name in inputs.items() if place not in places and name]
        if node.op_type == "Constant":
            constants.update(node.output)
        elif node.op_type == "Shape" or (data and host.issuperset(data)):
            host.update(node.output)
        else:
            wrong = {True: [name for name in data if name in host]}
            wrong[False] = [inputs[p] for p in places & inputs.keys() if inputs[p] not in host]
            found += [(node.op_type, name) for name in (*wrong[True], *wrong[False]) if name]
    return found


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Add", ["numbers", "size"], ["sums"]),  # from the processor to the GPU
        helper.make_node("Expand", ["numbers", "numbers"], ["wide"]),  # and back
    ],
)
def test_a_value_that_would_travel_is_found(node):
    nodes = [helper.make_node("Shape", ["numbers"], ["size"]), node]
    model = helper.make_model(helper.make_graph(nodes, "travels", [], []))
    assert crossings(model) == [(node.op_type, node.input[1])]


@pytest.mark.parametrize("explain", [True, False])
@pytest.mark.parametrize("made", ["half", "bare_half"])
def test_half_can_be_recorded_as_a_cuda_graph(explain, made, request, tmp_path):
    half = request.getfixturevalue(made)

    def simplified(model):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "simplified.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(split(model, explain=explain), options, ["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)

    model = simplified(half)
    assert crossings(model) == []
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"If", "Loop", "Scan"}
    before = types(half)
    for node in nodes(half, "Pad"):  # CUDA pads no integers
        assert before[node.input[0]] in (TensorProto.FLOAT, TensorProto.FLOAT16)


# int8


def test_without_a_block_int8_says_much_the_same(bare, bare_integer, integer):
    """And its classifier has the same bytes whatever explains it."""
    assert classifier_alone(bare_integer) == classifier_alone(integer)
    found, expected = (
        OnnxSession(model, device="cpu").run(*rows(5, 24), explain=True)
        for model in (bare_integer, bare)
    )
    assert (found.logits.argmax(1) == expected.logits.argmax(1)).all()
    assert not np.array_equal(found.weights, expected.weights)
    assert np.corrcoef(found.weights.ravel(), expected.weights.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("shape", [(1, 3), (5, 33)])
def test_integers_are_near(shape, torch_bundle, integer):
    for mine, theirs in zip(
        answers(integer, *shape), answers(torch_bundle.model_bytes(), *shape), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=0.3)
        assert np.abs(mine - theirs).max() > 1e-5  # it is another graph


def balances_of(model):
    """What the columns of each weight are divided by when it is read, by the weight's name."""
    proto = onnx.load_model_from_string(model)
    plain = onnx.load_model_from_string(model)
    for tensor in plain.graph.initializer:
        if tensor.name.endswith(FACTORS):
            ones = np.ones_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(ones, tensor.name))
    mine, without = (dequantised_weights(part.graph) for part in (proto, plain))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.nanmax(mine[name] / without[name], axis=0) for name in mine}


def test_weights_are_integers_with_a_scale_for_each_output(integer, torch_bundle):
    mine, theirs = stored(integer), stored(torch_bundle.model_bytes())
    restored = dequantised_weights(onnx.load_model_from_string(integer).graph)
    balances = balances_of(integer)
    assert set(restored) == {name for name in mine if name + SCALE in mine and mine[name].ndim > 1}
    quantised = [name for name, values in mine.items() if values.dtype == np.int8]
    matrices = {name for name in quantised if not name.endswith(".zero")}
    assert len(matrices) == 12 + 5  # 2 layers of 6; what is read, and a block
    for name in matrices:
        assert ".encoder.layer." in name or name.startswith("explainer.")
        steps = mine[name + SCALE]
        assert mine[name].shape == theirs[name].shape
        assert steps.shape == (len(mine[name]),)
        # Half a step of its row, divided by what its column was multiplied by.
        room = 0.5001 * steps[:, np.newaxis] * balances[name]
        assert (np.abs(restored[name] - theirs[name].astype(np.float32)) <= room).all()
        assert np.abs(mine[name]).max() == 127
    for name in theirs.keys() - matrices:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_layers_may_share_a_weight(black_box, make_network, enliven, quiet_exporter):
    """As ALBERT's do: the three layers are one, quantised once."""
    config = AlbertConfig(
        vocab_size=black_box.encoder.tokenizer.get_vocab_size(), embedding_size=8, hidden_size=16,
        num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(2)
    shared = HuggingFaceBlackBox(
        AutoModelForSequenceClassification.from_config(config), black_box.encoder, ("NEG", "POS")
    )
    enliven(shared.model)
    with torch.no_grad():  # a channel that would be worth balancing, and to be refused it
        shared.model.albert.encoder.embedding_hidden_mapping_in.weight[3] *= 40
    fused = FusedModel(shared.model, make_network(shared, "all")).eval()
    round_weights(fused)
    model = to_onnx(fused)
    scales = choose_scales(model, shared.encoder, TEXTS)
    read: dict[str, list[str]] = {}
    for layer in linear_layers(onnx.load_model_from_string(model).graph):
        read.setdefault(layer.weight, []).append(layer.activation)
    several = {name for names in read.values() if len(set(names)) > 1 for name in names}
    assert len(several) == 3 * 4  # 3 layers with 4 different inputs
    # One weight has one balance at most, and its inputs may need several.
    assert {scales[name].balance for name in several} == {None}
    wrong = {name: scale._replace(balance=np.ones(1)) for name, scale in scales.items()}
    with pytest.raises(ValueError, match=r"is shared and cannot be balanced in several ways"):
        to_int8(model, wrong)
    integer = to_int8(model, scales)
    matrices = [
        name
        for name, values in stored(integer).items()
        if values.dtype == np.int8 and values.ndim == 2 and not name.startswith("explainer.")
    ]
    assert len(matrices) == 1 + 6  # into the layers, and the layer
    for mine, theirs in zip(answers(integer, 2, 9), answers(model, 2, 9), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.3)


def test_the_heads_of_the_explainer_stay_as_they_are(integer, torch_bundle):
    found, before = stored(integer), stored(torch_bundle.model_bytes())
    explainer = {name for name in before if name.startswith("explainer.") and before[name].ndim > 1}
    integers = {name for name in explainer if found[name].dtype == np.int8}
    assert integers == {
        f"explainer.{name}.weight"
        for name in (
            "project", "blocks.0.query_key_value", "blocks.0.attention_output",
            "blocks.0.expand", "blocks.0.contract",
        )
    }  # fmt: skip
    for name in explainer - integers:
        np.testing.assert_array_equal(found[name], before[name], err_msg=name)


def one_layer(weight):
    """A linear layer as the exporter writes it, from `x` to `y`."""
    node = helper.make_node
    value = helper.make_tensor_value_info
    outputs, inputs = weight.shape
    graph = helper.make_graph(
        [
            node("Cast", ["w"], ["w.fp32"], to=TensorProto.FLOAT),
            node("Transpose", ["w.fp32"], ["w.turned"], perm=[1, 0]),
            node("MatMul", ["x", "w.turned"], ["y"]),
        ],
        "layer",
        [value("x", TensorProto.FLOAT, ["B", "T", inputs])],
        [value("y", TensorProto.FLOAT, ["B", "T", outputs])],
        [numpy_helper.from_array(weight.astype(np.float16), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    return model.SerializeToString()


def test_one_layer_by_hand():
    """MatMul of activations in steps of 1/10 around 0 with weights in steps of their rows."""
    weight = np.zeros((16, 2))  # narrower layers are left as they are
    weight[:3] = [[1.0, -0.5], [0.0, 0.0], [2.0, 127.0]]
    made = onnx.load_model_from_string(to_int8(one_layer(weight), {"x": Scale(-5.5, 20.0)}))
    found = stored(made.SerializeToString())
    assert found["w"][:3].tolist() == [[127, -64], [0, 0], [2, 127]]
    np.testing.assert_allclose(found["w" + SCALE][:3], [1 / 127, 1, 1])
    assert found["x.scale"] == np.float32(0.1)
    assert found["x.zero"] == 55
    x = np.array([[[0.04, 1.0], [-9.0, 30.0]]], np.float32)  # rounds to 0; beyond both ends
    [result] = reference(made, {"x": x})
    inputs = np.array([[[0.0, 1.0], [-5.5, 20.0]]])
    outputs = np.array([[1.0, -64 / 127], [0.0, 0.0], [2.0, 127.0]])
    np.testing.assert_allclose(result[..., :3], inputs @ outputs.T, rtol=1e-5)


def test_a_narrow_layer_stays_as_it_is():
    model = one_layer(np.ones((15, 64)))
    assert stored(to_int8(model, {})).keys() == stored(model).keys()


def test_a_balanced_layer_by_hand():
    """The second channel is divided by 4 before it becomes bytes, its weights are multiplied."""
    weight = np.tile([[1.0, -0.25], [2.0, 0.5]], (8, 1))
    scale = Scale(-5.5, 20.0, np.array([1.0, 4.0], np.float32))
    made = onnx.load_model_from_string(to_int8(one_layer(weight), {"x": scale}))
    found = stored(made.SerializeToString())
    assert found["w"][:2].tolist() == [[127, -127], [127, 127]]
    assert found["x" + FACTORS].tolist() == [1.0, 0.25]
    np.testing.assert_allclose(dequantised_weights(made.graph)["w"], weight, rtol=1e-6)
    x = np.array([[[0.04, 1.0], [-9.0, 70.0], [1.0, 90.0]]], np.float32)
    [result] = reference(made, {"x": x})
    inputs = np.array([[[0.0, 0.8], [-5.5, 70.0], [1.0, 80.0]]])  # 2.5 steps round to even, to 2
    np.testing.assert_allclose(result, inputs @ weight.T, rtol=1e-5)


def test_scales_are_chosen_on_texts(scales, torch_bundle, explainer):
    assert len(scales) == 8 + 5  # 2 layers with 4 different inputs; what is read, and a block
    assert all(one.low <= 0 < 0.1 < one.high for one in scales.values())
    again = choose_scales(torch_bundle.model_bytes(), explainer.encoder, TEXTS)
    assert again.keys() == scales.keys()
    for name, one in again.items():
        assert (one.low, one.high) == (scales[name].low, scales[name].high)
        np.testing.assert_array_equal(one.balance, scales[name].balance)


def left(scale, rows, weight):
    """Root mean square of what a layer's output loses."""
    balance = 1.0 if scale.balance is None else scale.balance
    matrix = Bytes.of(weight * balance).weight()
    return np.square(scale.rounded(rows / balance) @ matrix.T - rows @ weight.T).mean() ** 0.5


@pytest.fixture
def layer():
    """What goes into a layer, 500 tokens of 16 channels, and its weight."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(500, 16)).astype(np.float32)
    return rows, rng.normal(size=(24, 16)).astype(np.float32)


def test_large_channels_are_balanced(layer):
    rows, weight = layer
    rows[:, 5] *= 40
    plain, balanced = (choose_scale(rows, weight, balanced=wanted) for wanted in (False, True))
    assert plain.balance is None
    assert balanced.balance is not None
    assert balanced.balance.argmax() == 5
    assert left(balanced, rows, weight) < 0.5 * left(plain, rows, weight)


def test_channels_that_are_alike_stay_as_they_are(layer):
    assert choose_scale(*layer).balance is None


def test_a_few_large_values_are_cut_off(layer):
    """4 of 80,000: each token counts, and one that is lost costs less than steps for all."""
    rows, weight = layer
    rows = np.tile(rows, (10, 1))
    rows[:4, 3] = 60.0
    scale = choose_scale(rows, weight, balanced=False)
    assert scale.high < 60
    whole = Scale(float(rows.min()), float(rows.max()))
    assert left(scale, rows[4:], weight) < left(whole, rows[4:], weight)


def test_a_channel_that_was_silent_is_not_cut_off(layer):
    """It counts for a tenth of the others, so that it has room when it speaks."""
    rows, weight = layer
    rows[:, 5] *= 40
    rows[:, 3] *= 1e-6
    scale = choose_scale(rows, weight)
    assert scale.balance is not None
    assert (np.abs(rows[:, 7]).max() / scale.balance[3] < 3 * max(scale.high, -scale.low)).all()


def test_what_is_no_number_is_refused(layer):
    rows, weight = layer
    rows[7, 7] = np.nan
    with pytest.raises(ValueError, match="infinite or no number on the texts"):
        choose_scale(rows, weight)


def test_a_layer_that_says_nothing_has_a_scale(layer):
    rows, weight = layer
    for one in (choose_scale(0 * rows, weight), choose_scale(rows, 0 * weight)):
        assert one.low <= 0 <= one.high
        assert np.isfinite(one.step)


def test_a_graph_without_linear_layers_cannot_be_quantised(tiny_model_bytes, explainer):
    with pytest.raises(ValueError, match=r"no linear layers over tokens.*export it as fp32"):
        choose_scales(tiny_model_bytes, explainer.encoder, TEXTS)


def test_no_answer_in_integers_depends_on_the_batch(integer, torch_bundle):
    """To the last bit, alone and in company; with scales that follow the batch it would."""
    session = OnnxSession(integer, device="cpu", threads=1)
    ids, mask, target = rows(7, 24)
    together = session.run(ids, mask, target, explain=True)
    for row in range(7):
        one = slice(row, row + 1)
        alone = session.run(ids[one], mask[one], target[one], explain=True)
        assert alone.logits.tobytes() == together.logits[one].tobytes()
        assert alone.weights.tobytes() == together.weights[one].tobytes()


@pytest.mark.parametrize("flags", [processor_flags(), frozenset({"avx2"})])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_sums_of_products_are_exact_on_any_processor(flags, rows):
    """Two products of the largest numbers are 64,770, which 16 bits do not hold."""
    model = to_int8(one_layer(np.ones((16, 64))), {"x": Scale(0.0, 255.0)})
    options = ort.SessionOptions()
    for name, value in integer_options(flags).items():
        options.add_session_config_entry(name, value)
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    [found] = session.run(None, {"x": np.full((1, rows, 64), 255, np.float32)})
    np.testing.assert_allclose(found, np.full((1, rows, 16), 64 * 255), rtol=1e-6)


# Bundles


@pytest.fixture(scope="module", params=["fp16", "int8"])
def derived(request, torch_bundle, tmp_path_factory):
    return derive(
        torch_bundle,
        request.param,
        calibration=TEXTS,
        validation=TEXTS,
        path=tmp_path_factory.mktemp("derived") / request.param,
        least=(0.5, 0.5),  # the weights are random, and rationales near to ties
    )


def test_what_answers_too_differently_is_not_saved(torch_bundle, tmp_path):
    with pytest.raises(PrecisionError, match="in int8 this bundle answers too differently"):
        derive(
            torch_bundle, "int8", calibration=TEXTS, validation=TEXTS, path=tmp_path / "new" / "b"
        )
    assert not (tmp_path / "new").exists()


def test_a_derived_bundle_says_what_it_is_and_loads(derived, torch_bundle):
    manifest, before = derived.manifest, torch_bundle.manifest
    found = manifest.card["precision"]
    assert found["derived_from"] == torch_bundle.digest
    assert found["texts"] == len(TEXTS)
    assert found["batch_equal"] == 1.0
    assert found["compared_on"] == "CPUExecutionProvider"
    assert ("calibration_texts" in found) == (manifest.precision == "int8")
    assert not {"evaluation", "validation"} & set(manifest.card)  # what was measured in fp32
    assert 0 < found["largest_difference"] < 0.3
    assert manifest.golden.tolerance.keys() == {manifest.precision}
    assert (manifest.labels, manifest.temperature) == (before.labels, before.temperature)
    loaded = Explainer.load(derived.path, device="cpu")  # asks the golden question
    assert loaded.bundle.digest == derived.digest


def test_a_derived_bundle_of_another_pair_is_refused(derived, tmp_path):
    """The golden answer is off by more than the wider tolerance of its precision."""
    golden = derived.manifest.golden
    off = [value + 0.25 for value in golden.logits]
    changed = dataclasses.replace(golden, logits=tuple(off))
    other = bundles.save_changed(derived, tmp_path / "other", golden=changed)
    with pytest.raises(MismatchError, match=r"off by 0\.25"):
        Explainer.load(other.path, device="cpu")


def test_torch_modules_come_back_from_a_derived_bundle(derived, torch_bundle):
    mine, network = to_torch(derived)
    theirs, _ = to_torch(torch_bundle)
    documents = [mine.encoder.encode(text) for text in TEXTS]
    gap = np.abs(mine.logits(documents) - theirs.logits(documents)).max()
    assert gap == 0 if derived.manifest.precision == "fp16" else 0 < gap < 0.3
    assert network.config.width == 16
    before = to_torch(torch_bundle)[1].state_dict()
    for name, values in network.state_dict().items():
        # In int8; fp16 is finer. Balanced channels of a layer have finer steps and coarser ones.
        step = before[name].abs().max().item() / 127
        gap = values - before[name]
        assert gap.abs().max().item() <= 2 * step, name
        assert gap.square().mean().sqrt().item() <= 0.5 * step, name


def test_only_an_fp32_bundle_is_derived_from(derived, tmp_path):
    with pytest.raises(ValueError, match=r"is in \w+: give the fp32 bundle"):
        derive(derived, "fp16", calibration=TEXTS, validation=TEXTS, path=tmp_path / "b")


def test_an_unknown_precision_is_not_loaded(torch_bundle, tmp_path):
    path = shutil.copytree(torch_bundle.path, tmp_path / "b")
    manifest = path / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(
        text.replace('"precision": "fp32",\n  "recipe"', '"precision": "fp8",\n  "recipe"')
    )
    with pytest.raises(CorruptFileError, match="'precision' is 'fp8', not one of fp32, fp16, int8"):
        bundles.load(path)


# Measures and limits


def test_a_bundle_agrees_with_itself(explainer):
    found = compare(explainer, explainer, TEXTS)
    assert found == Comparison(len(TEXTS), 1.0, 1.0, 0.0, 1.0, "CPUExecutionProvider")


def test_rationale_words(tiny_explainer):
    [answer] = tiny_explainer.explain(["A great but boring, boring story"])
    words = rationale_words(answer)
    spans = [(span.start, span.end) for span in answer.rationale]
    assert words == {
        word.start
        for word in answer.words
        if any(start <= word.start < end for start, end in spans)
    }
    assert words >= {start for start, _ in spans} > set()


@pytest.mark.parametrize(
    ("mine", "theirs", "f1"),
    [
        (set(), set(), 1.0),
        ({1}, set(), 0.0),
        ({1, 5}, {1, 5}, 1.0),
        ({1, 5}, {5}, 2 / 3),
        ({1, 5, 9, 12}, {5, 9}, 2 / 3),
        ({1}, {2}, 0.0),
    ],
)
def test_overlap(mine, theirs, f1):
    assert overlap(mine, theirs) == overlap(theirs, mine) == pytest.approx(f1)


def test_batch_equal_sees_what_company_changes(tiny_explainer):
    texts = ["great film", "dull plot", "a warm scene", "boring"]

    def swayed(asked):
        """The last of several gets another score, as by a scale that follows the batch."""
        found = tiny_explainer.explain(asked)
        if len(asked) > 1:
            found[-1] = dataclasses.replace(found[-1], score=0.5)
        return found

    together = tiny_explainer.explain(texts)
    assert batch_equal(tiny_explainer.explain, texts, together) == 1.0
    assert batch_equal(swayed, texts, swayed(texts)) < 1.0


GOOD = Comparison(100, 1.0, 1.0, 0.1, 1.0, "SomeProvider")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"label_agreement": 0.9}, "label agreement 0.900, less than 0.9"),
        ({"rationale_f1": 0.85}, "rationale F1 0.850, less than 0.9"),
        ({"batch_equal": 0.999}, "do not depend on their batch 0.999, less than 1"),
        ({"rationale_f1": float("nan")}, "rationale F1 nan"),
    ],
)
def test_what_is_refused(precision, change, mention):
    check(GOOD, precision, LEAST[precision])
    with pytest.raises(PrecisionError) as error:
        check(dataclasses.replace(GOOD, **change), precision, LEAST[precision])
    message = str(error.value)
    assert "\n" not in message
    for word in (precision, mention, "100 validation texts, with SomeProvider", "serve it in fp32"):
        assert word in message


def test_export_of_a_run(recipe_path, recipe, torch_bundle, tmp_path):
    shutil.copytree(torch_bundle.path, tmp_path / recipe.name / "bundle")
    path = export_as(recipe_path, [], tmp_path, "fp16")
    assert path == tmp_path / recipe.name / "bundle-fp16"
    found = bundles.load(path)
    assert found.manifest.precision == "fp16"
    assert found.manifest.card["precision"]["texts"] == 24
    # Measured anew: a number of right answers among the compared texts.
    said = found.manifest.card["validation"]
    assert said["texts"] == 24
    assert said["accuracy"] * 24 == round(said["accuracy"] * 24)
    assert said["temperature"] == torch_bundle.manifest.temperature
    made = path.stat().st_mtime_ns
    assert export_as(recipe_path, [], tmp_path, "fp16") == path
    assert path.stat().st_mtime_ns == made  # it is not made again


def test_a_card_keeps_no_measurement_of_the_original(recipe_path, recipe, torch_bundle, tmp_path):
    measured = {
        "evaluation": {"texts": 1},
        "label_agreement_with_unrounded": 1.0,
        "largest_difference_from_torch": 3e-06,
    }
    card = {"description": "kept", **measured}
    bundles.save_changed(torch_bundle, tmp_path / recipe.name / "bundle", card=card)
    found = bundles.load(export_as(recipe_path, [], tmp_path, "fp16")).manifest.card
    assert found["description"] == "kept"
    assert not measured.keys() & found.keys()


def test_what_was_derived_in_another_way_is_made_anew(recipe_path, recipe, torch_bundle, tmp_path):
    shutil.copytree(torch_bundle.path, tmp_path / recipe.name / "bundle")
    made = bundles.load(export_as(recipe_path, [], tmp_path, "fp16"))
    card = {**made.manifest.card, "precision": {**made.manifest.card["precision"], "version": 0}}
    bundles.save_changed(made, made.path, card=card)
    again = bundles.load(export_as(recipe_path, [], tmp_path, "fp16"))
    assert again.manifest.card == made.manifest.card


def test_what_was_made_for_less_is_not_taken_for_more(recipe_path, recipe, torch_bundle, tmp_path):
    run = tmp_path / recipe.name
    shutil.copytree(torch_bundle.path, run / "bundle")
    derive_run(recipe, run, "int8", (0.0, 0.0))
    with pytest.raises(PrecisionError, match="in int8 this bundle answers too differently"):
        derive_run(recipe, run, "int8", (1.1, 1.1))


def test_export_of_a_run_that_has_another_bundle_by_now(
    recipe_path, recipe, torch_bundle, tmp_path
):
    place = tmp_path / recipe.name / "bundle"
    shutil.copytree(torch_bundle.path, place)
    old = bundles.load(export_as(recipe_path, [], tmp_path, "fp16"))
    bundles.save_changed(torch_bundle, place, name="another")
    new = bundles.load(export_as(recipe_path, [], tmp_path, "fp16"))
    assert old.manifest.name == "tiny"
    assert new.manifest.name == "another"
