"""What the explainer reads and how wide it is, against its faithfulness and its cost.

    python -m tests.bench.curve [RECIPE.toml] [--set KEY=VALUE] [--runs DIR] [--json FILE]
                                [--plot FILE.svg] [--only POINT ...]

Distils the attributions of a recipe into an explainer for each point, exports it and measures it on
a set of the recipe's [evaluation]: its log-odds drop over that of LIME with many samples on the
same texts, and what a reply costs over a graph that holds the classifier alone, at several lengths.
The classifier is the shipped one as it is (`--blackbox ""` trains the recipe's own). Classifier,
attributions and LIME are made once for all points. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from models.explainer import Explainer
from service.settings import Settings
from tests.bench.results import finish, say
from training.config import Recipe, Student
from training.data import load
from training.evaluation.efficiency import Plan, measure_speed
from training.evaluation.evaluate import Setting, evaluate
from training.evaluation.machine import machine
from training.evaluation.picture import COLOURS, GREY, drawing, to_svg
from training.evaluation.shards import texts_digest
from training.guard import guard_data, guard_recipe, hold
from training.recipe import read_recipe
from training.runtime import tune_memory, use_threads, write_json, write_text
from training.stages import attribute, distill_explainer, export, train

ROOT: Final = Path(__file__).resolve().parents[2]
RECIPE: Final = ROOT / "training" / "recipes" / "reviews.toml"
SHARED: Final = ("blackbox", "attributions")  # stages that all points have in common
REFERENCE: Final = "lime"

# Overrides of [explainer] by the name of the point.
POINTS: Final[dict[str, dict[str, Any]]] = {
    "all, 192": {"reads": "all", "width": 192},
    "0 3 6, 192": {"reads": "layers", "layers": [0, 3, 6], "width": 192},
    "2 4 6, 192": {"reads": "layers", "layers": [2, 4, 6], "width": 192},
    "3 6, 192": {"reads": "layers", "layers": [3, 6], "width": 192},
    "0 6, 192": {"reads": "layers", "layers": [0, 6], "width": 192},
    "last, 192": {"reads": "last", "width": 192},
    "0 3 6, 128": {"reads": "layers", "layers": [0, 3, 6], "width": 128},
    "0 3 6, 64": {"reads": "layers", "layers": [0, 3, 6], "width": 64},
    "all, 96": {"reads": "all", "width": 96},
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Explainers of several widths, side by side.")
    parser.add_argument("recipe", type=Path, nargs="?", default=RECIPE, metavar="RECIPE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--blackbox", default=str(Settings().bundle), metavar="DIR", help="kept as it is"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=POINTS, default=[*POINTS], metavar="POINT")
    parser.add_argument("--evaluation", default="sst2", metavar="NAME", help="of the recipe")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="of LIME")
    parser.add_argument("--limit", type=int, default=300, metavar="N", help="texts explained")
    parser.add_argument("--repeats", type=int, default=41, metavar="N", help="of each timing")
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 128, 512], metavar="N")
    parser.add_argument("--shipped", default="all, 192", choices=POINTS, help="marked")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    use_threads()
    tune_memory()
    overrides = [*options.set]
    if options.blackbox:
        kept = json.dumps(options.blackbox)
        overrides += [
            "blackbox.architecture=trained",
            f"blackbox.checkpoint={kept}",
            "blackbox.fit.epochs=0",
        ]
    if options.evaluation not in read_recipe(options.recipe, options.set).evaluation:
        parser.error(f"--evaluation {options.evaluation}: the recipe has no such set")
    home = options.runs / "curve"
    setting = Setting({REFERENCE: options.samples}, options.limit, 0, "bf16")
    plan = Plan({}, tokens=options.tokens, batches=(1,), repeats=options.repeats)
    rows = [
        {"name": name, **POINTS[name], "shipped": name == options.shipped}
        | run_point(
            read_recipe(options.recipe, [*overrides, *overrides_of(name)]),
            home,
            options.evaluation,
            setting,
            plan,
        )
        for name in options.only
    ]
    result = {
        "machine": machine(),
        "evaluation": options.evaluation,
        "reference": {REFERENCE: options.samples},
        "repeats": options.repeats,
        "rows": rows,
    }
    if options.plot is not None:
        write_text(options.plot, draw_curve(result))
    finish(result, options.json, curve_to_markdown)


def overrides_of(name: str) -> list[str]:
    """Returns what a point sets in the recipe, and the name of its run."""
    values = {"layers": [], **POINTS[name]}
    return [
        f"name={json.dumps(name.replace(' ', '_'))}",
        *(f"explainer.{key}={json.dumps(value)}" for key, value in values.items()),
    ]


def run_point(
    recipe: Recipe, home: Path, evaluation: str, setting: Setting, plan: Plan
) -> dict[str, Any]:
    """Distils, exports and measures one point; what is finished is not done again.

    Args:
        recipe: of the point.
        home: of all points.
        evaluation: a set of the recipe's.
        setting: how faithfulness is measured, with the reference as its only teacher.
        plan: of the timing.

    Returns:
        `parameters` of the explainer, `seconds` of its training, `spearman` with the teacher on
        validation texts, `log_odds_drop` and that of the reference, `share` of the two, `n` texts,
        and `ratio` of a reply over the classifier with `reply_ms`, by tokens.
    """
    run = home / recipe.name
    with hold(home), hold(run):
        return _measure_point(recipe, home, run, evaluation, setting, plan)


def _measure_point(
    recipe: Recipe, home: Path, run: Path, evaluation: str, setting: Setting, plan: Plan
) -> dict[str, Any]:
    guard_recipe(recipe, run)
    # What all points have in common must be the same, too.
    guard_recipe(replace(recipe, name=home.name, explainer=Student()), home)
    guard_data(recipe, home)
    for stage in SHARED:
        (home / stage).mkdir(parents=True, exist_ok=True)
        if not (run / stage).exists():
            (run / stage).symlink_to(Path("..", stage), target_is_directory=True)
    say(recipe.name)
    for work in (train, attribute, distill_explainer, export):
        work(recipe, run)
    explainer = Explainer.load(run / "bundle")
    asked = {
        "bundle": explainer.bundle.digest,
        "source": asdict(recipe.evaluation[evaluation].source),
        "setting": asdict(setting),
        "plan": asdict(plan),
        "processor": machine()["processor"],
    }
    key = texts_digest([json.dumps(asked)])
    done = run / f"curve-{key[:16]}.json"
    if done.exists():
        known: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return known
    data = recipe.data
    examples = load(recipe.evaluation[evaluation].source, data.labels, data.root)
    judged = evaluate(explainer, examples, setting, home / "evaluation")
    mine, reference = judged["explainer"], judged["teachers"][REFERENCE]
    history = json.loads((run / "explainer" / "metrics.json").read_text(encoding="utf-8"))
    speed = measure_speed(explainer, plan)["rows"]
    found = {
        "parameters": _parameters(run),
        "seconds": round(history["seconds"], 1),
        "spearman": max(epoch["score"] for epoch in history["history"]),
        "log_odds_drop": mine["log_odds_drop"],
        "reference_log_odds_drop": reference["log_odds_drop"],
        "share": mine["log_odds_drop"] / reference["log_odds_drop"],
        "n": judged["n_explained"],
        "ratio": {str(row["tokens"]): row["ratio"] for row in speed},
        "reply_ms": {str(row["tokens"]): row["reply_ms"] for row in speed},
    }
    write_json(done, found)
    return found


def _parameters(run: Path) -> int:
    from training.stages import load_network

    return sum(part.numel() for part in load_network(run).parameters())


def curve_to_markdown(result: Mapping[str, Any]) -> str:
    """The README's table: a line for each point."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    lengths = [*rows[0]["ratio"]]
    header = ["states read, width", "parameters", "log-odds drop", "share of LIME's"]
    header += [f"reply over classifier, {length} tokens" for length in lengths]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [
            f"{row['name']}{' (shipped)' if row['shipped'] else ''}",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['log_odds_drop']:.3f}",
            f"{row['share']:.3f}",
            *(f"{row['ratio'][length]:.3f}" for length in lengths),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curve(result: Mapping[str, Any]) -> str:
    """Draws faithfulness over cost at each length, the shipped point filled; an SVG."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    lengths = [*rows[0]["ratio"]]
    with drawing(3.4 * len(lengths), 3.6) as figure:
        panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
        for axes, length in zip(panels, lengths, strict=True):
            for row in rows:
                place = row["ratio"][length], row["share"]
                face = COLOURS[0] if row["shipped"] else "none"
                axes.plot(*place, "o", color=COLOURS[0], markerfacecolor=face)
                axes.annotate(row["name"], place, (4, 4), textcoords="offset points", fontsize=7)
            axes.set_title(f"{length} tokens", fontsize=9, color=GREY)
            axes.set_xlabel("reply over classifier alone")
            axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
            axes.margins(0.2)
            axes.spines[:].set_visible(False)
        [(reference, samples)] = result["reference"].items()
        panels[0].set_ylabel(f"log-odds drop over that of {reference}, {samples}")
        return to_svg(figure, "Faithfulness and cost")


if __name__ == "__main__":
    main()
