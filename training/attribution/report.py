"""Attributions as lines of JSON and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.views import one_line
from training.attribution.record import Attribution
from training.attribution.reliability import Reliability
from training.blackbox.protocol import BlackBox


def to_line(
    black_box: BlackBox, text: str, record: Attribution, reliability: Reliability | None
) -> str:
    """Returns one attribution as a line of JSON.

    Args:
        black_box: names the label and splits the words.
        text: that was explained.
        record: of this text.
        reliability: of the teacher over all texts, where it was asked for.
    """
    words = black_box.encoder.encode(text).words
    line: dict[str, Any] = {
        "id": record.id,
        "text": text,
        "target": black_box.labels[record.target],
        "teacher": record.teacher,
        "budget": record.budget,
        "seed": record.seed,
        "value": record.value,
        "null_value": record.null_value,
        "words": [
            {"start": word.start, "end": word.end, "weight": weight}
            for word, weight in zip(words, record.weights.tolist(), strict=True)
        ],
    }
    if record.eps is not None:
        line["eps"] = record.eps
    if reliability is not None:
        line["reliability"] = known_or_none(reliability.reliability)
    return one_line(json.dumps(line, ensure_ascii=False))


def format_table(
    found: Mapping[str, Sequence[Attribution]],
    seconds: Mapping[str, float],
    reliabilities: Mapping[str, Reliability],
) -> str:
    """Returns a table of teachers for people.

    Args:
        found: teacher to its records.
        seconds: teacher to seconds per text, NaN where unknown.
        reliabilities: teacher to its reliability, where it was asked for.
    """
    width = max(map(len, ("teacher", *found)))
    lines = [f"{'teacher':<{width}}  texts  evaluations  seconds/text  reliability"]
    for name, records in found.items():
        spent = np.mean([record.budget for record in records])
        reliability = reliabilities.get(name)
        shown = "-" if reliability is None else f"{reliability.reliability:.3f}"
        numbers = f"{len(records):>5}  {spent:>11.1f}  {seconds[name]:>12.3f}  {shown:>11}"
        lines.append(f"{name:<{width}}  {numbers}")
        if reliability is not None and reliability.undefined:
            lines.append(f"  reliability is undefined for {reliability.undefined} texts, left out")
    return "\n".join(lines)


def known_or_none(value: float) -> float | None:
    """Returns None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
