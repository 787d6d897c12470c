"""What a measurement says while it runs and when it is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def say(what: str) -> None:
    """Announces what comes next."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


def ratio(above: float | None, below: float | None, digits: int) -> float | None:
    """One number over another, rounded; None where one is missing or nothing can be divided by."""
    return None if above is None or not below else round(above / below, digits)


def rounded(value: float | None, digits: int) -> float | None:
    """A number rounded, where there is one."""
    return None if value is None else round(value, digits)


def finish(
    result: Mapping[str, Any],
    path: Path | None,
    to_markdown: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:
    """Writes a result's JSON and prints it, as a table where there is one."""
    if path is not None:  # first, so that no table can lose what was measured
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if to_markdown is None:
        for name, value in result.items():
            print(f"{name:28} {value}")
    else:
        print(to_markdown(result))
