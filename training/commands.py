"""What the training verbs of the command line do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.explainer import Explainer
from training.attribution.run import BUDGETED, teacher_named
from training.config import DataSource, Recipe, read_recipe
from training.data import load
from training.evaluation.efficiency import measure_speed
from training.evaluation.evaluate import Setting, evaluate
from training.evaluation.report import format_result, format_speed
from training.runtime import native_precision, tune_memory, use_threads, write_json
from training.stages import STAGES, guard_recipe


def run_recipe(path: Path, overrides: Sequence[str], runs: Path, verb: str) -> int:
    """Runs one stage of a recipe, or with `run` all of them."""
    recipe = read_recipe(path, overrides)
    run = runs / recipe.name
    _prepare()
    _check(recipe, with_data=verb == "run")
    guard_recipe(recipe, run)
    for name, stage in STAGES.items():
        if verb in ("run", name):
            print(f"l2e {name}: {run}", file=sys.stderr)
            stage(recipe, run)
    if verb in ("run", "evaluate"):
        for name in recipe.evaluation:
            result = json.loads((run / "evaluation" / f"{name}.json").read_text("utf-8"))
            print(f"\n{name}\n{format_result(result)}")
    if verb in ("run", "export"):
        print(f"bundle: {run / 'bundle'}")
    return 0


def evaluate_bundle(options: argparse.Namespace) -> int:
    """`l2e evaluate --bundle DIR --data PATH`."""
    for flag in ("limit", "budget"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} {value}: give at least 1")
    teachers = with_budgets(options.teacher, options.budget)
    _prepare()
    explainer = Explainer.load(options.bundle)
    source = DataSource(
        path=options.data,
        split=options.split,
        text_column=options.text_column,
        label_column=options.label_column,
        label_map=parse_label_map(options.label_map),
        obtain="give the path of a file or folder with --data",
    )
    setting = Setting(
        teachers=teachers,
        limit=options.limit,
        seed=options.seed,
        precision=native_precision() if options.precision == "auto" else options.precision,
    )
    examples = load(source, explainer.labels)
    work = options.runs / "evaluations"
    _report(evaluate(explainer, examples, setting, work), options.json, format_result)
    return 0


def bench(options: argparse.Namespace) -> int:
    """`l2e bench`."""
    names = [name for name in options.against.split(",") if name.strip()]
    teachers = with_budgets(names, options.budget)
    if options.repeats < 1:
        raise ValueError(f"--repeats {options.repeats}: give at least 1")
    _prepare()
    explainer = Explainer.load(options.bundle)
    result = measure_speed(explainer, teachers, options.repeats)
    _report(result, options.json, format_speed)
    return 0


def with_budgets(teachers: Sequence[str], budget: int) -> dict[str, int]:
    """Gives each teacher its budget, 0 where the text decides how much is spent.

    Args:
        teachers: `NAME` or `NAME=BUDGET`.
        budget: of those that name none.

    Raises:
        ValueError: on an unknown teacher or a budget that is no number.
    """
    found = {}
    for given in teachers:
        name, equals, own = given.strip().partition("=")
        teacher_named(name)
        if equals and not own.isdecimal():
            raise ValueError(f"--teacher {given}: write NAME or NAME=BUDGET")
        found[name] = (int(own) if equals else budget) if name in BUDGETED else 0
    return found


def parse_label_map(text: str) -> Mapping[str, str]:
    """Parses `0=NEG,1=POS`.

    Raises:
        ValueError: on anything else.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    found = {old.strip(): new.strip() for old, _, new in pairs}
    if not all((*found, *found.values())) or len(found) < len(pairs):
        raise ValueError(f"--label-map {text}: write OLD=NEW,OLD=NEW, each OLD once")
    return found


def _check(recipe: Recipe, *, with_data: bool) -> None:
    """Finds now what a later stage would only find hours from now."""
    for name in (
        recipe.attribution.teacher,
        *(name for chosen in recipe.evaluation.values() for name in chosen.teachers),
    ):
        teacher_named(name)
    if with_data:
        for chosen in recipe.evaluation.values():
            load(chosen.source, recipe.data.labels, recipe.data.root)


def _prepare() -> None:
    tune_memory()
    use_threads()


def _report(result: Mapping[str, Any], target: str | None, format_: Any) -> None:
    if target == "-":
        print(json.dumps(result, indent=2))
        return
    if target is not None:
        write_json(Path(target), result)
    print(format_(result))
