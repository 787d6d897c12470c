"""Rows of a run of the graph, and what a run gives for each.

Rows are padded to those of their own bucket, and a row gets the same numbers in any company. Where
a document has several rows, what another class of it takes is kept, or its class so far is passed
on, so that few rows have to be run again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from models.session import OnnxSession, States
from models.text import IntArray, bucket_length, pad_rows

FloatArray = npt.NDArray[np.float64]

PREDICTED: Final = -1  # as a target: the class that is predicted
# Summed log-odds by which a class leads before a document's next windows are explained for it:
# chosen on whole reviews, of which it had the fewest windows run twice.
_CLEAR: Final = 3.0


class LabelSoFar:
    """The class of a document as far as its windows have been run; those that are kept only add.

    Its rows share one, so that fewer windows explain a class that is not the document's; more do
    only where a document turns late. It is read when a run begins and told when it ends, by several
    threads where several runs go on at a time.
    """

    def __init__(self) -> None:
        self._logits: FloatArray | None = None  # [C], the sum
        self._lock = threading.Lock()

    @property
    def target(self) -> int:
        """The class; `PREDICTED` before the first run, and while two classes are about equal."""
        logits = self._logits
        if logits is None:
            return PREDICTED
        second, first = np.sort(logits)[[-2, -1]]
        return int(logits.argmax()) if first - second >= _CLEAR else PREDICTED

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Takes in what one window says, [C]."""
        with self._lock:
            known = 0.0 if self._logits is None else self._logits
            self._logits = known + logits.astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What one row of a run of the graph takes.

    Attributes:
        input_ids: int64 [t].
        target: the class to explain, `PREDICTED` for the row's own.
        explain: whether to explain at all.
        label: instead of `target`, the class that is known when the row is run.
        keep: whether to keep what explaining another class takes, where the session can; the row's
            own class is explained then, whatever `label` says.
    """

    input_ids: IntArray
    target: int = PREDICTED
    explain: bool = True
    label: LabelSoFar | None = None
    keep: bool = False

    @property
    def bucket(self) -> int:
        """The padded length."""
        return bucket_length(len(self.input_ids))


@dataclass(frozen=True, slots=True, eq=False)
class RowOutputs:
    """What a run of the graph gives for one row, see `models.session.Outputs`.

    Attributes:
        target: the class that was explained, or would have been.
        logits: float32 [C].
        weights: float32 [t], empty unless explained.
        label_probs: float32 [t, 5], likewise.
        retarget: gives the same for another class, where that takes no second run.
    """

    target: int
    logits: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    label_probs: npt.NDArray[np.float32]
    retarget: Callable[[int], RowOutputs] | None = None


def run_rows(session: OnnxSession, pad_id: int, rows: Sequence[Row]) -> list[RowOutputs]:
    """Runs the graph once, on rows of one bucket that are all explained or all not."""
    input_ids, mask = pad_rows([row.input_ids for row in rows], rows[0].bucket, pad_id)
    keep = [row.keep and session.retargets for row in rows]
    asked = [_asked(row, keep=kept) for row, kept in zip(rows, keep, strict=True)]
    outputs = session.run(
        input_ids,
        mask,
        np.array(asked, dtype=np.int64),
        explain=rows[0].explain,
        keep=any(keep),
    )
    found = []
    for place, (row, target) in enumerate(zip(rows, asked, strict=True)):
        # Copies, or each short row would keep its whole batch in memory.
        logits = outputs.logits[place].copy()
        if row.label is not None:
            row.label.add(logits)
        size = len(row.input_ids) if row.explain else 0
        retarget = None
        if keep[place]:
            one = slice(place, place + 1)
            states = {name: values[one].copy() for name, values in outputs.states.items()}
            retarget = partial(_retarget, session, states, logits, size)
        found.append(
            RowOutputs(
                int(logits.argmax()) if target == PREDICTED else target,
                logits,
                outputs.weights[place, :size].copy(),
                outputs.label_probs[place, :size].copy(),
                retarget,
            )
        )
    return found


def _asked(row: Row, *, keep: bool) -> int:
    """The class to explain; which one hardly matters where another can be had for little."""
    if row.label is None:
        return row.target
    return PREDICTED if keep else row.label.target


def _retarget(
    session: OnnxSession,
    states: States,
    logits: npt.NDArray[np.float32],
    size: int,
    target: int,
) -> RowOutputs:
    """Explains another class of a row of `size` tokens."""
    weights, label_probs = session.retarget(states, np.array([target], dtype=np.int64))
    return RowOutputs(target, logits, weights[0, :size], label_probs[0, :size])
