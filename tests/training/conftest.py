"""A tiny BERT, tiny labelled data and a tiny recipe, so that every stage runs in seconds."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from models.text import TextEncoder
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.config import Recipe, read_recipe

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
[blackbox.fit]
epochs = 4
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
        num_labels=2,
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
