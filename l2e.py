"""The command `l2e`: one front door to training and serving, each half imported when it is used."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

SHIPPED = Path(__file__).resolve().parent / "models" / "pretrained" / "reviews"

DESCRIPTION = """\
l2e labels texts and says which words decided it, in milliseconds.

  l2e serve                                a page and an HTTP API for the shipped bundle
  l2e explain "A dull plot, but I laughed."
  l2e score reviews.csv answers.jsonl      every row of a file, resumable
  l2e evaluate --bundle DIR --data FILE.tsv --text-column 0 --label-column 1
  l2e attribute --blackbox mymodule:predict_proba --data FILE.csv --teacher kernel_shap
  l2e run training/recipes/sst2.toml       train, explain, distill, export, evaluate
"""

RECIPE_STAGES = {
    "train": "fine-tune the black box of a recipe",
    "distill": "distill a recipe's attributions into an explainer",
    "export": "write the bundle: one ONNX graph, checked against torch",
}
RESUMABLE = ("run", *RECIPE_STAGES, "attribute", "evaluate", "compare", "align", "score")
SCORE_EXAMPLE = """\
example:
  l2e score reviews.csv answers.jsonl --text-column title,review --id-column number

Killed at any time, the same command goes on where it was and writes the same bytes; until it is
done, answers.jsonl.part keeps what there is. A bad row gets status "error" and a reason.

On a cluster, with 'l2e[cpu,ray]' on each of its machines; run it on one of them:
  RAY_ADDRESS=head:6379 l2e score reviews.csv answers.jsonl --engine ray

IN, OUT and the bundle need to be on that machine only. On equal machines, with the same kind of
processor, it writes the same bytes, and what one engine began the other goes on with.
"""
PRECISIONS = """\
precisions:
  fp32   the default; matrices are stored in float16 (half the size) and computed with in float32
  fp16   computed in float16, for GPUs; layer norms, softmax and logits in float32
  int8   linear layers in 8-bit integers, scales fixed on training texts, for processors

fp16 and int8 are compared with fp32 on validation texts and refused where labels, rationales or the
independence of the batch do not hold; the numbers are in the bundle's card. Dynamic int8 is not
offered: its scales follow the batch, so a text's answer would depend on other texts.
"""
SERVING = ("onnxruntime",)
# Every module of the extra that the training half cannot start without.
TRAINING = (
    *("torch", "transformers", "lime", "captum", "pyarrow", "scipy", "sklearn", "safetensors"),
    *("onnx", "onnxscript", "tqdm", "matplotlib", *SERVING),
)
RAY = ("ray", "pyarrow", "pandas")
# What stands beside a RECIPE.toml; the recipe itself says the rest.
BESIDE_RECIPE = ("recipe", "set", "runs", "debug")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of the command are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0, or 2 for bad input, 1 for a failure, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(words)
    options.words = words[1:]  # after the verb
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        sys.stdout.flush()  # so that a closed pipe is noticed here
    except KeyboardInterrupt:
        cure = "; the same command continues where it was" if options.verb in RESUMABLE else ""
        print(f"l2e {options.verb}: interrupted{cure}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read had enough; Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            raise
        bad_input = _is_bad_input(error)
        # A failure's message alone, such as that of a KeyError, may say nothing.
        shown = _one_line(error) if bad_input else f"{type(error).__name__}: {_one_line(error)}"
        print(f"l2e {options.verb}: {shown}", file=sys.stderr)
        return 2 if bad_input else 1
    return status


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all verbs."""
    parser = _Parser(
        prog="l2e", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_run(verbs)
    _add_attribute(verbs)
    _add_evaluate(verbs)
    _add_compare(verbs)
    _add_align(verbs)
    _add_serve(verbs)
    _add_explain(verbs)
    _add_score(verbs)
    _add_bench(verbs)
    doctor = _add(verbs, "doctor", _doctor, "say what is installed and which device will be used")
    _add_bundle(doctor)
    _add_device(doctor, default="auto")
    return parser


def _add(verbs: Any, name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command, parser=parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_bundle(parser: argparse.ArgumentParser, default: Path | None = SHIPPED) -> None:
    parser.add_argument(
        "--bundle", type=Path, default=default, metavar="DIR", help="default: the shipped bundle"
    )


def _add_run(verbs: Any) -> None:
    for name, text in {"run": "run all stages of a recipe", **RECIPE_STAGES}.items():
        parser = _add(verbs, name, _recipe_command, f"{text}; continues where it was killed")
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
    parser = _add(
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
        "probabilities [n, classes]), or a checkpoint; default: the shipped bundle",
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
    _add_engine(parser)
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


def _add_teacher(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of the classifier on masked copies; bf16 is off by about 0.03 in a logit, and auto "
        "takes it where the processor multiplies bfloat16, which is faster",
    )


def _add_budget(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help=f"{text}; default: 22 (20 steps) for integrated_gradients, 200 for the others",
    )


def _add_evaluate(verbs: Any) -> None:
    parser = _add(
        verbs,
        "evaluate",
        _evaluate,
        "measure a bundle on labelled texts: accuracy, faithfulness against teachers and random "
        "words, milliseconds per text",
    )
    parser.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.toml", help="of a run")
    _add_recipe_options(parser)
    _add_bundle(parser)
    _add_data(parser)
    parser.add_argument("--label-column", default="label", help="name or number")
    parser.add_argument(
        "--label-map", default="", metavar="0=NEG,1=POS", help="from the file's labels to ours"
    )
    _add_teacher(parser)
    _add_json(parser)


def _add_compare(verbs: Any) -> None:
    parser = _add(
        verbs,
        "compare",
        _compare,
        "compare teachers: faithfulness, reliability and cost, as a table; continues where it "
        "was killed",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    _add_recipe_options(parser)
    _add_json(parser)


def _add_align(verbs: Any) -> None:
    parser = _add(
        verbs,
        "align",
        _align,
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


def _add_serve(verbs: Any) -> None:
    parser = _add(verbs, "serve", _serve, "serve a page and the HTTP API for a bundle")
    _add_bundle(parser, default=None)
    parser.add_argument("--host", metavar="H", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="P", help="port (8000; 0 takes a free one)")
    _add_device(parser, default=None)


def _add_explain(verbs: Any) -> None:
    parser = _add(verbs, "explain", _explain, "label one text and show the words that decided it")
    parser.add_argument("text", metavar="TEXT", help="the text, or - to read standard input")
    _add_bundle(parser)
    parser.add_argument("--target", metavar="LABEL", help="explain this label, not the predicted")
    parser.add_argument("--max-words", type=int, metavar="N", help="words in the rationale at most")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a highlighted page")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    _add_device(parser, default="auto")


def _add_score(verbs: Any) -> None:
    parser = _add(
        verbs,
        "score",
        _score,
        "label every row of a file and say which words decided; continues where it was killed",
    )
    parser.epilog = SCORE_EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", type=Path, metavar="IN", help=".jsonl, .csv, .tsv or .parquet")
    parser.add_argument("output", type=Path, metavar="OUT", help="likewise; must not exist yet")
    _add_bundle(parser)
    parser.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="name, or number in a .csv or .tsv without header; 1,2 joins; default: text",
    )
    parser.add_argument(
        "--id-column", metavar="NAME", help="copied to OUT; default: id where there is one"
    )
    parser.add_argument("--target", metavar="LABEL", help="explain this label, not the predicted")
    parser.add_argument("--no-explain", action="store_true", help="label only, without rationales")
    parser.add_argument("--max-words", type=int, metavar="N", help="words in a rationale at most")
    _add_device(parser, default="auto")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the processor; default: all it may use, one for each worker of ray",
    )
    _add_engine(parser)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="actors of ray at most; default: as many as the cluster has processors for",
    )


def _add_bench(verbs: Any) -> None:
    parser = _add(
        verbs,
        "bench",
        _bench,
        "time the classifier alone, label only, label and rationale, and other ways to explain, "
        "side by side on this machine; some of the others take minutes, --quick leaves them out",
    )
    _add_bundle(parser)
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
    _add_device(parser, default="auto")
    _add_json(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray runs on the cluster at RAY_ADDRESS, or on one that it starts here",
    )


def _add_device(parser: argparse.ArgumentParser, default: str | None) -> None:
    from models.device import DEVICES

    parser.add_argument(
        "--device",
        choices=DEVICES,
        default=default,
        metavar="NAME",
        help=f"{', '.join(DEVICES)}; auto takes CUDA or else the CPU, any other fails where it "
        "does not come up; openvino-bf16 is off by about 0.03 in a logit",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - prints it and nothing else"
    )


def _recipe_command(options: argparse.Namespace) -> int:
    _need(TRAINING, "train,cpu")
    from training import commands

    return commands.run_recipe(options.recipe, options.set, options.runs, options.verb)


def _export(options: argparse.Namespace) -> int:
    status = _recipe_command(options)
    if options.precision != "fp32":
        from training.precision import export_as

        path = export_as(options.recipe, options.set, options.runs, options.precision)
        print(f"bundle: {path}")
    return status


def _attribute(options: argparse.Namespace) -> int:
    if (options.recipe is None) == (options.data is None):
        raise ValueError("say what to explain: either --data PATH or a RECIPE.toml")
    _refuse_what_a_recipe_says(options)
    if options.recipe is not None:
        return _recipe_command(options)
    _need(TRAINING, "train,cpu")
    from training import commands

    return commands.attribute_data(options)


def _evaluate(options: argparse.Namespace) -> int:
    if options.recipe is None and options.data is None:
        raise ValueError("say what to evaluate on: --data PATH, or a RECIPE.toml")
    _refuse_what_a_recipe_says(options)
    if options.recipe is not None:
        return _recipe_command(options)
    _need(TRAINING, "train,cpu")
    from training import commands

    return commands.evaluate_bundle(options)


def _refuse_what_a_recipe_says(options: argparse.Namespace) -> None:
    """Refuses flags that a recipe would ignore, and without one those that only it knows."""
    for name in _given(options):
        flag = f"--{name.replace('_', '-')}"
        if options.recipe is not None and name not in BESIDE_RECIPE:
            raise ValueError(
                f"{flag} has no say beside {options.recipe}: change the recipe, there or with "
                f"--set KEY=VALUE, or leave {flag} out"
            )
        if options.recipe is None and name == "set":
            raise ValueError("--set changes a recipe: name the RECIPE.toml, or leave --set out")


def _given(options: argparse.Namespace) -> list[str]:
    """Returns the names of the flags on the command line, given as their default or not.

    The words are parsed once more with marks for defaults.
    """
    mark = object()
    marks = {
        name: [mark] if isinstance(value, list) else mark for name, value in vars(options).items()
    }
    options.parser.set_defaults(**marks)
    again = vars(options.parser.parse_args(options.words))
    return [name for name, value in again.items() if value is not mark and value != [mark]]


def _compare(options: argparse.Namespace) -> int:
    _need(TRAINING, "train,cpu")
    from training import commands

    return commands.compare(options)


def _align(options: argparse.Namespace) -> int:
    _need(TRAINING, "train,cpu")
    from training import commands

    return commands.align(options)


def _bench(options: argparse.Namespace) -> int:
    _need(TRAINING, "train,cpu")
    from training import commands

    return commands.bench(options)


def _serve(options: argparse.Namespace) -> int:
    _need(SERVING, "cpu")
    from service.propagators import check_propagators

    check_propagators()  # or the next import fails on them
    from service.app import main as serve
    from service.settings import read_settings

    flags = {name: getattr(options, name) for name in ("bundle", "host", "port", "device")}
    return serve(read_settings(**flags))


def _explain(options: argparse.Namespace) -> int:
    _need(SERVING, "cpu")
    from models.explainer import Explainer
    from models.text import check_text
    from models.views import to_page, to_terminal

    text = sys.stdin.read() if options.text == "-" else options.text
    check_text(text)
    explainer = Explainer.load(options.bundle, device=options.device)
    [answer] = explainer.explain([text], options.target, max_words=options.max_words)
    if options.html is not None:
        options.html.write_text(to_page(answer), encoding="utf-8")
    if options.json:
        print(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(to_terminal(answer, colour=colour))
    return 0


def _score(options: argparse.Namespace) -> int:
    if options.no_explain and options.max_words is not None:
        raise ValueError("--max-words has no say beside --no-explain: leave one of them out")
    _need(SERVING, "cpu")
    from models.explainer import Explainer
    from service.score import check_paths, score
    from service.tables import Columns
    from service.work import ScoreOptions

    check_paths(options.input, options.output)  # before a bundle is loaded, which takes seconds
    engine = _score_engine(options)
    explainer = Explainer.load(options.bundle, device=options.device, threads=options.threads)
    asked = ScoreOptions(
        columns=Columns(options.text_column, options.id_column),
        target=options.target,
        explain=not options.no_explain,
        max_words=options.max_words,
    )
    with contextlib.redirect_stdout(sys.stderr):  # where Ray may print what it likes
        rows, errors = score(options.input, options.output, explainer, asked, engine)
    print(f"{options.output}: {rows:,} rows, {errors:,} of them errors", file=sys.stderr)
    return 0


def _score_engine(options: argparse.Namespace) -> Any:
    from service.score import run_locally

    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers}: give at least 1")
    if options.engine == "local":
        return run_locally
    _need(RAY, "ray")
    from service.ray_engine import RayEngine, connect

    connect()  # before a large input is read in vain
    return RayEngine(options.workers, 1 if options.threads is None else options.threads)


def _doctor(options: argparse.Namespace) -> int:
    from models.doctor import report

    lines, healthy = report(options.bundle, options.device)
    print("\n".join(lines))
    return 0 if healthy else 1


def _need(packages: Sequence[str], extra: str) -> None:
    """Names the extra where a package that a verb needs is not installed."""
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"this command needs {package}: pip install 'l2e[{extra}]'")


def _is_bad_input(error: Exception) -> bool:
    from models.bundle import BundleError
    from models.device import DeviceError

    paths = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    return isinstance(error, (ValueError, BundleError, DeviceError, *paths))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message; --debug shows where"


if __name__ == "__main__":
    sys.exit(main())
