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


def finish(
    result: Mapping[str, Any],
    path: Path | None,
    to_markdown: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:
    """Prints a result, as a table where there is one, and writes its JSON."""
    if to_markdown is None:
        for name, value in result.items():
            print(f"{name:28} {value}")
    else:
        print(to_markdown(result))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
