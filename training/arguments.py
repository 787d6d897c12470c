"""What the flags of the training verbs say, read and checked before any work begins."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from models.text import Document, word_bounds
from training.attribution.teachers import default_budget, teacher_named
from training.evaluation.rivals import ALL, PACKAGES


def with_budgets(teachers: Sequence[str], budget: int | None) -> dict[str, int]:
    """Gives each teacher its budget, 0 where the text decides how much is spent.

    Args:
        teachers: `NAME` or `NAME=BUDGET`.
        budget: of those that name none; None leaves it to `default_budget`.

    Raises:
        ValueError: on an unknown teacher, a budget that is no number or one that is too small for
            any text.
    """
    found = {}
    for given in teachers:
        name, equals, own = given.strip().partition("=")
        default = default_budget(name)
        if equals and not own.isdecimal():
            raise ValueError(f"--teacher {given}: write NAME or NAME=BUDGET")
        if name in found:
            raise ValueError(f"--teacher {name} is given twice: run once for each budget")
        chosen = int(own) if equals else default if budget is None else budget
        found[name] = chosen if default else 0
        check_budget(name, found[name])
    return found


def rival_budgets(against: str, budget: int | None) -> dict[str, int]:
    """Reads `NAME[=BUDGET],…`, where a name is that of a teacher or of a package, or `all`.

    Raises:
        ValueError: as `with_budgets`.
    """
    found: dict[str, int] = {}
    names = ALL if against.strip() == "all" else against.split(",")
    for given in filter(None, map(str.strip, names)):
        name, _, own = given.partition("=")
        if name not in PACKAGES:
            new = with_budgets([given], budget)
        elif own and not (own.isdecimal() and int(own) >= 3 and PACKAGES[name]):
            raise ValueError(f"--against {given}: write NAME or NAME=SAMPLES, 3 or more")
        else:
            new = {name: int(own) if own else PACKAGES[name]}
        if found.keys() & new:
            raise ValueError(f"--against {name} is given twice: run once for each budget")
        found |= new
    return found


def check_budget(name: str, budget: int) -> None:
    """Refuses a budget that is too small even for a text without words.

    Raises:
        ValueError: on such a budget or an unknown teacher.
    """
    teacher_named(name).spent(Document("", word_bounds(""), ()), budget)


def check_counts(options: argparse.Namespace, *flags: str) -> None:
    """Refuses a flag that was given and is below 1.

    Raises:
        ValueError: names the flag.
    """
    for flag in flags:
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} {value}: give at least 1")


def check_seed(seed: int) -> None:
    """Refuses what is no seed for every generator in use.

    Raises:
        ValueError: below 0, or 2^63 and more.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: give a number from 0 to 2^63 - 1")


def parse_numbers(flag: str, text: str, least: int) -> tuple[int, ...]:
    """Parses `1,8,32`, each at least `least`.

    Raises:
        ValueError: on anything else; names the flag.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ValueError(f"{flag} {text}: write numbers from {least} on, with commas")
    return tuple(map(int, parts))


def parse_labels(text: str) -> tuple[str, ...]:
    """Parses `A,B`.

    Raises:
        ValueError: an empty name, or one given twice.
    """
    labels = tuple(label.strip() for label in text.split(","))
    if not all(labels) or len(set(labels)) < len(labels):
        raise ValueError(f"--labels {text}: write A,B with a different name for each class")
    return labels


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
