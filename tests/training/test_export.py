import dataclasses
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from models import SHIPPED
from models.binding import BoundGraph
from models.bundle import load
from models.explainer import Explainer
from models.graph import split
from models.rationale import WordScores, rationale_spans
from models.session import OnnxSession
from models.text import bucket_length, merge_outputs, pad_rows
from tests.graphs import every_graph
from training.attention import HIDDEN
from training.evaluation.classifier_graph import classifier_alone
from training.export.graph import FusedModel, round_weights, to_onnx, to_torch
from training.export.half import to_half
from training.export.release import ParityError, check_parity

SHAPES = [(1, 1), (1, 512), (7, 33)]
DECODES = {"all": "regression", "layers": "regression", "last": "ranking", "own": "labelling"}


@dataclasses.dataclass
class Pair:
    """A graph and the torch module that holds the same fp16-rounded weights."""

    model: bytes
    fused: FusedModel
    session: OnnxSession


@pytest.fixture(scope="module")
def new_fused(load_black_box, make_network):
    """Makes the torch module anew, unrounded: always the same weights."""

    def make(reads):
        black_box = load_black_box()
        network = make_network(black_box, reads, DECODES[reads])
        return FusedModel(black_box.model, network).eval()

    return make


@pytest.fixture
def rounded(new_fused):
    """The module that the graph of `torch_bundle` equals."""
    fused = new_fused("all")
    round_weights(fused)
    return fused


@pytest.fixture(scope="module", params=DECODES)
def pair(request, new_fused, torch_bundle, quiet_exporter):
    """One for each thing that the explainer can read, each decoding another head."""
    fused = new_fused(request.param)
    model = torch_bundle.model_bytes() if request.param == "all" else to_onnx(fused)
    round_weights(fused)
    return Pair(model, fused, OnnxSession(model, device="cpu"))


@pytest.fixture(scope="module")
def explainer(torch_bundle):
    return Explainer.load(torch_bundle.path, device="cpu")


def rows(batch, tokens, seed=0):
    """Random ids, pads at the right of every other row, and the three targets in turns."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch, 2):
        mask[row, tokens - row * tokens // 9 :] = 0
    return ids, mask, torch.arange(batch) % 3 - 1


def run(session, ids, mask, target, explain=True):
    found = session.run(ids.numpy(), mask.numpy(), target.numpy(), explain=explain)
    return found.logits, found.weights, found.label_probs


@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_is_the_torch_module(shape, pair):
    ids, mask, target = rows(*shape)
    with torch.inference_mode():
        expected = [part.numpy() for part in pair.fused(ids, mask, target)]
    found = run(pair.session, ids, mask, target)
    batch, tokens = shape
    assert [part.shape for part in found] == [(batch, 2), shape, (*shape, 5)]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=0)
    assert (found[0].argmax(1) == expected[0].argmax(1)).all()
    inside = mask.numpy() == 1
    assert (found[2].argmax(2) == expected[2].argmax(2))[inside].all()
    if tokens > 1:  # else equality would be easy
        assert found[1][inside].std() > 0.01


def test_answers_depend_on_the_ids(pair):
    ids, mask, target = rows(7, 33)
    logits = run(pair.session, ids, mask, target)[0]
    assert np.ptp(logits[:, 1] - logits[:, 0]) > 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_without_explanation_the_logits_stay_and_the_rest_is_zero(shape, pair):
    ids, mask, target = rows(*shape)
    full, *_ = run(pair.session, ids, mask, target)
    logits, weights, chances = run(pair.session, ids, mask, target, explain=False)
    assert logits.tobytes() == full.tobytes()
    assert (weights.shape, chances.shape) == (shape, (*shape, 5))
    assert not weights.any()
    assert not chances.any()


def test_minus_one_is_the_predicted_class(pair):
    ids, mask, _ = rows(7, 33)
    anything = torch.full((7,), -1)
    logits, weights, chances = run(pair.session, ids, mask, anything)
    predicted = torch.from_numpy(logits.argmax(1))
    asked = run(pair.session, ids, mask, predicted)
    assert (asked[1].tobytes(), asked[2].tobytes()) == (weights.tobytes(), chances.tobytes())
    other = run(pair.session, ids, mask, 1 - predicted)
    assert other[0].tobytes() == logits.tobytes()
    assert np.abs(other[1] - weights).max() > 1e-3


def test_probabilities_of_a_piece_sum_to_one(pair):
    ids, mask, target = rows(7, 33)
    chances = run(pair.session, ids, mask, target)[2]
    np.testing.assert_allclose(chances.sum(2), 1, atol=1e-6)


def test_padding_changes_no_answer(pair):
    ids, mask, target = rows(3, 20)
    mask[:, 12:] = 0
    short = run(pair.session, ids[:, :12], mask[:, :12], target)
    long = run(pair.session, ids, mask, target)
    np.testing.assert_allclose(long[0], short[0], atol=1e-5)
    np.testing.assert_allclose(long[1][:, :12], short[1], atol=1e-5)
    np.testing.assert_allclose(long[2][:, :12], short[2], atol=1e-5)


# The file


def test_only_standard_operators(pair):
    model = onnx.load_model_from_string(pair.model)
    assert [entry.domain for entry in model.opset_import] == [""]
    assert model.opset_import[0].version <= 20
    assert model.ir_version <= 10
    assert not model.functions
    for graph in every_graph(model.graph):
        assert {node.domain for node in graph.node} <= {"", "ai.onnx"}


def test_attention_and_gelu_are_few_nodes(pair):
    graphs = every_graph(onnx.load_model_from_string(pair.model).graph)
    counts = Counter(node.op_type for graph in graphs for node in graph.node)
    layers = pair.fused.classifier.config.num_hidden_layers + pair.fused.explainer.config.blocks
    assert counts["Gelu"] == layers + 1  # and the explainer's last
    assert not counts["Erf"]
    assert not counts["IsNaN"]  # no looking for rows without anything to attend to
    assert pair.fused.classifier.config._attn_implementation == "sdpa"


def test_a_mask_is_few_nodes(pair):
    """No looking up of pairs of tokens, see training/attention.py."""
    graphs = every_graph(onnx.load_model_from_string(pair.model).graph)
    kinds = {node.op_type for graph in graphs for node in graph.node}
    assert not kinds & {"GatherND", "And", "GreaterOrEqual"}


def test_no_number_is_too_large_for_half_precision(pair):
    """As float32's lowest number in a mask would be, where a device computes in bfloat16."""
    for model in (pair.model, load(SHIPPED).model_bytes()):
        graphs = list(every_graph(onnx.load_model_from_string(model).graph))
        constants = [
            attribute.t
            for graph in graphs
            for node in graph.node
            for attribute in node.attribute
            if attribute.type == onnx.AttributeProto.TENSOR
        ]
        stored = [tensor for graph in graphs for tensor in graph.initializer]
        values = [numpy_helper.to_array(tensor) for tensor in constants + stored]
        floats = [array for array in values if array.dtype.kind == "f" and array.size]
        assert -HIDDEN in {float(np.abs(array).max()) for array in floats}
        assert max(float(np.abs(array).max()) for array in floats) <= np.finfo(np.float16).max


def test_inputs_and_outputs(pair):
    graph = onnx.load_model_from_string(pair.model).graph
    assert {value.name: value.type.tensor_type.elem_type for value in graph.input} == {
        "input_ids": TensorProto.INT64,
        "attention_mask": TensorProto.INT64,
        "target": TensorProto.INT64,
        "explain": TensorProto.BOOL,
    }
    assert [value.name for value in graph.output] == ["logits", "weights", "label_probs"]
    assert len(graph.input[3].type.tensor_type.shape.dim) == 0


def test_the_explainer_is_one_branch(pair):
    """Outside of it no node reads a weight of the explainer."""
    graph = onnx.load_model_from_string(pair.model).graph
    [choice] = [node for node in graph.node if node.op_type == "If"]
    assert list(choice.input) == ["explain"]
    branches = {attribute.name: attribute.g for attribute in choice.attribute}
    read = {name for node in branches["then_branch"].node for name in node.input}
    assert any(name.startswith("explainer.") for name in read)
    assert len(branches["else_branch"].node) <= 5
    outside = {
        name for node in graph.node if node.op_type not in ("If", "Cast") for name in node.input
    }
    assert not any(name.startswith("explainer.") for name in outside)


def test_the_classifier_is_the_same_whatever_explains_it(pair, torch_bundle):
    """To the byte, so that what was measured with it is found again; another has other bytes."""
    alone = classifier_alone(pair.model)
    assert alone == classifier_alone(torch_bundle.model_bytes())
    other = onnx.load_model_from_string(pair.model)
    name = "classifier.classifier.weight"
    [weight] = [tensor for tensor in other.graph.initializer if tensor.name == name]
    weight.raw_data = bytes(len(weight.raw_data))
    assert classifier_alone(other.SerializeToString()) != alone


def test_initialisers_are_the_torch_parameters(pair):
    """By name and value; matrices in fp16, vectors in fp32; heads that nobody reads are left."""
    graph = onnx.load_model_from_string(pair.model).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    unread = {f"explainer.{name}" for name in pair.fused.explainer.unread_parameters()}
    for name, parameter in pair.fused.named_parameters():
        if name in unread:
            continue
        tensor = stored.pop(name)
        half = parameter.ndim > 1
        assert tensor.data_type == (TensorProto.FLOAT16 if half else TensorProto.FLOAT), name
        assert not tensor.external_data
        values = numpy_helper.to_array(tensor).astype(np.float32)
        np.testing.assert_array_equal(values, parameter.detach().numpy(), err_msg=name)
    assert sum(len(tensor.raw_data) for tensor in stored.values()) < 10_000  # constants


def test_weights_take_two_bytes(pair):
    sizes = [p.numel() * (2 if p.ndim > 1 else 4) for p in pair.fused.parameters()]
    assert len(pair.model) < sum(sizes) + 150_000  # nodes and names


def test_nothing_of_this_machine_is_in_the_file(pair):
    root, work, home = Path(__file__).parents[2], Path.cwd(), Path.home()
    places = [root, work, home, sys.prefix, tempfile.gettempdir()]
    for needle in (*places, socket.gethostname(), "site-packages", ".py", "Traceback", 'File "'):
        assert str(needle).encode() not in pair.model, needle


def test_a_second_export_gives_the_same_bytes(new_fused, torch_bundle, quiet_exporter):
    assert to_onnx(new_fused("all")) == torch_bundle.model_bytes()


# The bundle

TEXTS = [
    "the plot was great and very funny .",
    "dull",
    "the ending was weak and i hated the music , but we loved the clever script . " * 4,
    "A Warm film; NOT boring!",
    "great",
    "quux \x00 zyxomma",
    "two hours of dull music and a terrible plot , terrible",
]


def torch_answers(fused, explainer, document, target):
    """Logits, weights and label_probs of each window."""
    found: tuple[list, list, list] = ([], [], [])
    for window in document.windows:
        size = len(window.input_ids)
        ids, mask = pad_rows([window.input_ids], bucket_length(size), explainer.encoder.pad_id)
        with torch.inference_mode():
            parts = fused(torch.from_numpy(ids), torch.from_numpy(mask), torch.tensor([target]))
        found[0].append(parts[0][0].numpy())
        for mine, part in zip(found[1:], parts[1:], strict=True):
            mine.append(part[0, :size].numpy())
    return found


def test_an_answer_is_that_of_the_torch_modules(explainer, rounded):
    """Label, words and spans from plain torch, window by window."""
    for text, answer in zip(TEXTS, explainer.explain(TEXTS), strict=True):
        document = explainer.encode(text)
        logits = torch_answers(rounded, explainer, document, -1)[0]
        label = int(np.mean(logits, axis=0).argmax())
        # Every window explains the label of the document.
        _, weights, chances = torch_answers(rounded, explainer, document, label)
        merged = merge_outputs(document, weights, chances)
        words = WordScores.of(text, document.bounds, *merged)
        assert answer.label == explainer.labels[label]
        assert len(words) == len(answer.words)
        for mine, theirs in zip(answer.words, words.spans(), strict=True):
            assert mine.weight == pytest.approx(theirs.weight, abs=1e-4)
            assert mine._replace(weight=0.0) == theirs._replace(weight=0.0)
        rationale = rationale_spans(words)
        assert [(s.start, s.end, s.effect, s.strength) for s in answer.rationale] == [
            (s.start, s.end, s.effect, s.strength) for s in rationale
        ]


def test_a_text_gets_one_answer_alone_in_any_batch_and_order(explainer):
    alone = [explainer.explain([text])[0] for text in TEXTS]
    assert len({answer.scores["POS"] for answer in alone}) == len(TEXTS)
    assert explainer.explain(TEXTS) == alone
    assert explainer.explain(TEXTS[::-1]) == alone[::-1]
    assert explainer.explain(TEXTS * 9) == alone * 9
    for row in range(len(TEXTS)):
        pair = [TEXTS[row], TEXTS[row - 1]]
        assert explainer.explain(pair) == [alone[row], alone[row - 1]]
    labels = [(answer.label, answer.scores) for answer in explainer.predict(TEXTS * 2)]
    assert labels == [(answer.label, answer.scores) for answer in alone * 2]


def test_both_modules_come_back_from_the_bundle(torch_bundle, explainer, rounded):
    black_box, network = to_torch(torch_bundle)
    unread = network.unread_parameters()
    for mine, theirs in ((black_box.model, rounded.classifier), (network, rounded.explainer)):
        state = theirs.state_dict()
        for name, parameter in mine.named_parameters():
            if name not in unread:
                assert torch.equal(parameter, state[name]), name
    assert network.config == rounded.explainer.config
    documents = [explainer.encode(text) for text in TEXTS]
    np.testing.assert_allclose(
        black_box.logits(documents), explainer.logits(documents), atol=1e-5, rtol=0
    )


def test_masked_copies_agree_between_graph_and_torch(torch_bundle, explainer):
    black_box, _ = to_torch(torch_bundle)
    documents = [explainer.encode(text) for text in TEXTS]
    rng = np.random.default_rng(0)
    keep = [rng.random(len(document.words)) < 0.5 for document in documents]
    np.testing.assert_allclose(
        black_box.logits(documents, keep), explainer.logits(documents, keep), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 32}, "has shape"), ({"blocks": 2}, "the graph has no weight explainer.blocks.1")],
)
def test_a_config_of_another_architecture_is_refused(change, message, torch_bundle):
    config = {**torch_bundle.config, "explainer": {**torch_bundle.config["explainer"], **change}}
    with pytest.raises(ValueError, match=message):
        to_torch(dataclasses.replace(torch_bundle, config=config))


def test_a_graph_of_other_weights_is_no_parity(torch_bundle, rounded):
    session = OnnxSession(torch_bundle.model_bytes(), device="cpu")
    assert check_parity(rounded, session) <= 1e-4
    with torch.no_grad():
        rounded.explainer.regression.bias.add_(1e-3)
    with pytest.raises(ParityError, match="differs from the torch modules"):
        check_parity(rounded, session)
    with torch.no_grad():
        rounded.explainer.regression.bias.fill_(torch.nan)
    with pytest.raises(ParityError):
        check_parity(rounded, session)


def test_the_card_says_what_was_checked(torch_bundle):
    card = torch_bundle.manifest.card
    assert card["label_agreement_with_unrounded"] >= 0.999
    assert card["largest_difference_from_torch"] <= 1e-4
    assert card["validation"]["texts"] == 12
    assert 0 <= card["validation"]["calibration_error"] <= 1
    assert torch_bundle.manifest.temperature == card["validation"]["temperature"]


def test_another_class_needs_no_second_run(pair):
    """Explained alone from what a batch gave out, to the last bit."""
    session = pair.session
    assert session.retargets
    for shape in ((1, 24), (7, 40), (4, 64)):
        ids, mask, target = (values.numpy() for values in rows(*shape))
        kept = session.run(ids, mask, target, explain=True, keep=True)
        assert kept.states
        for other in (0, 1):
            targets = np.full(len(ids), other)
            expected = session.run(ids, mask, targets, explain=True)
            for row in range(len(ids)):
                states = {name: values[row : row + 1] for name, values in kept.states.items()}
                weights, chances = session.retarget(states, targets[:1])
                assert weights[0].tobytes() == expected.weights[row].tobytes()
                assert chances[0].tobytes() == expected.label_probs[row].tobytes()


def test_half_precision_gives_no_states(pair):
    assert not OnnxSession(to_half(pair.model), device="cpu").retargets


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (7, 40)])
def test_the_session_answers_as_the_file(pair, shape, keep):
    """To the last bit: what the graph gives out besides changes nothing of it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph = ort.InferenceSession(pair.model, options, ["CPUExecutionProvider"])
    names = ("input_ids", "attention_mask", "target")
    feed = dict(zip(names, (values.numpy() for values in rows(*shape)), strict=True))
    found = pair.session.run(*feed.values(), explain=True, keep=keep)
    expected = graph.run(["logits", "weights", "label_probs"], {**feed, "explain": np.array(True)})
    mine = (found.logits, found.weights, found.label_probs)
    assert [part.tobytes() for part in mine] == [part.tobytes() for part in expected]


@pytest.mark.parametrize("record", [False, True])
def test_runs_on_bound_buffers_are_the_plain_runs(pair, record):
    """With rows that only fill a bucket, too; to the last bit."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    graphs = {}
    for explain in (True, False):
        half = split(pair.model, explain=explain)
        session = ort.InferenceSession(half, options, ["CPUExecutionProvider"])
        graphs[explain] = BoundGraph(session, "cpu", explain=explain, record=record)
    for shape in ((3, 24), (1, 24), (7, 33), (4, 24)):
        ids, mask, target = rows(*shape)
        feed = (ids.numpy(), mask.numpy(), target.numpy())
        expected = run(pair.session, ids, mask, target)
        found = graphs[True].run(*feed)
        assert [part.tobytes() for part in found] == [part.tobytes() for part in expected]
        [logits] = graphs[False].run(*feed)
        assert logits.tobytes() == expected[0].tobytes()


def gpu_answers(model, device):
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDAExecutionProvider")
    session = OnnxSession(model, device=device)
    return [run(session, *rows(*shape)) for shape in ((3, 24), (1, 24), (3, 24))]


# Not run where they were written: there was no GPU.


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("device", "precision"), [("cuda", "fp32"), ("cuda", "fp16"), ("cuda-graphs", "fp16")]
)
def test_a_gpu_answers_as_the_processor(pair, device, precision):
    model = pair.model if precision == "fp32" else to_half(pair.model)
    for found, shape in zip(gpu_answers(model, device), ((3, 24), (1, 24), (3, 24)), strict=True):
        ids, mask, target = rows(*shape)
        inside = mask.numpy() == 1
        logits, weights, chances = run(pair.session, ids, mask, target)
        atol = 1e-3 if precision == "fp32" else 3e-2
        np.testing.assert_allclose(found[0], logits, atol=atol)
        np.testing.assert_allclose(found[1][inside], weights[inside], atol=atol)
        np.testing.assert_allclose(found[2][inside], chances[inside], atol=atol)
