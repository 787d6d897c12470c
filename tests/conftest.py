"""Tiny real objects for every test: a tokenizer, an ONNX graph and a bundle, made in memory.

The model is additive and its answers are known by hand. Each word piece has a value, a multiple
of 1/16 so that float32 sums are exact; with s the sum of the values of a row:

    logits = [-s, s]                for the labels NEG, POS, so the log-odds of POS are 2 s
    weights = 2 value (target POS) or -2 value (target NEG)
    label_probs = .8 for the class that thresholds at 1/4 and 1 choose, .05 for the four others
"""

import string
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from models import bundle
from models.explainer import Explainer
from models.session import FloatArray, IntArray, OnnxSession, Outputs, States

# The same examples in every run, and no example database beside the sources.
settings.register_profile("l2e", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("l2e")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NEUTRAL = (
    "the a an this that it was is and but of in with film movie plot story actor scene music "
    "ending script camera two hours i we my"
)
REVIEW_VALUES = {
    **dict.fromkeys(NEUTRAL.split(), 0.0),
    **{"great": 1.5, "wonderful": 1.25, "moving": 0.75, "funny": 0.5, "good": 0.5, "warm": 0.25},
    **{"clever": 0.375, "loved": 1.0, "really": 0.125, "very": 0.125, "fine": 0.125},
    **{"awful": -1.5, "terrible": -1.25, "dull": -0.75, "boring": -1.0, "bad": -0.5},
    **{"slow": -0.25, "weak": -0.375, "hated": -1.0, "never": -0.125, "not": -0.25, "too": -0.125},
}


def _piece_values() -> dict[str, float]:
    values = dict.fromkeys(SPECIAL, 0.0)
    for number, character in enumerate(string.ascii_lowercase + string.digits):
        values[character] = (number % 5 - 2) / 16
        values[f"##{character}"] = (number % 3 - 1) / 16
    return values | dict.fromkeys(string.punctuation, 0.0) | REVIEW_VALUES


@pytest.fixture(scope="session")
def tiny_values() -> dict[str, float]:
    """The value of each piece, in the order of the vocabulary."""
    return _piece_values()


@pytest.fixture(scope="session")
def tiny_tokenizer_json(tiny_values: dict[str, float]) -> str:
    """A lower-casing WordPiece tokenizer that spells out any ASCII word it does not know."""
    vocabulary = {piece: number for number, piece in enumerate(tiny_values)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer.to_str()


def _explained() -> onnx.GraphProto:
    """The branch that explains; `signed`, `columns`, `zeros` and `five` come from outside."""
    nodes = [
        helper.make_node("Mul", ["signed", "two"], ["weights_on"]),
        # The class is the number of thresholds that the weight reaches: 0 to 4.
        helper.make_node("Unsqueeze", ["weights_on", "last_axis"], ["column"]),
        helper.make_node("GreaterOrEqual", ["column", "thresholds"], ["reached"]),
        helper.make_node("Cast", ["reached"], ["reached_int"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["reached_int", "last_axis"], ["class"], keepdims=0),
        helper.make_node("OneHot", ["class", "five", "off_on"], ["label_probs_on"], axis=-1),
    ]
    return helper.make_graph(nodes, "explained", [], _branch_outputs("on"))


def _label_only() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Identity", ["zeros"], ["weights_off"]),
        helper.make_node("Concat", ["shape", "five"], ["shape_five"], axis=0),
        helper.make_node("ConstantOfShape", ["shape_five"], ["label_probs_off"]),
    ]
    return helper.make_graph(nodes, "label_only", [], _branch_outputs("off"))


def _branch_outputs(suffix: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(f"weights_{suffix}", TensorProto.FLOAT, ["B", "T"]),
        helper.make_tensor_value_info(f"label_probs_{suffix}", TensorProto.FLOAT, ["B", "T", 5]),
    ]


@pytest.fixture(scope="session")
def tiny_model_bytes(tiny_values: dict[str, float]) -> bytes:
    """The additive model of the module docstring as one ONNX graph with the real signature."""
    node = helper.make_node
    nodes = [
        node("Gather", ["values", "input_ids"], ["value"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Mul", ["value", "mask"], ["present"]),
        node("ReduceSum", ["present", "last_axis"], ["sum"], keepdims=1),
        node("Mul", ["sum", "signs"], ["logits"]),
        node("ArgMax", ["logits"], ["predicted"], axis=1, keepdims=0),
        node("Less", ["target", "zero"], ["free"]),
        node("Where", ["free", "predicted", "target"], ["explained_class"]),
        node("Gather", ["signs", "explained_class"], ["sign"]),
        node("Unsqueeze", ["sign", "last_axis"], ["sign_column"]),
        node("Mul", ["present", "sign_column"], ["signed"]),
        node("Shape", ["input_ids"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node(
            "If",
            ["explain"],
            ["weights", "label_probs"],
            then_branch=_explained(),
            else_branch=_label_only(),
        ),
    ]
    constants: dict[str, Any] = {
        "values": np.array(list(tiny_values.values()), dtype=np.float32),
        "signs": np.array([-1, 1], dtype=np.float32),
        "last_axis": np.array([-1], dtype=np.int64),
        "zero": np.array(0, dtype=np.int64),
        "two": np.array(2, dtype=np.float32),
        # Strict at the negative side: -1 itself is high, -1/4 itself is low.
        "thresholds": np.array([-0.9999, -0.2499, 0.25, 1], dtype=np.float32),
        "five": np.array([5], dtype=np.int64),
        "off_on": np.array([0.05, 0.8], dtype=np.float32),
    }
    integers, floats = TensorProto.INT64, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", integers, ["B", "T"]),
            helper.make_tensor_value_info("attention_mask", integers, ["B", "T"]),
            helper.make_tensor_value_info("target", integers, ["B"]),
            helper.make_tensor_value_info("explain", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("logits", floats, ["B", 2]),
            helper.make_tensor_value_info("weights", floats, ["B", "T"]),
            helper.make_tensor_value_info("label_probs", floats, ["B", "T", 5]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def tiny_golden() -> bundle.Golden:
    """Worked out by hand: s = 1.5 - 1 = 0.5 for the words `A great story , but boring .`."""
    return bundle.Golden(
        text="A great story, but boring.",
        target="POS",
        logits=(-0.5, 0.5),
        weights=(0.0, 3.0, 0.0, 0.0, 0.0, -2.0, 0.0),
        tolerance={"fp32": 1e-4},
    )


@pytest.fixture(scope="session")
def tiny_fields(
    tiny_model_bytes: bytes, tiny_tokenizer_json: str, tiny_golden: bundle.Golden
) -> dict[str, Any]:
    """The keyword arguments of `bundle.save`, for tests that change one of them."""
    return {
        "model": tiny_model_bytes,
        "tokenizer_json": tiny_tokenizer_json,
        "config": {"classifier": {"model_type": "tiny"}, "explainer": {"width": 1}},
        "name": "tiny",
        "labels": ("NEG", "POS"),
        "max_tokens": 32,
        "overlap": 8,
        "temperature": 2.0,
        "mask_token": "[MASK]",
        "precision": "fp32",
        "teacher": {"name": "occlusion", "budget": 1},
        "recipe": {"seed": 1},
        "card": {"language": "English", "data": "sentences of our own"},
        "golden": tiny_golden,
        "times": {"created": "2026-01-01T00:00:00Z"},
        "versions": {"l2e": "0.1.0"},
    }


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_fields: dict[str, Any]) -> Path:
    """A bundle directory to read; tests that change files work on a copy."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return bundle.save(path, **tiny_fields).path


@pytest.fixture(scope="session")
def tiny_explainer(tiny_bundle: Path) -> Explainer:
    """The loaded pair, on the CPU."""
    return Explainer.load(tiny_bundle, device="cpu")


class RecordingSession(OnnxSession):
    """The real session, which also remembers what it was asked."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model, device="cpu", threads=1)
        self.shapes: list[tuple[int, int]] = []
        self.targets: list[list[int]] = []
        self.retargeted: list[list[int]] = []
        self.explained: set[bool] = set()

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        target: IntArray,
        *,
        explain: bool,
        keep: bool = False,
    ) -> Outputs:
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        self.targets.append(target.tolist())
        self.explained.add(explain)
        return super().run(input_ids, attention_mask, target, explain=explain, keep=keep)

    def retarget(self, states: States, target: IntArray) -> tuple[FloatArray, FloatArray]:
        self.retargeted.append(target.tolist())
        return super().retarget(states, target)


class WithoutStates(RecordingSession):
    """As on devices that give none."""

    @property
    def retargets(self) -> bool:
        return False


@pytest.fixture
def recorder(tiny_model_bytes: bytes) -> RecordingSession:
    """A session of the tiny graph that keeps the shapes and targets of its runs."""
    return RecordingSession(tiny_model_bytes)


@pytest.fixture(scope="session")
def mixed_texts() -> list[str]:
    """Lengths that fall into several buckets and windows, in no order."""
    return [
        "Great film.",
        "I loved the music and the clever script, " * 9 + "but the ending was awful.",
        "dull",
        "We never hated it; it was warm, funny and moving.",
        "terrible " * 40 + "wonderful " * 70,
        "The camera is slow and the plot too weak.",
        "zyxomma quux " * 30,
    ]
