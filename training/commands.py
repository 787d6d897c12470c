"""What the training verbs of the command line do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.explainer import Explainer
from training.config import DataSource, read_recipe
from training.data import load
from training.evaluation.efficiency import measure_speed
from training.evaluation.evaluate import Setting, evaluate
from training.runtime import tune_memory, use_threads, write_json
from training.stages import STAGES, guard_recipe


def run_recipe(path: Path, overrides: Sequence[str], runs: Path, verb: str) -> int:
    """Runs one stage of a recipe, or with `run` all of them."""
    recipe = read_recipe(path, overrides)
    run = runs / recipe.name
    _prepare()
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
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit}: give at least 1")
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
        teachers=dict.fromkeys(options.teacher, options.budget),
        limit=options.limit,
        seed=options.seed,
        precision=options.precision,
    )
    examples = load(source, explainer.labels)
    work = options.runs / "evaluations"
    _report(evaluate(explainer, examples, setting, work), options.json, format_result)
    return 0


def bench(options: argparse.Namespace) -> int:
    """`l2e bench`."""
    _prepare()
    explainer = Explainer.load(options.bundle)
    teachers = {name: options.budget for name in options.against.split(",") if name}
    result = measure_speed(explainer, teachers, options.repeats)
    _report(result, options.json, format_speed)
    return 0


def parse_label_map(text: str) -> Mapping[str, str]:
    """Parses `0=NEG,1=POS`.

    Raises:
        ValueError: on anything else.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not old or not new for old, _, new in pairs):
        raise ValueError(f"--label-map {text}: write OLD=NEW,OLD=NEW")
    return {old: new for old, _, new in pairs}


def format_result(result: Mapping[str, Any]) -> str:
    """Formats an evaluation as a table for a terminal."""
    header = f"{'':24}{'compreh.':>10}{'suffic.':>10}{'log-odds':>10}{'agree':>8}{'ms/text':>11}"
    lines = [
        f"{result['n']} texts, accuracy {result['accuracy']:.4f}; "
        f"{result['n_explained']} explained; label only "
        f"{result['label_only_ms_per_text']:.1f} ms",
        header,
    ]
    for name, row in {
        "explainer": result["explainer"],
        **result["teachers"],
        "random words": result["random"],
    }.items():
        time = f"{row['ms_per_text']:>11.1f}" if "ms_per_text" in row else f"{'-':>11}"
        lines.append(
            f"{name:24}{row['aopc_comprehensiveness']:>10.3f}{row['aopc_sufficiency']:>10.3f}"
            f"{row['log_odds_drop']:>10.2f}{row['agreement']:>8.2f}{time}"
        )
    return "\n".join(lines)


def format_speed(result: Mapping[str, Any]) -> str:
    """Formats a benchmark as a table for a terminal."""
    lines = [f"{'tokens':>7}{'label only':>12}{'with words':>12}{'ratio':>8}  teachers (times)"]
    for row in result["rows"]:
        teachers = ", ".join(
            f"{name} {found['speedup']:.0f}" for name, found in row["teachers"].items()
        )
        lines.append(
            f"{row['tokens']:>7}{row['label_only_ms']:>9.1f} ms{row['reply_ms']:>9.1f} ms"
            f"{row['ratio']:>8.2f}  {teachers}"
        )
    return "\n".join(lines)


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
