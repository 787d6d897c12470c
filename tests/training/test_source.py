"""From a name to a black box, above all `module:function`."""

import hashlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from transformers import AutoModel, AutoModelForSequenceClassification

from training.blackbox.callable import (
    CallableBlackBox,
    CallableError,
    import_function,
    is_function_spec,
    source_digest,
)
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.source import BlackBoxSource, identity

# Importing it


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder, which is on no path; its name is its own."""

    def write(name, source):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        return path

    monkeypatch.chdir(tmp_path)
    path = [*sys.path]
    yield write
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("l2e_")]:
        del sys.modules[name]


def test_a_function_of_the_current_folder(module):
    module("l2e_toy_one", "def predict(texts): return [[0.25, 0.75] for _ in texts]\n")
    module("l2e_toy_two.inner.deep", "class P:\n  def __call__(self, t): return 3\np = P()\n")
    assert import_function("l2e_toy_one:predict")(["a"]) == [[0.25, 0.75]]
    assert import_function("l2e_toy_two.inner.deep:p")(["a"]) == 3


def test_a_method_of_an_object(module):
    """The digest is that of the file with its class."""
    path = module(
        "l2e_toy_model",
        "class Model:\n    def predict(self, texts): return [self.row] * len(texts)\n"
        "class Inner:\n    pass\n"
        "model = Model()\nmodel.row = [0.25, 0.75]\nouter = Inner()\nouter.inner = model\n",
    )
    for spec in ("l2e_toy_model:model.predict", "l2e_toy_model:outer.inner.predict"):
        assert import_function(spec)(["a"]) == [[0.25, 0.75]]
        black_box = BlackBoxSource(spec).open()
        assert isinstance(black_box, CallableBlackBox)
        found = identity(black_box, spec)
        assert found["function"] == spec
        assert found["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_current_folder_comes_last(module):
    """A file beside the data does not stand in for a library."""
    module("math", "def sqrt(texts): return 'ours'\n")
    module("hypothesis", "def given(texts): return 'ours'\n")
    sqrt: Any = import_function("math:sqrt")
    assert sqrt(4.0) == 2.0
    found: Any = import_function("hypothesis:given")
    assert found is given


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "l2e_toy_none:f",
            ["no module l2e_toy_none", "in the folder of l2e_toy_none.py"],
        ),
        ("l2e_toy.none:f", ["no module l2e_toy.none", "l2e_toy.none.py"]),
        ("l2e_toy_not.a.package:f", ["no module l2e_toy_not;"]),
        ("l2e_toy:g", ["module l2e_toy has no function g"]),
        ("l2e_toy:number", ["l2e_toy:number is a int, not a function of texts"]),
        ("l2e_toy:g.predict", ["module l2e_toy has no attribute g"]),
        ("l2e_toy:number.predict", ["number, a int, has no attribute predict"]),
        ("l2e_toy:number.real.predict", ["real, a int, has no attribute predict"]),
        ("l2e_toy:number.real", ["l2e_toy:number.real is a int, not a function of texts"]),
        ("l2e_needs:f", ["no module l2e", "l2e_needs needs it: install it"]),
        ("l2e_needs_more:f", ["no module l2e_absent.inner", "l2e_needs_more needs it: install"]),
    ],
)
def test_what_cannot_be_imported_is_one_line(spec, words, module):
    module("l2e_toy.__init__", "number = 3\ndef f(texts): return []\n")
    module("l2e_needs", "import l2e_ne\n")  # a name that its own starts with
    module("l2e_absent.__init__", "")
    module("l2e_needs_more", "import l2e_absent.inner\n")
    with pytest.raises(CallableError) as caught:
        import_function(spec)
    message = str(caught.value)
    assert message.startswith(spec)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["m:f", "a.b_c.d1:_f", "été:f", "m:p_proba", "m:a.f", "m.n:a.b.c"])
def test_names_that_are_functions(name):
    assert is_function_spec(name)


@pytest.mark.parametrize(
    "name", ["m", "m:", ":f", "m:f:g", "m:f.", "m:.f", "m:a..f", "m:a.1f", "a/b:f", "1m:f", "m:f()",
             "package:MODULE/folder", "a b:f", "package:module", "package:a.b", "org/model",
             "C:\\model", ""],
)  # fmt: skip
def test_names_that_are_not(name):
    assert not is_function_spec(name)


# Which function it is


def test_the_digest_knows_the_file(module):
    source = "def f(texts): return [[0.5, 0.5]] * len(texts)\ng = f\n"
    module("l2e_toy_a", source)
    module("l2e_toy_b", source)
    module("l2e_toy_c", source + "# another\n")
    a, b, c = (source_digest(import_function(f"l2e_toy_{letter}:f")) for letter in "abc")
    assert a == b != c
    others: list[Any] = [print, np.asarray, object()]
    for odd in others:
        assert len(source_digest(odd)) == 64  # of no file, or of one


def test_what_decides_the_answers_of_a_function(module):
    module("l2e_toy_a", "def f(texts): return [[0.5, 0.5]] * len(texts)\n")
    source = BlackBoxSource("l2e_toy_a:f", mask_string="…")
    black_box = source.open()
    assert isinstance(black_box, CallableBlackBox)
    assert black_box.labels == ("0", "1")
    assert identity(black_box, source.name) == {
        "function": "l2e_toy_a:f",
        "source_sha256": source_digest(black_box.predict),
        "mask_string": "…",
        "eps": 1e-6,
    }


# Models


def test_a_checkpoint_and_a_bundle_are_opened(lively_checkpoint, torch_bundle):
    for name, labels in ((lively_checkpoint, ("A", "B")), (torch_bundle.path, None)):
        source = BlackBoxSource(str(name), labels, precision="bf16", max_tokens=32, overlap=4)
        black_box = source.open()
        assert isinstance(black_box, HuggingFaceBlackBox)
        assert black_box.labels == (labels or ("NEG", "POS"))
        assert black_box.encoder.max_tokens == 32
        assert identity(black_box) == {
            "classifier": state_digest(black_box), "precision": "bf16",
        }  # fmt: skip


def test_an_encoder_without_a_trained_head_is_refused(lively_checkpoint, tmp_path):
    AutoModel.from_pretrained(lively_checkpoint).save_pretrained(tmp_path)
    shutil.copy(lively_checkpoint / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match=r"is not fine-tuned as a classifier \(it has no classif"):
        BlackBoxSource(str(tmp_path), ("A", "B")).open()


def test_a_checkpoint_in_half_precision_is_computed_in_full(lively_checkpoint, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(lively_checkpoint)
    model.bfloat16().save_pretrained(tmp_path)
    shutil.copy(lively_checkpoint / "tokenizer.json", tmp_path)
    black_box = BlackBoxSource(str(tmp_path)).open()
    assert isinstance(black_box, HuggingFaceBlackBox)
    assert {parameter.dtype for parameter in black_box.model.parameters()} == {torch.float32}
    assert identity(black_box)["classifier"]


def test_a_bundle_has_its_own_labels(torch_bundle):
    with pytest.raises(ValueError, match=r"has the labels NEG,POS: leave --labels out"):
        BlackBoxSource(str(torch_bundle.path), ("A", "B")).open()
    assert BlackBoxSource(str(torch_bundle.path), ("NEG", "POS")).open().labels == ("NEG", "POS")
