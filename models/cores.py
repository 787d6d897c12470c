"""One graph on the cores of a processor: several runs at a time on a thread each, or one on all.

Threads that share a run wait for one another at each of its nodes. On two cores of an AMD EPYC two
runs at a time, of one thread each, compute 1.1 times (long texts in full batches) to 2.3 times (a
sentence alone) what one run after the other does on two threads, and a sentence alone is a tenth
quicker on one (docs/results/runners.json). Only who comes alone with a long text waits for less on
all of them. So the graph is loaded twice, and a run takes all threads where it begins while no
other goes on and is large enough.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort

# Padded tokens of a run, from which on two threads compute more than one: in 8 bits a fifth, and
# hardly more with half as many, for which the next text's core is worth more; in float a third
# (runners.json and runners_fp32.json).
WIDE: Final = 128
WIDE_IN_FLOAT: Final = 24
_COMPARED = 256  # padded tokens, in which runs on one thread and on all are compared


class CpuGraph:
    """A loaded graph; `run` may be called from several threads.

    Args:
        start: loads the graph on so many threads.
        threads: that runs may take in all, at least 1.
        wide: padded tokens of a run, from which on it takes all of them where it begins alone.

    Attributes:
        session: the graph on one thread, for those who ask what it takes and gives.
    """

    def __init__(
        self, start: Callable[[int], ort.InferenceSession], threads: int, wide: int = WIDE
    ) -> None:
        self.session = start(1)
        self._from = wide
        self._wide = start(threads) if threads > 1 else None
        self._lock = threading.Lock()
        self._running = 0

    def run(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """Runs the graph, as `onnxruntime.InferenceSession.run` does."""
        with self._lock:
            alone = not self._running
            self._running += 1
        try:
            wide = alone and feed["input_ids"].size >= self._from
            graph = self._wide if wide and self._wide is not None else self.session
            found: list[Any] = graph.run(names, feed)
            return found
        finally:
            with self._lock:
                self._running -= 1

    def holds(self, names: Sequence[str]) -> bool:
        """Compares runs on one thread and on all; where a bit differs, all runs have one from then.

        Args:
            names: of outputs.

        Returns:
            Whether they are equal.
        """
        if self._wide is None:
            return True
        # Of a length that every graph takes, and of words that it knows.
        ids = np.arange(_COMPARED, dtype=np.int64).reshape(-1, 8) % 3
        mask = np.ones_like(ids)
        mask[1::2, 5:] = 0
        target = np.arange(len(ids)) % 3 - 1  # the predicted class, too
        feed = {"input_ids": ids, "attention_mask": mask, "target": target}
        feed["explain"] = np.array(True)
        pairs = zip(self.session.run(names, feed), self._wide.run(names, feed), strict=True)
        equal = all(one.tobytes() == other.tobytes() for one, other in pairs)
        if not equal:
            self._wide = None
        return equal
