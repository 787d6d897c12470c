"""What the training verbs of the command line do."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.explainer import Explainer
from training.arguments import (
    check_budget,
    check_counts,
    check_seed,
    parse_label_map,
    parse_labels,
    parse_numbers,
    rival_budgets,
    with_budgets,
)
from training.attribution.record import Attribution
from training.attribution.reliability import split_half
from training.attribution.report import format_table, to_line
from training.attribution.run import Engine, attribute_texts, check_budgets, run_locally
from training.attribution.store import AttributionStore
from training.attribution.teachers import teacher_named
from training.blackbox.protocol import BlackBox
from training.blackbox.source import BlackBoxSource, identity
from training.config import DataSource, Recipe
from training.data import load, sample
from training.evaluation.align import run_study
from training.evaluation.align_plan import plan_trials
from training.evaluation.align_plot import draw_alignment
from training.evaluation.align_result import read_results, to_json
from training.evaluation.compare import compare_teachers
from training.evaluation.efficiency import Plan, measure_speed
from training.evaluation.evaluate import Setting, evaluate
from training.evaluation.http_cost import measure_http
from training.evaluation.report import (
    alignment_to_markdown,
    format_result,
    format_teachers,
)
from training.evaluation.shards import texts_digest
from training.evaluation.speed_report import bench_to_markdown
from training.guard import guard_data, guard_recipe, hold, learns
from training.recipe import read_comparison, read_recipe, read_study
from training.runtime import native_precision, tune_memory, use_threads, write_json, write_text
from training.stages import STAGES


def run_recipe(path: Path, overrides: Sequence[str], runs: Path, verb: str) -> int:
    """Runs one stage of a recipe, or with `run` all of them."""
    recipe = read_recipe(path, overrides)
    run = runs / recipe.name
    _prepare()
    _check(recipe, with_data=verb == "run")
    with hold(run):
        guard_recipe(recipe, run)
        if learns(run, verb):
            guard_data(recipe, run)
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
    check_counts(options, "limit", "budget")
    check_seed(options.seed)
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
        precision=_precision(options.precision, explainer.bundle.manifest.precision),
    )
    examples = load(source, explainer.labels)
    work = options.runs / "evaluations"
    _report(evaluate(explainer, examples, setting, work), options.json, format_result)
    return 0


def attribute_data(options: argparse.Namespace) -> int:
    """`l2e attribute --blackbox NAME --data PATH --teacher NAME`."""
    check_counts(options, "limit", "budget", "workers")
    check_seed(options.seed)
    teachers = with_budgets(options.teacher or ["lime"], options.budget)
    source = BlackBoxSource(
        name=options.blackbox,
        labels=None if options.labels is None else parse_labels(options.labels),
        precision=_precision(options.precision),
        mask_string=options.mask_string,
    )
    _prepare()
    with contextlib.redirect_stdout(sys.stderr):  # where a function may print what it likes
        engine = _engine(options, source)
        black_box = source.open()
        texts = _read_texts(options)
        targets = None
        if options.target is not None:
            if options.target not in black_box.labels:
                known = ", ".join(black_box.labels)
                raise ValueError(f"--target {options.target}: the black box knows {known}")
            targets = dict.fromkeys(texts, black_box.labels.index(options.target))
        check_budgets(black_box, texts.values(), teachers)
        key = identity(black_box, options.blackbox)
        folder = options.runs / "attributions" / texts_digest([json.dumps(key)])[:16]
        store = AttributionStore(folder, key)
        found = {
            name: attribute_texts(
                black_box, texts, teacher=name, budget=budget, seed=options.seed, store=store,
                targets=targets, engine=engine,
            )
            for name, budget in teachers.items()
        }  # fmt: skip
    _report_attributions(options, black_box, texts, found, store)
    return 0


def compare(options: argparse.Namespace) -> int:
    """`l2e compare RECIPE.toml`."""
    chosen = read_comparison(options.recipe, options.set)
    for part in chosen.evaluation.values():
        with_budgets([f"{name}={budget}" for name, budget in part.teachers.items()], 0)
    _prepare()
    texts = {}  # of all sets, before hours of work on the first
    for name, part in chosen.evaluation.items():
        examples = load(part.source, root=chosen.root)
        limit = len(examples) if part.limit is None else part.limit
        texts[name] = sample(examples, limit, chosen.seed)
    black_box = BlackBoxSource(chosen.blackbox).open()
    for name, part in chosen.evaluation.items():
        check_budgets(black_box, [example.text for example in texts[name]], part.teachers)
    results = {}
    for name, part in chosen.evaluation.items():
        black_box = BlackBoxSource(chosen.blackbox, precision=part.precision).open()
        print(f"l2e compare: {name}, {len(texts[name])} texts", file=sys.stderr)
        results[name] = compare_teachers(
            black_box, texts[name], part.teachers, seed=chosen.seed,
            work=options.runs / chosen.name,
        )  # fmt: skip
    _report(results, options.json, format_teachers)
    return 0


def align(options: argparse.Namespace) -> int:
    """`l2e align STUDY.toml`."""
    if options.plot is not None and options.plot.suffix != ".svg":
        raise ValueError(f"--plot {options.plot}: give a name that ends in .svg")
    study = read_study(options.recipe, options.set)
    trials = plan_trials(study, options.recipe.parent, options.runs)
    known = {} if options.known is None else read_results(options.known)
    _prepare()
    result = run_study(study, trials, options.only, known)
    if options.json == "-":
        sys.stdout.write(to_json(result))
    else:
        if options.json is not None:
            write_text(Path(options.json), to_json(result))
        print(alignment_to_markdown(result))
    if options.plot is not None:
        write_text(options.plot, draw_alignment(result))
    return 0


def bench(options: argparse.Namespace) -> int:
    """`l2e bench`."""
    check_counts(options, "repeats")
    check_seed(options.seed)
    plan = Plan(
        against=rival_budgets(options.against, options.budget),
        tokens=parse_numbers("--tokens", options.tokens, least=8),
        batches=parse_numbers("--batches", options.batches, least=1),
        repeats=options.repeats,
        seed=options.seed,
        quick=options.quick,
    )
    _prepare()
    explainer = Explainer.load(options.bundle, device=options.device)
    result = measure_speed(explainer, plan)
    if options.http:
        result["http"] = measure_http(explainer, plan)
    _report(result, options.json, bench_to_markdown)
    return 0


def _check(recipe: Recipe, *, with_data: bool) -> None:
    """Finds now what a later stage would only find hours from now."""
    check_budget(recipe.attribution.teacher, recipe.attribution.budget)
    if recipe.blackbox.feedback.every:
        check_budget("lime", recipe.blackbox.feedback.budget)
    for chosen in recipe.evaluation.values():
        for name, budget in chosen.teachers.items():
            check_budget(name, budget)
    if with_data:
        for chosen in recipe.evaluation.values():
            load(chosen.source, recipe.data.labels, recipe.data.root)


def _engine(options: argparse.Namespace, source: BlackBoxSource) -> Engine:
    if options.engine == "local":
        return run_locally
    from training.attribution.ray_engine import RayEngine, import_ray

    import_ray()  # before hours of work that lead nowhere
    return RayEngine(source, options.workers)


def _read_texts(options: argparse.Namespace) -> dict[str, str]:
    source = DataSource(
        path=options.data,
        split=options.split,
        text_column=options.text_column,
        label_column=options.label_column,
        obtain="give the path of a file or folder with --data",
    )
    examples = load(source)
    if options.limit is not None:
        examples = sample(examples, options.limit, options.seed)
    return {example.id: example.text for example in examples}


def _report_attributions(
    options: argparse.Namespace,
    black_box: BlackBox,
    texts: Mapping[str, str],
    found: Mapping[str, Sequence[Attribution]],
    store: AttributionStore,
) -> None:
    """Writes the lines of all teachers, and the table where standard output is free for it."""
    documents = [black_box.encoder.encode(text) for text in texts.values()]
    reliabilities = {}
    if options.reliability:
        reliabilities = {
            name: split_half(teacher_named(name), documents, records)
            for name, records in found.items()
        }
    lines = [
        to_line(black_box, texts[record.id], record, reliabilities.get(name))
        for name, records in found.items()
        for record in records
    ]
    if options.json == "-":
        print("\n".join(lines))
        return
    if options.json is not None:
        write_text(Path(options.json), "".join(f"{line}\n" for line in lines))
    seconds = {name: store.seconds_per_text(texts, records) for name, records in found.items()}
    print(format_table(found, seconds, reliabilities))


def _precision(asked: str, bundle: str = "fp32") -> str:
    """Returns the precision of masked copies; the graph's own where it computes in another."""
    if asked != "auto":
        return asked
    return native_precision() if bundle == "fp32" else "graph"


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
