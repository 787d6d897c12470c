"""The command `l2e`: one front door to training and serving.

Each half adds its verbs (`training.cli`, `service.cli`) and imports what they need when they run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from service import cli as service_cli
from training import cli as training_cli

DESCRIPTION = """\
l2e labels texts and says which words decided it, in milliseconds.

  l2e serve                                a page and an HTTP API for the shipped bundle
  l2e explain "A dull plot, but I laughed."
  l2e score reviews.csv answers.jsonl      every row of a file, resumable
  l2e evaluate --bundle DIR --data FILE.tsv --text-column 0 --label-column 1
  l2e attribute --blackbox mymodule:predict_proba --data FILE.csv --teacher kernel_shap
  l2e run training/recipes/sst2.toml       train, explain, distill, export, evaluate
"""
RESUMABLE = (
    "run",
    *training_cli.RECIPE_STAGES,
    "attribute",
    "evaluate",
    "compare",
    "align",
    "score",
)


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
    training_cli.add_verbs(verbs)
    service_cli.add_verbs(verbs)
    training_cli.add_bench(verbs)
    service_cli.add_doctor(verbs)
    return parser


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
