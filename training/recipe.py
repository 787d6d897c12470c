"""Reads recipes from TOML; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from training.config import (
    NEUTRAL,
    NO_COPIES,
    AlignmentStudy,
    Comparison,
    DataSource,
    Recipe,
    RecipeError,
    Student,
)
from training.demands import black_box_demands


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


def read_study(path: Path, overrides: Sequence[str] = ()) -> AlignmentStudy:
    """Reads what `l2e align` trains and compares, as `read_recipe` reads a recipe.

    The recipes of its rows are not read.

    Raises:
        RecipeError: also on a row that cannot be explained, or compared as it asks.
    """
    study: AlignmentStudy = _build(AlignmentStudy, _read(path, overrides), str(path))
    _insist(_study_demands(study), str(path))
    return study


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
    demands = {
        "name: give a plain folder name": _is_folder_name(recipe.name),
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
        **_epoch_demands(recipe),
        **black_box_demands(recipe.blackbox),
        "data: labels: NEUTRAL is the name of the class that copies: neutral adds": not (
            recipe.blackbox.copies.neutral and NEUTRAL in labels
        ),
        "attribution: shard: give at least 1": recipe.attribution.shard >= 1,
        **_student_demands(recipe.explainer),
        **_source_demands(sources),
    }
    _insist(demands, where)


def _epoch_demands(recipe: Recipe) -> dict[str, bool]:
    black_box, kept = recipe.blackbox, recipe.blackbox.fit.epochs == 0
    changes = (
        black_box.copies != NO_COPIES
        or black_box.feedback.every > 0
        or black_box.rationale.random
        or black_box.cnn.attention_heads > 0
        or black_box.cnn.pooling == "evidence"
    )
    return {
        "blackbox: fit: epochs: give at least 1, or 0 with architecture trained, which keeps the "
        "classifier as it is": (
            black_box.fit.epochs >= 1 or (kept and black_box.architecture == "trained")
        ),
        "blackbox: fit: epochs: 0 trains nothing: leave copies, feedback, rationale.random, and "
        "attention_heads and pooling of cnn out": not (kept and changes),
        "explainer: fit: epochs: give at least 1": recipe.explainer.fit.epochs >= 1,
    }


def _student_demands(student: Student) -> dict[str, bool]:
    layers = student.layers
    losses = {"regression": student.regression, "ranking": student.ranking}
    losses["labelling"] = student.labelling
    return {
        "explainer: regression, ranking, labelling: give weights of at least 0, finite": all(
            0 <= weight < math.inf for weight in losses.values()
        ),
        "explainer: labelling: give more than 0: its labels are always served": (
            losses["labelling"] > 0
        ),
        f"explainer: {student.decode}: give more than 0, or decode what is trained": (
            losses[student.decode] > 0
        ),
        'explainer: layers: give different ones from 0 up, in order, with reads = "layers" alone': (
            bool(layers) == (student.reads == "layers")
            and layers == tuple(sorted({*layers}))
            and min(layers, default=0) >= 0
        ),
        "explainer: keep_gb: give 0 or more": 0 <= student.keep_gb < math.inf,
        "explainer: heads: give a divisor of width": (
            student.heads >= 1 and student.width % student.heads == 0
        ),
    }


def _insist(demands: Mapping[str, bool], where: str) -> None:
    for demand, met in demands.items():
        if not met:
            raise RecipeError(f"{where}: {demand}")


def _is_folder_name(name: str) -> bool:
    return Path(name).name == name not in ("", "..")


def _source_demands(sources: Sequence[DataSource]) -> dict[str, bool]:
    counts = [count for source in sources for count in (source.limit, source.explained)]
    return {
        "part of a source: give [FROM, TO] with 0 <= FROM < TO <= 1": all(
            len(source.part) == 2 and 0 <= source.part[0] < source.part[1] <= 1
            for source in sources
        ),
        "repeat of a source: give at least 1": all(source.repeat >= 1 for source in sources),
        "limit or explained of a source: give at least 1": all(
            count is None or count >= 1 for count in counts
        ),
    }


def _study_demands(study: AlignmentStudy) -> dict[str, bool]:
    every = (study.source, study.training, *(row.source for row in study.rows.values()))
    demands = {
        "name: give a plain folder name": _is_folder_name(study.name),
        "rows: give at least one": bool(study.rows),
        **_source_demands([source for source in every if source is not None]),
    }
    for name in study.rows:
        demands |= _row_demands(study, name)
    return demands


def _row_demands(study: AlignmentStudy, name: str) -> dict[str, bool]:
    row, seeds = study.rows[name], study.seeds_of(name)
    known = [study.rows[other] for other in row.against if other in study.rows]
    judged, *others = (
        (part.source, part.teachers, part.tokens, part.limit, part.precision)
        for part in (row, *known)
    )
    taken = {entry.partition("=")[0] for entry in row.set} & {"name", "seed", "data.root"}
    return {
        f"rows.{name}: name the row as a folder can be named": _is_folder_name(name),
        f"rows.{name}: seeds: give one or more different ones from 0 to 2^63 - 1": (
            len(set(seeds)) == len(seeds) > 0 and min(seeds) >= 0 and max(seeds) < 2**63
        ),
        f"rows.{name}: tokens: give at least 8, or 0 for whole texts": (
            row.tokens == 0 or row.tokens >= 8
        ),
        f"rows.{name}: limit: give at least 1": row.limit is None or row.limit >= 1,
        f"rows.{name}: set: {', '.join(sorted(taken))} is for the study to say": not taken,
        f"rows.{name}: source: say where the judged texts are, here or in [source]": not (
            row.teachers and row.source is None and study.source is None
        ),
        **{
            f"rows.{name}: against: there is no other row {other!r}": (
                other in {*study.rows} - {name}
            )
            for other in row.against
        },
        f"rows.{name}: against: name each row once": len({*row.against}) == len(row.against),
        f"rows.{name}: against {', '.join(row.against)}: give the rows the same source, teachers, "
        "tokens, limit and precision": all(judged == other for other in others),
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


def _build(kind: Any, value: Any, where: str, default: Any = None) -> Any:
    """Turns plain TOML values into the annotated type, checking each."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, default)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise RecipeError(f"{where} is {value!r}; choose one of {typing.get_args(kind)}")
        return value
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return None if value is None else _build(inner[0], value, where, default)
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


def _build_dataclass(kind: Any, value: Any, where: str, default: Any) -> Any:
    """Takes what is not given from `default`: the same class may have others in other places."""
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
    if missing and default is None:
        raise RecipeError(f"{where} lacks {missing[0]!r}")
    defaults = {part.name: _default(part) for part in dataclasses.fields(kind)}
    if default is not None:
        defaults = {name: getattr(default, name) for name in defaults}
    built = {
        key: _build(hints[key], part, f"{where}: {key}", defaults[key])
        for key, part in value.items()
    }
    return kind(**built) if default is None else dataclasses.replace(default, **built)


def _default(part: dataclasses.Field[Any]) -> Any:
    if part.default_factory is not dataclasses.MISSING:
        return part.default_factory()
    return None if part.default is dataclasses.MISSING else part.default


def _expect(value: Any, kind: Any, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = kind.__name__ if isinstance(kind, type) else "list"
        raise RecipeError(f"{where} is {value!r}, a {type(value).__name__}; expected {name}")
