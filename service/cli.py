"""The verbs of the serving half: their flags, and what each of them does.

Light to import: the runtime and the web framework are imported when a verb asks for them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from models.cli import SERVING, add_bundle, add_device, add_engine, add_verb, need

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
RAY = ("ray", "pyarrow", "pandas")


def add_verbs(verbs: Any) -> None:
    """Adds the verbs that answer with a bundle."""
    _add_serve(verbs)
    _add_explain(verbs)
    _add_score(verbs)


def _add_serve(verbs: Any) -> None:
    parser = add_verb(verbs, "serve", _serve, "serve a page and the HTTP API for a bundle")
    add_bundle(parser)
    parser.add_argument("--host", metavar="H", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="P", help="port (8000; 0 takes a free one)")
    add_device(parser, default=None)


def _add_explain(verbs: Any) -> None:
    parser = add_verb(
        verbs, "explain", _explain, "label one text and show the words that decided it"
    )
    parser.add_argument("text", metavar="TEXT", help="the text, or - to read standard input")
    add_bundle(parser)
    parser.add_argument("--target", metavar="LABEL", help="explain this label, not the predicted")
    parser.add_argument("--max-words", type=int, metavar="N", help="words in the rationale at most")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a highlighted page")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    add_device(parser, default="auto")


def _add_score(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "score",
        _score,
        "label every row of a file and say which words decided; continues where it was killed",
    )
    parser.epilog = SCORE_EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", type=Path, metavar="IN", help=".jsonl, .csv, .tsv or .parquet")
    parser.add_argument("output", type=Path, metavar="OUT", help="likewise; must not exist yet")
    add_bundle(parser)
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
    add_device(parser, default="auto")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the processor; default: all it may use, one for each worker of ray",
    )
    add_engine(parser)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="actors of ray at most; default: as many as the cluster has processors for",
    )


def add_doctor(verbs: Any) -> None:
    """Adds `doctor`, apart from the others: help lists it last."""
    parser = add_verb(
        verbs, "doctor", _doctor, "say what is installed and which device will be used"
    )
    add_bundle(parser)
    add_device(parser, default="auto")


def _serve(options: argparse.Namespace) -> int:
    need(SERVING, "cpu")
    from service.propagators import check_propagators

    check_propagators()  # or the next import fails on them
    from service.app import main as serve
    from service.settings import read_settings

    flags = {name: getattr(options, name) for name in ("bundle", "host", "port", "device")}
    return serve(read_settings(**flags))


def _explain(options: argparse.Namespace) -> int:
    need(SERVING, "cpu")
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
    need(SERVING, "cpu")
    from models.explainer import Explainer
    from service.score.columns import Columns
    from service.score.run import check_paths, score
    from service.score.work import ScoreOptions

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
    from service.score.run import run_locally

    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers}: give at least 1")
    if options.engine == "local":
        return run_locally
    need(RAY, "ray")
    from service.score.ray_engine import RayEngine, connect

    connect()  # before a large input is read in vain
    return RayEngine(options.workers, 1 if options.threads is None else options.threads)


def _doctor(options: argparse.Namespace) -> int:
    from models.device import shipped_bundle
    from models.doctor import report

    lines, healthy = report(options.bundle or shipped_bundle(options.device), options.device)
    print("\n".join(lines))
    return 0 if healthy else 1
