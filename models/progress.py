"""How far long work is: a bar on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from typing import Self


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
        self.bar = False

    def __enter__(self) -> Self:
        """Shows what an earlier run has done; nothing where nothing is left to do."""
        self.bar = self.done < self.total and sys.stderr.isatty()
        if self.bar:
            self._draw()
        elif 0 < self.done < self.total:
            self._say("done already")
        return self

    def add(self, texts: int) -> None:
        """Counts texts that are done now."""
        self.done += texts
        now = time.monotonic()
        if self.bar:
            self._draw()
        elif self.done == self.total:
            self._say(f"in {_clock(now - self.started)}")
        elif now - self.said >= self.every:
            self._say(f"done, about {_clock(self._left(now))} left")
            self.said = now

    def __exit__(self, *error: object) -> None:
        """Ends the bar."""
        if self.bar:
            sys.stderr.write("\n")

    def _left(self, now: float) -> float:
        """The seconds that the rest will take, if it goes on as since the start."""
        return (now - self.started) / (self.done - self.before) * (self.total - self.done)

    def _draw(self) -> None:
        now = time.monotonic()
        if self.done == self.total:
            when = f"in {_clock(now - self.started)}"
        elif self.done > self.before:
            when = f"about {_clock(self._left(now))} left"
        else:
            when = ""
        counts = f"{self.done}/{self.total} texts {when}"
        width = max(0, min(40, shutil.get_terminal_size().columns - len(self.what + counts) - 6))
        filled = width * self.done // self.total
        bar = "#" * filled + "-" * (width - filled)
        # To the start of the line, and what an earlier drawing leaves behind is erased.
        sys.stderr.write(f"\r{self.what}: [{bar}] {counts}\x1b[K")
        sys.stderr.flush()

    def _say(self, how: str) -> None:
        sys.stderr.write(f"{self.what}: {self.done}/{self.total} texts {how}\n")


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
