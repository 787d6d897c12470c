"""What the verbs of both halves share on the command line: how one is added, flags, extras.

Light to import: `l2e --help` waits for it.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.device import DEVICES

# What a bundle needs to run.
SERVING = ("onnxruntime",)


def add_verb(
    verbs: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Adds a verb and the flags that each has.

    Args:
        verbs: what `add_subparsers` returned.
        name: on the command line.
        command: gets the parsed options, returns the exit status.
        text: for both helps, that of the verb and its line in the list.

    Returns:
        The parser of the verb, for flags of its own.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command, parser=parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Adds `--bundle`, whose default follows the device: see `models.device.shipped_bundle`."""
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="default: the shipped bundle, in int8 on a processor with VNNI",
    )


def add_device(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Adds `--device`; a default of None leaves it to the settings of the service."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default=default,
        metavar="NAME",
        help=f"{', '.join(DEVICES)}; auto takes CUDA or else the CPU, any other fails where it "
        "does not come up; openvino-bf16 is off by about 0.03 in a logit",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds `--engine`."""
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray runs on the cluster at RAY_ADDRESS, or on one that it starts here",
    )


def given_flags(options: argparse.Namespace) -> list[str]:
    """Returns the names of the flags on the command line, given as their default or not.

    The words are parsed once more with marks for defaults, so the parser is of no use afterwards.

    Args:
        options: as parsed, with the verb's `parser` and the `words` after the verb.
    """
    mark = object()
    marks = {
        name: [mark] if isinstance(value, list) else mark for name, value in vars(options).items()
    }
    options.parser.set_defaults(**marks)
    again = vars(options.parser.parse_args(options.words))
    return [name for name, value in again.items() if value is not mark and value != [mark]]


def need(packages: Sequence[str], extra: str) -> None:
    """Looks for the packages that a verb needs, without importing them.

    Raises:
        ValueError: one is not installed; names the extra that brings it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"this command needs {package}: pip install 'l2e[{extra}]'")
