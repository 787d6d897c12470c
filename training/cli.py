"""The verbs of the training half: their flags, and which command each of them runs.

Light to import: what trains is imported when a verb asks for it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from models import SHIPPED
from models.cli import (
    SERVING,
    add_bundle,
    add_device,
    add_engine,
    add_verb,
    given_flags,
    need,
)

RECIPE_STAGES = {
    "train": "fine-tune the black box of a recipe",
    "distill": "distill a recipe's attributions into an explainer",
    "export": "write the bundle: one ONNX graph, checked against torch",
}
PRECISIONS = """\
precisions:
  fp32   the default; matrices are stored in float16 (half the size) and computed with in float32
  fp16   computed in float16, for GPUs; layer norms, softmax and logits in float32
  int8   linear layers in 8-bit integers, scales fixed on training texts, for processors

fp16 and int8 are compared with fp32 on validation texts and refused where labels, rationales or the
independence of the batch do not hold; the numbers are in the bundle's card. Dynamic int8 is not
offered: its scales follow the batch, so a text's answer would depend on other texts.
"""
# Every module of the extra that the training half cannot start without.
TRAINING = (
    *("torch", "transformers", "lime", "captum", "pyarrow", "scipy", "sklearn", "safetensors"),
    *("filelock", "onnx", "onnxscript", "tqdm", "matplotlib", *SERVING),
)
# What stands beside a RECIPE.toml; the recipe itself says the rest.
BESIDE_RECIPE = ("recipe", "set", "runs", "debug")


def add_verbs(verbs: Any) -> None:
    """Adds the verbs that train, explain and measure; see `add_bench` for the one that times."""
    _add_run(verbs)
    _add_attribute(verbs)
    _add_evaluate(verbs)
    _add_compare(verbs)
    _add_align(verbs)


def _add_run(verbs: Any) -> None:
    for name, text in {"run": "run all stages of a recipe", **RECIPE_STAGES}.items():
        parser = add_verb(verbs, name, _recipe_command, f"{text}; continues where it was killed")
        parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
        _add_recipe_options(parser)
        if name == "export":
            _add_precision(parser)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_export)
    parser.epilog = PRECISIONS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the bundle; another than fp32 is made beside it, in runs/NAME/bundle-PRECISION",
    )


def _add_recipe_options(
    parser: argparse.ArgumentParser,
    example: str = "data.root=/data or attribution.budget=100",
) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a value of the recipe, such as {example}",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="parent of runs/NAME"
    )


def _add_attribute(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "attribute",
        _attribute,
        "say what each word contributes to a classifier's answers, by one or several teachers; "
        "continues where it was killed. With a RECIPE.toml: the stage of that recipe",
    )
    parser.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.toml", help="of a run")
    _add_recipe_options(parser)
    parser.add_argument(
        "--blackbox",
        default=str(SHIPPED),
        metavar="NAME",
        help="folder of a bundle, MODULE:FUNCTION or MODULE:OBJECT.METHOD (list of texts -> "
        "probabilities [n, classes]), or a checkpoint; default: the shipped bundle in fp32",
    )
    _add_data(parser)
    parser.add_argument(
        "--label-column", help="draw --limit in the proportions of this column; labels are not used"
    )
    _add_teacher(parser)
    parser.add_argument("--target", metavar="LABEL", help="explain this label, not the predicted")
    parser.add_argument("--labels", metavar="A,B", help="names of the classes of a function")
    parser.add_argument(
        "--mask-string", default="[MASK]", metavar="TEXT", help="what a function gets for a word"
    )
    parser.add_argument(
        "--reliability",
        action="store_true",
        help="how well the teacher agrees with itself at this budget (split halves)",
    )
    add_engine(parser)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="actors of ray")
    parser.add_argument(
        "--json", metavar="FILE", help="write one line of JSON per text and teacher; - prints them"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="PATH", help=".csv, .tsv, .jsonl, an ERASER folder or hub:NAME"
    )
    parser.add_argument("--split", default="val", help="of an ERASER folder or hub dataset")
    parser.add_argument(
        "--text-column", default="text", help="name, or number in a file without header; 1,2 joins"
    )


def _add_teacher(parser: argparse.ArgumentParser, *, graph: bool = False) -> None:
    """Adds the flags of teachers; with `graph`, masked copies may be answered by a bundle's own."""
    precisions = ["auto", "fp32", "bf16"]
    precision = (
        "of the classifier on masked copies; bf16 is off by about 0.03 in a logit, and auto takes "
        "it where the processor multiplies bfloat16, which is faster"
    )
    if graph:
        precisions.append("graph")
        precision += "; graph asks the bundle's own, as auto does for a bundle in fp16 or int8"
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME[=BUDGET]",
        help="occlusion, gradient, integrated_gradients, lrp, lime, kernel_shap, "
        "permutation_shap, deep_shap or ensemble:NAME+NAME; may be repeated",
    )
    _add_budget(parser, "black-box evaluations of each teacher that names none of its own")
    parser.add_argument("--limit", type=int, metavar="N", help="explain a stratified sample of N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--precision", choices=precisions, default="auto", help=precision)


def _add_budget(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help=f"{text}; default: 22 (20 steps) for integrated_gradients, 200 for the others",
    )


def _add_evaluate(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure a bundle on labelled texts: accuracy, faithfulness against teachers and random "
        "words, milliseconds per text",
    )
    parser.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.toml", help="of a run")
    _add_recipe_options(parser)
    add_bundle(parser)
    _add_data(parser)
    parser.add_argument("--label-column", default="label", help="name or number")
    parser.add_argument(
        "--label-map", default="", metavar="0=NEG,1=POS", help="from the file's labels to ours"
    )
    _add_teacher(parser, graph=True)
    _add_json(parser)


def _add_compare(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "compare",
        partial(_run, "compare"),
        "compare teachers: faithfulness, reliability and cost, as a table; continues where it "
        "was killed",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    _add_recipe_options(parser)
    _add_json(parser)


def _add_align(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "align",
        partial(_run, "align"),
        "train the classifiers of a study, each with several seeds, and measure whether their "
        "explanations point at what people marked: accuracy, AP@k, MR@k and AUPRC beside random "
        "words and an oracle, with tests of significance; continues where it was killed",
    )
    parser.add_argument(
        "recipe",
        type=Path,
        metavar="STUDY.toml",
        help="names the rows (a recipe, overrides and teachers each), the seeds and the texts",
    )
    _add_recipe_options(parser, "root=/data, seeds=[0] or rows.cnn.limit=20")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="ROW",
        help="train and explain these rows alone; the result has these and what was finished "
        "before in runs/NAME",
    )
    parser.add_argument(
        "--from",
        dest="known",
        type=Path,
        metavar="FILE",
        help="take what another --json FILE has finished with the same settings and data as done: "
        "a study may be spread over machines",
    )
    _add_json(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="draw the rows between chance and the oracle"
    )


def add_bench(verbs: Any) -> None:
    """Adds `bench`, apart from the others: help lists it after the verbs of the service."""
    parser = add_verb(
        verbs,
        "bench",
        partial(_run, "bench"),
        "time the classifier alone, label only, label and rationale, and other ways to explain, "
        "side by side on this machine; some of the others take minutes, --quick leaves them out",
    )
    add_bundle(parser)
    parser.add_argument(
        "--against",
        default="all",
        metavar="NAMES",
        help="teachers, NAME[=BUDGET] with commas, lime_onnx (LIME on the session that replies), "
        "lime_package and captum_gradient (the packages, on torch); '' for none; default: all",
    )
    _add_budget(parser, "of the teachers that name none of their own")
    parser.add_argument("--tokens", default="24,128,512", metavar="N,…", help="lengths of texts")
    parser.add_argument("--batches", default="1,8,32", metavar="N,…", help="texts in one call")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="the median is given")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the texts")
    parser.add_argument("--quick", action="store_true", help="what can be had in under a minute")
    parser.add_argument(
        "--http", action="store_true", help="time the same texts through `l2e serve`, too"
    )
    add_device(parser, default="auto")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - prints it and nothing else"
    )


def _run(command: str, options: argparse.Namespace) -> int:
    """Runs a function of `training.commands`, which takes seconds to import."""
    need(TRAINING, "train,cpu")
    from training import commands

    status: int = getattr(commands, command)(options)
    return status


def _recipe_command(options: argparse.Namespace) -> int:
    need(TRAINING, "train,cpu")
    from training import commands

    return commands.run_recipe(options.recipe, options.set, options.runs, options.verb)


def _export(options: argparse.Namespace) -> int:
    status = _recipe_command(options)
    if options.precision != "fp32":
        from training.export.precision import export_as

        path = export_as(options.recipe, options.set, options.runs, options.precision)
        print(f"bundle: {path}")
    return status


def _attribute(options: argparse.Namespace) -> int:
    if (options.recipe is None) == (options.data is None):
        raise ValueError("say what to explain: either --data PATH or a RECIPE.toml")
    _refuse_what_a_recipe_says(options)
    if options.recipe is not None:
        return _recipe_command(options)
    return _run("attribute_data", options)


def _evaluate(options: argparse.Namespace) -> int:
    if options.recipe is None and options.data is None:
        raise ValueError("say what to evaluate on: --data PATH, or a RECIPE.toml")
    _refuse_what_a_recipe_says(options)
    if options.recipe is not None:
        return _recipe_command(options)
    return _run("evaluate_bundle", options)


def _refuse_what_a_recipe_says(options: argparse.Namespace) -> None:
    """Refuses flags that a recipe would ignore, and without one those that only it knows."""
    for name in given_flags(options):
        flag = f"--{name.replace('_', '-')}"
        if options.recipe is not None and name not in BESIDE_RECIPE:
            raise ValueError(
                f"{flag} has no say beside {options.recipe}: change the recipe, there or with "
                f"--set KEY=VALUE, or leave {flag} out"
            )
        if options.recipe is None and name == "set":
            raise ValueError("--set changes a recipe: name the RECIPE.toml, or leave --set out")
