"""Recipes: what they may say, and one line for what they may not."""

import dataclasses
import json
from pathlib import Path

import pytest

from training.attribution.teachers import TEACHERS, takes_budget
from training.config import (
    DataSource,
    EvaluationSet,
    Optimization,
    RecipeError,
)
from training.recipe import read_comparison, read_recipe, with_defaults

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
name = "small"
[data]
labels = ["NEG", "POS"]
[[data.train]]
path = "train.tsv"
[[data.validation]]
path = "dev.tsv"
"""


@pytest.fixture
def read(tmp_path):
    """Reads a recipe from its text."""

    def read_text(text, *overrides):
        path = tmp_path / "small.toml"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path, overrides)

    return read_text


def refusal(read, text, *overrides):
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_short_recipe_has_defaults(read):
    recipe = read(SMALL)
    assert recipe.name == "small"
    assert recipe.data.labels == ("NEG", "POS")
    assert recipe.data.train == (DataSource(path="train.tsv"),)
    assert recipe.data.train[0].split == "train"
    assert recipe.blackbox.fit == Optimization()
    assert recipe.explainer.fit.epochs == 8
    assert recipe.evaluation == {}


@pytest.mark.parametrize(
    "override", ["explainer.fit.epochs=3", "explainer={ fit = { epochs = 3 } }"]
)
def test_a_table_given_in_part_keeps_the_defaults_of_its_place(read, override):
    whole = read(SMALL).explainer.fit
    assert whole.learning_rate != Optimization().learning_rate, "a student learns faster"
    assert read(SMALL, override).explainer.fit == dataclasses.replace(whole, epochs=3)


def test_every_kind_of_value_is_read(recipe):
    assert recipe.seed == 3
    assert recipe.attribution.chunk_tokens == (24, 32)
    assert recipe.blackbox.fit.learning_rate == 3e-3
    assert recipe.data.train[0].label_map == {"0": "NEG", "1": "POS"}
    assert recipe.data.train[0].limit is None
    [dev] = recipe.evaluation.values()
    assert dev.teachers == {"lime": 20, "occlusion": 0}
    assert dev.limit == 8
    assert dev.source.path == "dev.tsv"


def test_a_recipe_cannot_be_changed(recipe):
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 4


def test_a_recipe_becomes_plain_json_and_says_everything(recipe):
    stored = json.loads(json.dumps(recipe.to_dict()))
    assert stored["data"]["train"][0]["label_map"] == {"0": "NEG", "1": "POS"}
    assert stored["blackbox"]["fit"]["clip"] == 1.0
    assert set(stored) == {part.name for part in dataclasses.fields(recipe)}


def test_a_whole_number_may_stand_for_a_float(read):
    recipe = read(SMALL + "[blackbox]\nmask_share = 1\n")
    assert recipe.blackbox.mask_share == 1.0
    assert type(recipe.blackbox.mask_share) is float


RECIPES = ROOT / "training" / "recipes"
COMPARISON, STUDY = RECIPES / "teachers.toml", RECIPES / "feedback.toml"


@pytest.mark.parametrize("path", sorted({*RECIPES.glob("*.toml")} - {COMPARISON, STUDY}))
def test_the_shipped_recipes_are_recipes(path):
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert recipe.licence


def test_the_shipped_comparison_has_all_teachers_on_both_sets():
    comparison = read_comparison(COMPARISON)
    assert comparison.name == "teachers"
    assert set(comparison.evaluation) == {"sst2_dev", "movies_val"}
    for part in comparison.evaluation.values():
        assert {*part.teachers} > {*TEACHERS}
        assert any(name.startswith("ensemble:") for name in part.teachers)
        assert all((budget > 0) == takes_budget(name) for name, budget in part.teachers.items())


def test_a_short_comparison_has_defaults_and_takes_overrides(tmp_path):
    path = tmp_path / "few.toml"
    path.write_text(
        'name = "few"\nblackbox = "some/bundle"\n[evaluation.dev.source]\npath = "dev.tsv"\n'
        "[evaluation.dev.teachers]\nlime = 9\n",
        encoding="utf-8",
    )
    comparison = read_comparison(path, ["root=/data", "evaluation.dev.limit=3"])
    assert (comparison.root, comparison.seed) == ("/data", 0)
    expected = EvaluationSet(DataSource("dev.tsv"), {"lime": 9}, limit=3)
    assert comparison.evaluation == {"dev": expected}
    with pytest.raises(RecipeError, match=r"few\.toml has unknown key 'data'; known: name, black"):
        read_comparison(path, ["data.root=/data"])
    with pytest.raises(RecipeError, match=r"lime is 'many', a str; expected int"):
        read_comparison(path, ["evaluation.dev.teachers.lime=many"])
    with pytest.raises(RecipeError, match=r"has unknown key 'blackbox'|lacks 'data'|blackbox"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=7", lambda recipe: recipe.seed == 7),
        ("data.root=/data/of mine", lambda recipe: recipe.data.root == "/data/of mine"),
        ('data.root="/data"', lambda recipe: recipe.data.root == "/data"),
        ("blackbox.fit.epochs=1", lambda recipe: recipe.blackbox.fit.epochs == 1),
        ("blackbox.fit.learning_rate=1e-4", lambda r: r.blackbox.fit.learning_rate == 1e-4),
        ("attribution.chunk_tokens=[64, 128]", lambda r: r.attribution.chunk_tokens == (64, 128)),
        ("explainer.reads=own", lambda recipe: recipe.explainer.reads == "own"),
        ("data.labels=['a', 'b']", lambda recipe: recipe.data.labels == ("a", "b")),
        ("description=a = b", lambda recipe: recipe.description == "a = b"),
    ],
)
def test_an_override_wins(read, override, value):
    assert value(read(SMALL, override))


def test_the_last_override_wins(read):
    assert read(SMALL, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", ["--set seed", "key=value"]),
        ("seed=yes", ["seed", "'yes'", "expected int"]),
        ("seed=true", ["seed", "expected int"]),
        ("name=3", ["name", "expected str"]),
        ("sede=3", ["unknown key 'sede'", "seed"]),
        ("blackbox.fit.epoch=3", ["blackbox: fit", "unknown key 'epoch'", "epochs"]),
        ("name.of.all=1", ["--set name.of.all", "name is not a table"]),
        ("data.train.0.path=a", ["train is not a table"]),
        ("explainer.reads=most", ["explainer: reads", "'most'", "all", "own"]),
        ("blackbox.fit.precision=fp16", ["precision", "'fp16'", "bf16"]),
        ("attribution.chunk_tokens=64", ["chunk_tokens", "64"]),
        ("attribution.chunk_tokens=['a']", ["chunk_tokens[0]", "expected int"]),
        ("data.train='a.tsv'", ["train", "'a.tsv'"]),
        ("data.train=['a.tsv']", ["train[0]", "'a.tsv'", "expected dict"]),
        ("evaluation.dev.limit=3", ["evaluation.dev lacks 'source'"]),
        ("=1", ["unknown key ''"]),
    ],
)
def test_a_wrong_override_is_named(read, override, words):
    message = refusal(read, SMALL, override)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "small"\n', "", ["small.toml lacks 'name'"]),
        ('path = "train.tsv"', 'pahth = "train.tsv"', ["data: train[0]", "'pahth'", "path"]),
        ('path = "train.tsv"', 'split = "train"', ["data: train[0] lacks 'path'"]),
        ('labels = ["NEG", "POS"]', "", ["data lacks 'labels'"]),
        ('labels = ["NEG", "POS"]', 'labels = ["NEG"]', ["labels", "at least two"]),
        ('labels = ["NEG", "POS"]', 'labels = ["NEG", "NEG"]', ["labels", "different"]),
        ('[[data.train]]\npath = "train.tsv"', "train = []", ["data: train", "at least one"]),
        ('"small"', '"../elsewhere"', ["name", "plain folder name"]),
        ('"small"', '".."', ["name", "plain folder name"]),
        ('"small"', '""', ["name", "plain folder name"]),
        ('name = "small"', 'name = "small"\nexplainer.reads = "layers"', ["explainer: layers"]),
        ('name = "small"', 'name = "small"\nexplainer.layers = [1]', ["explainer: layers"]),
        (
            'name = "small"',
            'name = "small"\nexplainer = { reads = "layers", layers = [2, 0] }',
            ["explainer: layers", "in order"],
        ),
        ('name = "small"', 'name = "small"\nexplainer.keep_gb = -1.0', ["keep_gb"]),
        ('name = "small"', 'name = "small"\nexplainer.keep_gb = inf', ["keep_gb"]),
        ('name = "small"', 'name = "small"\nexplainer.heads = 5', ["heads", "divisor of width"]),
        *(
            (
                'name = "small"',
                'name = "small"\nblackbox.architecture = "trained"\n'
                f"blackbox.fit.epochs = 0\nblackbox.{more}",
                ["epochs: 0 trains nothing"],
            )
            for more in (
                "copies.only_rationale = 0.5",
                "copies.neutral = true",
                "rationale.random = true",
                "feedback = { every = 1, budget = 9 }",
                'cnn.pooling = "evidence"',
            )
        ),
        ('name = "small"', 'name = "small"\nexplainer.fit.epochs = 0', ["explainer: fit: epochs"]),
        ('name = "small"', 'name = "small"\nblackbox.fit.epochs = 0', ["epochs", "trained"]),
        ('path = "train.tsv"', 'path = "train.tsv"\nlimit = 0', ["limit", "at least 1"]),
        ('path = "train.tsv"', 'path = "train.tsv"\nrepeat = 0', ["repeat", "at least 1"]),
        ('path = "train.tsv"', 'path = "a.tsv"\nlabel_map = { 0 = 1 }', ["label_map.0", "str"]),
        ('name = "small"', 'name = "small', ["small.toml is not TOML", "line 2"]),
        ('name = "small"', "name", ["small.toml is not TOML"]),
    ],
)
def test_a_wrong_recipe_is_named(read, old, new, words):
    assert old in SMALL
    message = refusal(read, SMALL.replace(old, new))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("blackbox.max_tokens=4", ["max_tokens", "at least 8"]),
        ("blackbox.overlap=128", ["overlap", "half"]),
        ("blackbox.cnn.kernels=[3, 5]", ["as many channels as kernels"]),
        ("blackbox.cnn.kernels=[3, 4, 7]", ["odd kernels"]),
        ("blackbox.cnn.kernels=[3, 5, -1]", ["odd kernels"]),
        ("blackbox.cnn.attention_heads=3", ["attention_heads", "divisor"]),
        ("blackbox.cnn.attention_heads=-1", ["attention_heads"]),
        ("blackbox.cnn.dropout=1", ["dropout", "less than 1"]),
        ("blackbox.cnn.vector_size=0", ["vector_size"]),
        ("blackbox.mlp.units=[16, 0]", ["units"]),
        ("blackbox.vocabulary.skip=-1", ["vocabulary", "skip"]),
        ("blackbox.copies.neutral=true", ["neutral needs without_rationale or graded"]),
        ("blackbox.architecture=rnn", ["architecture", "'rnn'", "cnn"]),
        ("blackbox.copies.graded=-0.1", ["copies", "at least 0"]),
        ("blackbox.copies={ graded = 0.6, only_rationale = 0.6 }", ["copies", "at most 1"]),
    ],
)
def test_a_black_box_that_cannot_be_is_refused(read, override, words):
    message = refusal(read, SMALL, override)
    for word in words:
        assert word in message


def test_a_recipe_of_an_earlier_version_gets_what_it_did_not_know(read):
    """So a run that was begun before an update goes on."""
    recipe = json.loads(json.dumps(read(SMALL).to_dict()))
    before = json.loads(json.dumps(recipe))
    for name in ("architecture", "vocabulary", "cnn", "mlp", "copies"):
        del before["blackbox"][name]
    for source in (*before["data"]["train"], *before["data"]["validation"]):
        del source["part"]
    assert with_defaults(before) == recipe
    assert with_defaults({**before, "seed": 9})["seed"] == 9
    unreadable = {**before, "of_a_later_version": 1}
    assert with_defaults(unreadable) == unreadable


def test_the_neutral_class_has_its_name_for_itself(read):
    labels = "data.labels=['NEG', 'NEUTRAL']"
    assert read(SMALL, labels).classes == ("NEG", "NEUTRAL")
    copies = "blackbox.copies={ neutral = true, graded = 0.5 }"
    assert "NEUTRAL is the name" in refusal(read, SMALL, labels, copies)
    assert read(SMALL, copies).classes == ("NEG", "POS", "NEUTRAL")


@pytest.mark.parametrize("part", ["[0.5]", "[0.5, 0.5]", "[-0.1, 1]", "[0, 1.1]", "[0, 0.5, 1]"])
def test_a_part_goes_from_less_to_more(read, part):
    text = SMALL.replace('path = "train.tsv"', f'path = "train.tsv"\npart = {part}')
    assert "part of a source" in refusal(read, text)


@pytest.mark.parametrize("tokens", ["[]", "[64, 4]"])
def test_chunks_must_hold_something(read, tokens):
    assert "at least 8" in refusal(read, SMALL, f"attribution.chunk_tokens={tokens}")


def test_a_missing_recipe_says_where_there_are_some(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RecipeError, match=r"no recipe at .* training/recipes"):
            read_recipe(path)


def test_a_recipe_may_start_with_a_byte_order_mark_and_have_windows_line_ends(tmp_path):
    path = tmp_path / "small.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert read_recipe(path).name == "small"


def test_a_recipe_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "small.toml"
    path.write_bytes('name = "café"\n'.encode("latin-1"))
    with pytest.raises(RecipeError, match="is not TOML"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ranking=-0.1"], ["ranking", "at least 0"]),
        (["regression=inf"], ["regression", "finite"]),
        (["labelling=0"], ["labelling", "always served"]),
        (["regression=0"], ["explainer: regression", "decode what is trained"]),
        (["decode=ranking", "ranking=0"], ["explainer: ranking", "decode what is trained"]),
        (["regression=0", "ranking=0", "labelling=0"], ["labelling", "more than 0"]),
    ],
)
def test_no_untrained_head_is_served(read, overrides, words):
    message = refusal(read, SMALL, *(f"explainer.{override}" for override in overrides))
    for word in words:
        assert word in message
    assert read(SMALL, "explainer.regression=0", "explainer.decode=labelling").explainer.ranking
