"""Whether a book costs as much per word as a chapter: label and rationale of long documents.

    python -m tests.bench.length [--words 5000,50000] [--repeats 3] [--reviews 2000] [--json FILE]

The documents are random words, whose label is settled after a few windows; `rows` counts all that
were run, those that are run again among them, because the document got another label than they were
explained for: where the session gives no states (`models.retarget`), or behind the first windows.
Real reviews turn, and `reviews` counts the same for them; the shipped classifier was trained on
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.explainer import Explainer
from models.flows import run_flows
from models.rows import Row, RowOutputs
from service.settings import Settings
from tests.bench.precision import whole_reviews
from tests.bench.results import finish, say
from tests.bench.texts import random_text
from training.evaluation.machine import machine
from training.evaluation.timing import in_turns, quartiles


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Milliseconds per word of long documents.")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--words", default="5000,50000", metavar="N,N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reviews", type=int, default=2000, metavar="N")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    explainer = Explainer.load(options.bundle, device=Settings().device)
    counts = [int(count) for count in options.words.split(",")]
    reviews = whole_reviews(options.reviews)
    say(f"documents of {options.words} words, {options.repeats + 1} times each")
    finish(
        {
            "machine": machine(),
            "bundle": explainer.bundle.digest,
            "threads": explainer.session.threads,
            "repeats": options.repeats,
            **measure(explainer, counts, options.repeats),
            "reviews": count_again(explainer, reviews),
        },
        options.json,
    )


def measure(explainer: Explainer, counts: Sequence[int], repeats: int) -> dict[str, Any]:
    """Times documents of so many words in turns.

    Args:
        explainer: the bundle.
        counts: of words, the shortest first.
        repeats: rounds that count.

    Returns:
        `rows`, with milliseconds per word as median and quartiles, and `ratio`: the last over the
        first, 1 where the cost is linear.
    """
    texts = {count: random_text(np.random.default_rng(count), count) for count in counts}
    calls = {str(count): partial(explainer.explain, [text]) for count, text in texts.items()}
    spent = in_turns(calls, repeats)
    rows: list[dict[str, Any]] = []
    for count, text in texts.items():
        low, middle, high = quartiles([value / count for value in spent[str(count)]])
        rows.append(
            {
                "words": count,
                "windows": len(explainer.encode(text).windows),
                "rows": count_rows(explainer, text),
                "ms": middle * count,
                "ms_per_word": middle,
                "ms_per_word_quartiles": [low, high],
            }
        )
    return {"rows": rows, "ratio": rows[-1]["ms_per_word"] / rows[0]["ms_per_word"]}


def count_again(explainer: Explainer, texts: Sequence[str]) -> dict[str, int]:
    """How many of the texts have several windows, how many windows these have, and rows are run."""
    windows = {text: len(explainer.encode(text).windows) for text in texts}
    long = {text: count for text, count in windows.items() if count > 1}
    rows = sum(count_rows(explainer, text) for text in long)
    return {"texts": len(long), "windows": sum(long.values()), "rows": rows}


def count_rows(explainer: Explainer, text: str) -> int:
    """How many rows the graph runs for a text, second runs with them."""
    counts: list[int] = []  # several threads may run some

    def run(rows: Sequence[Row]) -> list[RowOutputs]:
        counts.append(len(rows))
        return explainer.run(rows)

    session = explainer.session
    run_flows([explainer.explanation_flow(text)], run, session.batch_tokens, session.runners)
    return sum(counts)


if __name__ == "__main__":
    main()
