"""A tiny BERT, tiny labelled data and a tiny recipe, so that every stage runs in seconds."""

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from models.bundle import Bundle
from models.text import TextEncoder
from tests.training.fakes import CurvedBlackBox, LinearBlackBox, Mortal
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.config import Recipe, Student
from training.data import Example
from training.explainer.distill import network_config
from training.explainer.network import ExplainerNetwork
from training.export.release import assemble
from training.recipe import read_recipe

GOOD = ("great", "wonderful", "moving", "funny", "clever", "loved")
BAD = ("awful", "terrible", "dull", "boring", "weak", "hated")
RECIPE = """
name = "tiny"
seed = 3
description = "tiny sentences"
licence = "ours"

[data]
labels = ["NEG", "POS"]
root = "{root}"
[[data.train]]
path = "train.tsv"
text_column = "0"
label_column = "1"
label_map = {{ 0 = "NEG", 1 = "POS" }}
[[data.validation]]
path = "dev.tsv"
text_column = "0"
label_column = "1"
label_map = {{ 0 = "NEG", 1 = "POS" }}

[blackbox]
checkpoint = "{checkpoint}"
max_tokens = 32
overlap = 4
mask_share = 0.25
[blackbox.fit]
epochs = 7
patience = 7
learning_rate = 3e-3
batch_rows = 16
precision = "fp32"
save_seconds = 0.0

[attribution]
teacher = "lime"
budget = 20
chunk_tokens = [24, 32]
shard = 16
precision = "fp32"

[explainer]
width = 16
[explainer.fit]
epochs = 3
learning_rate = 3e-3
batch_rows = 16
patience = 3
precision = "fp32"
save_seconds = 0.0

[evaluation.dev]
teachers = {{ lime = 20, occlusion = 0 }}
limit = 8
[evaluation.dev.source]
path = "dev.tsv"
text_column = "0"
label_column = "1"
label_map = {{ 0 = "NEG", 1 = "POS" }}
"""


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Labelled sentences whose label their judging words decide."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        good = number % 2 == 1
        first, second = chance.sample(GOOD if good else BAD, 2)
        subject = chance.choice(("film", "plot", "story", "ending", "music"))
        tail = " and i was in the scene with my camera" * chance.choice((0, 0, 0, 3))
        rows.append((f"the {subject} was {first} and very {second}{tail} .", int(good)))
    return rows


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """For networks this small a second thread costs more than it saves."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_json: str) -> Path:
    """A folder as `save_pretrained` writes it: a random BERT of two narrow layers."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = json.loads(tiny_tokenizer_json)["model"]["vocab"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        hidden_dropout_prob=0.1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json, encoding="utf-8")
    return folder


@pytest.fixture
def black_box(tiny_checkpoint: Path) -> HuggingFaceBlackBox:
    """The tiny BERT as a black box, windows of 32 tokens."""
    return HuggingFaceBlackBox.from_checkpoint(
        str(tiny_checkpoint), ("NEG", "POS"), max_tokens=32, overlap=4
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv and dev.tsv: text, tab, 0 or 1."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 96, 1), ("dev", 24, 2)):
        lines = [f"{text}\t{label}\n" for text, label in sentences(count, seed)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe_path(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path
) -> Path:
    """The tiny recipe."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(root=tiny_data, checkpoint=tiny_checkpoint), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def recipe(recipe_path: Path) -> Recipe:
    """The tiny recipe, read."""
    return read_recipe(recipe_path)


@pytest.fixture
def encoder(tiny_tokenizer_json: str) -> TextEncoder:
    """The tiny tokenizer with windows of 16 tokens."""
    return TextEncoder.from_json(tiny_tokenizer_json, max_tokens=16, overlap=4)


@pytest.fixture
def linear_black_box(encoder: TextEncoder, tiny_values: dict[str, float]) -> LinearBlackBox:
    """Adds up the values of tests/conftest.py, whole words only: `great` 1.5, `dull` -0.75."""
    return LinearBlackBox(encoder, lambda _, word: tiny_values.get(word, 0.0), bias=0.125)


@pytest.fixture
def placed_black_box(encoder: TextEncoder) -> LinearBlackBox:
    """Only the place of a word counts: 1, -0.5, 0.25 and again."""
    return LinearBlackBox(encoder, lambda place, _: (1.0, -0.5, 0.25)[place % 3])


@pytest.fixture
def curved_black_box(encoder: TextEncoder) -> CurvedBlackBox:
    """Words interact in pairs, triples and a tanh; Shapley values by brute force."""
    return CurvedBlackBox(encoder)


@pytest.fixture
def paired_black_box(encoder: TextEncoder) -> CurvedBlackBox:
    """Words interact in pairs only: Shapley values of long texts by a formula."""
    return CurvedBlackBox(encoder, pairs_only=True)


@pytest.fixture
def mortal() -> type[Mortal]:
    """Wraps a black box so that it is killed at its call number `life`: `mortal(inner, life)`."""
    return Mortal


@pytest.fixture(scope="session")
def lively_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny BERT with weights so large that its answers depend on every word."""
    folder = tmp_path_factory.mktemp("lively")
    black_box = HuggingFaceBlackBox.from_checkpoint(
        str(tiny_checkpoint), ("NEG", "POS"), max_tokens=32, overlap=4
    )
    scale_up(black_box.model)
    black_box.save(folder)
    return folder


@pytest.fixture
def lively_black_box(lively_checkpoint: Path) -> HuggingFaceBlackBox:
    """The lively BERT as a black box, windows of 32 tokens."""
    return load_lively(lively_checkpoint)


def load_lively(folder: Path) -> HuggingFaceBlackBox:
    """Loads the lively BERT; what a test does to it stays in that test."""
    return HuggingFaceBlackBox.from_checkpoint(
        str(folder), ("NEG", "POS"), max_tokens=32, overlap=4
    )


def scale_up(module: nn.Module) -> None:
    """Scales matrices from BERT's 0.02 to what a trained model has, relative to its width."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)


@pytest.fixture
def enliven() -> Callable[[nn.Module], None]:
    """Makes a fresh model's answers depend on every word."""
    return scale_up


def new_network(
    black_box: HuggingFaceBlackBox, reads: str, decode: str = "regression"
) -> ExplainerNetwork:
    """A seeded untrained explainer for a black box; the one that reads some layers has no block."""
    torch.manual_seed(1)
    layers, blocks = ((0, 2), 0) if reads == "layers" else ((), 1)
    settings = Student(reads=reads, layers=layers, width=16, blocks=blocks, decode=decode)  # type: ignore[arg-type]
    return ExplainerNetwork(network_config(black_box, settings, scale=0.75)).eval()


@pytest.fixture(scope="session")
def load_black_box(lively_checkpoint: Path) -> Callable[[], HuggingFaceBlackBox]:
    """Loads the lively BERT as often as a test wants."""
    return lambda: load_lively(lively_checkpoint)


@pytest.fixture(scope="session")
def make_network() -> Callable[..., ExplainerNetwork]:
    """Makes an untrained explainer of a black box: `make_network(black_box, reads, decode)`."""
    return new_network


@pytest.fixture(scope="session")
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter from formatting megabytes of debug lines that pytest would collect."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def torch_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    lively_checkpoint: Path,
    recipe: Recipe,
    quiet_exporter: None,
) -> Bundle:
    """A bundle made from torch modules: the lively BERT and an untrained explainer of it."""
    black_box = load_lively(lively_checkpoint)
    names = black_box.labels
    validation = [
        Example(str(row), text, names[label]) for row, (text, label) in enumerate(sentences(12, 5))
    ]
    return assemble(
        black_box,
        new_network(black_box, "all", "regression"),
        validation,
        recipe=recipe,
        times={},
        versions={},
        path=tmp_path_factory.mktemp("bundles") / "torch",
    )
