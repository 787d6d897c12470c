"""Attributions as lines of JSON and as a table, and how far a run is."""

from __future__ import annotations

import datetime
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from tqdm import tqdm

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
    # Readable, but for what some readers take for the end of a line.
    found = json.dumps(line, ensure_ascii=False)
    return (
        found.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
    )


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


class TextProgress:
    """Says on standard error how many texts are done; a context manager.

    On a terminal it is a bar, elsewhere plain lines. Texts come by the shard, so time is counted by
    shards, not by single texts.

    Args:
        what: a name for the work.
        total: texts, those done already with them.
        done: texts of an earlier run.
        every: seconds between two lines where standard error is no terminal.
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = 30.0) -> None:
        self.what, self.total, self.done, self.every = what, total, done, every
        self.before = done
        self.started = self.said = time.monotonic()
        self.bar: Any = None  # tqdm's type is generic over what it iterates

    def __enter__(self) -> Self:
        """Shows what an earlier run has done; nothing where nothing is left to do."""
        if self.done < self.total and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.total, initial=self.done, desc=self.what, unit="text", miniters=1,
                file=sys.stderr,
            )  # fmt: skip
        elif 0 < self.done < self.total:
            self._say("done already")
        return self

    def add(self, texts: int) -> None:
        """Counts texts that are done now."""
        self.done += texts
        if self.bar is not None:
            self.bar.update(texts)
            return
        now = time.monotonic()
        if self.done == self.total:
            self._say(f"in {_clock(now - self.started)}")
        elif now - self.said >= self.every:
            left = (now - self.started) / (self.done - self.before) * (self.total - self.done)
            self._say(f"done, about {_clock(left)} left")
            self.said = now

    def __exit__(self, *error: object) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()

    def _say(self, how: str) -> None:
        sys.stderr.write(f"{self.what}: {self.done}/{self.total} texts {how}\n")


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def known_or_none(value: float) -> float | None:
    """Returns None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
