"""What the explainer reads and how wide it is, against its faithfulness and its cost.

    python -m tests.bench.curve [RECIPE.toml] [--set KEY=VALUE] [--runs DIR] [--json FILE]
                                [--plot FILE.svg] [--only POINT ...] [--precisions NAME ...]

Distils the attributions of a recipe into an explainer for each point, exports it in each precision
and measures it on a set of the recipe's [evaluation]: its log-odds drop over that of LIME with many
samples on the same texts, and what a reply costs over a graph that holds the classifier alone, at
several lengths. In int8 masked copies, those of LIME too, are answered by the graph that is served;
in fp32 by torch in bfloat16, which is quicker.
The classifier is the shipped one as it is (`--blackbox ""` trains the recipe's own). Classifier,
attributions and LIME are made once for all points. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal

from models import SHIPPED
from models.explainer import Explainer
from tests.bench.results import finish, say
from training.config import Recipe, Student
from training.data import load
from training.evaluation.efficiency import Plan, measure_speed
from training.evaluation.evaluate import Setting, evaluate
from training.evaluation.machine import machine
from training.evaluation.picture import COLOURS, GREY, drawing, to_svg
from training.evaluation.shards import texts_digest
from training.export.precision import PrecisionError, derive_run
from training.guard import guard_data, guard_recipe, hold
from training.recipe import read_recipe
from training.runtime import tune_memory, use_threads, write_json, write_text
from training.stages import attribute, distill_explainer, export, train

Precision = Literal["fp32", "int8"]

ROOT: Final = Path(__file__).resolve().parents[2]
RECIPE: Final = ROOT / "training" / "recipes" / "reviews.toml"
SHARED: Final = ("blackbox", "attributions")  # stages that all points have in common
REFERENCE: Final = "lime"
# By the precision of the bundle: what answers masked copies.
ASKED: Final[Mapping[Precision, str]] = {"fp32": "bf16", "int8": "graph"}

# Overrides of [explainer] by the name of the point.
POINTS: Final[dict[str, dict[str, Any]]] = {
    "all, 192": {"reads": "all", "width": 192, "blocks": 1},
    "0 3 6, 192": {"reads": "layers", "layers": [0, 3, 6], "width": 192, "blocks": 1},
    "0 3 6, 64": {"reads": "layers", "layers": [0, 3, 6], "width": 64, "blocks": 1},
    "all, 96": {"reads": "all", "width": 96, "blocks": 1},
    "all, 192, no block": {"reads": "all", "width": 192, "blocks": 0},
    "0 3 6, 192, no block": {"reads": "layers", "layers": [0, 3, 6], "width": 192, "blocks": 0},
    "2 4 6, 192, no block": {"reads": "layers", "layers": [2, 4, 6], "width": 192, "blocks": 0},
    "0 6, 192, no block": {"reads": "layers", "layers": [0, 6], "width": 192, "blocks": 0},
    "last, 192, no block": {"reads": "last", "width": 192, "blocks": 0},
    "0 3 6, 384, no block": {"reads": "layers", "layers": [0, 3, 6], "width": 384, "blocks": 0},
    "0 3 6, 64, no block": {"reads": "layers", "layers": [0, 3, 6], "width": 64, "blocks": 0},
    # The reference student of Situ et al. (ACL 2021), section 3: on its own, by labels alone.
    "the paper's": {
        "reads": "own",
        "width": 256,
        "blocks": 4,
        "regression": 0.0,
        "ranking": 0.0,
        "labelling": 1.0,
        "decode": "labelling",
    },
}
CHOSEN: Final = "0 3 6, 192, no block"  # as training/recipes/reviews.toml has it


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Explainers of several widths, side by side.")
    parser.add_argument("recipe", type=Path, nargs="?", default=RECIPE, metavar="RECIPE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--blackbox", default=str(SHIPPED), metavar="DIR", help="kept as it is")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=POINTS, default=[*POINTS], metavar="POINT")
    parser.add_argument("--precisions", nargs="+", choices=ASKED, default=[*ASKED], metavar="NAME")
    parser.add_argument("--evaluation", default="sst2", metavar="NAME", help="of the recipe")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="of LIME")
    parser.add_argument("--limit", type=int, default=300, metavar="N", help="texts explained")
    parser.add_argument("--repeats", type=int, default=41, metavar="N", help="of each timing")
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 128, 512], metavar="N")
    parser.add_argument("--shipped", default=CHOSEN, choices=POINTS, help="marked")
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
    settings = {
        precision: Setting({REFERENCE: options.samples}, options.limit, 0, ASKED[precision])
        for precision in options.precisions
    }
    plan = Plan({}, tokens=options.tokens, batches=(1,), repeats=options.repeats)
    rows = [
        {"name": name, **POINTS[name], "shipped": name == options.shipped}
        | run_point(
            read_recipe(options.recipe, [*overrides, *overrides_of(name)]),
            home,
            options.evaluation,
            settings,
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
    recipe: Recipe,
    home: Path,
    evaluation: str,
    settings: Mapping[Precision, Setting],
    plan: Plan,
    least: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Distils, exports and measures one point; what is finished is not done again.

    Args:
        recipe: of the point.
        home: of all points.
        evaluation: a set of the recipe's.
        settings: how faithfulness is measured, with the reference as its only teacher, in each
            precision of the bundle.
        plan: of the timing.
        least: what a bundle in int8 must reach, see `training.export.precision.derive`.

    Returns:
        `parameters` of the explainer, `seconds` of its training, `spearman` with the teacher on
        validation texts, and under `precisions` by their names: `log_odds_drop` and that of the
        reference, `share` of the two, `n` texts, and `ratio` of a reply over the classifier with
        `reply_ms`, by tokens; or why it is `refused`.
    """
    run = home / recipe.name
    with hold(home), hold(run):
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
        history = json.loads((run / "explainer" / "metrics.json").read_text(encoding="utf-8"))
        return {
            "parameters": _parameters(run),
            "seconds": round(history["seconds"], 1),
            "spearman": max(epoch["score"] for epoch in history["history"]),
            "precisions": {
                precision: _measure(
                    recipe, home, _bundle(recipe, run, precision, least), evaluation, setting, plan
                )
                for precision, setting in settings.items()
            },
        }


def _bundle(
    recipe: Recipe, run: Path, precision: Precision, least: tuple[float, float] | None
) -> Path | PrecisionError:
    """Returns the folder of a point's bundle, or why there is none."""
    try:
        return run / "bundle" if precision == "fp32" else derive_run(recipe, run, precision, least)
    except PrecisionError as error:
        return error


def _measure(
    recipe: Recipe,
    home: Path,
    path: Path | PrecisionError,
    evaluation: str,
    setting: Setting,
    plan: Plan,
) -> dict[str, Any]:
    if isinstance(path, PrecisionError):
        return {"refused": str(path)}
    explainer = Explainer.load(path)
    asked = {
        "bundle": explainer.bundle.digest,
        "source": asdict(recipe.evaluation[evaluation].source),
        "setting": asdict(setting),
        "plan": asdict(plan),
        "processor": machine()["processor"],
    }
    key = texts_digest([json.dumps(asked)])
    done = home / recipe.name / f"curve-{key[:16]}.json"
    if done.exists():
        known: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return known
    data = recipe.data
    examples = load(recipe.evaluation[evaluation].source, data.labels, data.root)
    judged = evaluate(explainer, examples, setting, home / "evaluation")
    mine, reference = judged["explainer"], judged["teachers"][REFERENCE]
    speed = measure_speed(explainer, plan)["rows"]
    found = {
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
    """The pages' table: a line for each point and precision."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    lengths = _lengths(rows)
    header = ["states read, width", "parameters", "precision", "log-odds drop", "share of LIME's"]
    header += [f"reply over classifier, {length} tokens" for length in lengths]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        for precision, found in row["precisions"].items():
            cells = [
                f"{row['name']}{' (shipped)' if row['shipped'] else ''}",
                f"{row['parameters'] / 1e6:.2f} M",
                precision,
            ]
            if "refused" in found:
                cells += [found["refused"], "-", *("-" for _ in lengths)]
            else:
                cells += [f"{found['log_odds_drop']:.3f}", f"{found['share']:.3f}"]
                cells += [f"{found['ratio'][length]:.3f}" for length in lengths]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curve(result: Mapping[str, Any]) -> str:
    """Draws faithfulness over cost in each precision and length, the shipped point filled."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    lengths = _lengths(rows)
    precisions = [*rows[0]["precisions"]]
    with drawing(3.4 * len(lengths), 3.4 * len(precisions)) as figure:
        grid = figure.subplots(
            len(precisions), len(lengths), sharey="row", sharex="col", squeeze=False
        )
        for panels, precision, colour in zip(grid, precisions, COLOURS, strict=False):
            for axes, length in zip(panels, lengths, strict=True):
                for row in rows:
                    found = row["precisions"][precision]
                    if "refused" in found:
                        continue
                    place = found["ratio"][length], found["share"]
                    face = colour if row["shipped"] else "none"
                    axes.plot(*place, "o", color=colour, markerfacecolor=face)
                    axes.annotate(row["name"], place, (4, 4), textcoords="offset points", size=7)
                axes.set_title(f"{precision}, {length} tokens", fontsize=9, color=GREY)
                axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
                axes.margins(0.2)
                axes.spines[:].set_visible(False)
            [(reference, samples)] = result["reference"].items()
            panels[0].set_ylabel(f"log-odds drop over that of {reference}, {samples}")
        for axes in grid[-1]:
            axes.set_xlabel("reply over classifier alone")
        return to_svg(figure, "Faithfulness and cost")


def _lengths(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lengths that were timed, in their order."""
    measured = [found for row in rows for found in row["precisions"].values() if "ratio" in found]
    if not measured:
        raise ValueError("every bundle was refused: there is nothing to draw or to list")
    return [*measured[0]["ratio"]]


if __name__ == "__main__":
    main()
