"""What the graph says about documents: windows in, numbers per document out.

A document's way to its answer is a flow: a generator that yields the rows it wants to have run and
is sent their outputs, in order, until it returns. It runs no rows itself, so that one caller may
drive a list of flows to the end (`run_flows`) and another may mix the rows of many requests. Rows
are batched with rows of their own padded length only and a batch has a bounded number of tokens, so
a document of any length, alone or in company, gets the same numbers in bounded memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle, Golden, MismatchError
from models.session import OnnxSession, States
from models.text import (
    Document,
    IntArray,
    TextEncoder,
    bucket_length,
    merge_outputs,
    pad_rows,
    plan_batches,
)

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Result = TypeVar("Result")

PREDICTED: Final = -1  # as a target: the class that is predicted
# Summed log-odds by which a class leads before a document's next windows are explained for it:
# chosen on whole reviews, of which it had the fewest windows run twice.
_CLEAR: Final = 3.0
# Windows of a document, the first ones, of which is kept what another class would take: 3 MB with
# the shipped bundle, and more windows than most reviews have.
_KEPT: Final = 16


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


# Yields rows, is sent the outputs of each, in order, and returns its result.
Flow = Generator[list[Row], list[RowOutputs], Result]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The numbers of one document of n words, for C classes.

    Attributes:
        logits: float64 [C], the mean over windows, not calibrated.
        weights: float64 [n], for the target.
        label_probs: float64 [n, 5], from high negative to high positive.
    """

    logits: FloatArray
    weights: FloatArray
    label_probs: FloatArray


def logits_flow(
    encoder: TextEncoder, document: Document, keeps: Sequence[BoolArray | None] = (None,)
) -> Flow[FloatArray]:
    """Classifies a document as often as its words are masked differently, without explaining.

    Args:
        encoder: that made the document.
        document: of W windows.
        keeps: K arrays bool [words]; the pieces of a dropped word become the mask token. None
            keeps all.

    Returns:
        float64 [K, C], the means over the windows, not calibrated.
    """
    found = yield [
        Row(window.input_ids if keep is None else encoder.masked_ids(window, keep), explain=False)
        for keep in keeps
        for window in document.windows
    ]
    windows = len(document.windows)
    starts = range(0, len(found), windows)
    return np.stack([_mean_logits(found[start : start + windows]) for start in starts])


def answer_flow(document: Document, target: int = PREDICTED) -> Flow[Answer]:
    """Classifies a document and explains one class of it.

    Args:
        document: of W windows.
        target: the class to explain; `PREDICTED` is the class that the whole document is given.
    """
    several = target == PREDICTED and len(document.windows) > 1
    so_far = LabelSoFar() if several else None
    found = yield [
        Row(window.input_ids, target, label=so_far, keep=several and place < _KEPT)
        for place, window in enumerate(document.windows)
    ]
    logits = _mean_logits(found)
    label = int(logits.argmax())
    # A window explained its own class, or what its document's was thought to be.
    stray = []
    for place, outputs in enumerate(found):
        if several and outputs.target != label:
            if outputs.retarget is None:
                stray.append(place)
            else:
                found[place] = outputs.retarget(label)
    if stray:
        again = yield [Row(document.windows[place].input_ids, label) for place in stray]
        for place, outputs in zip(stray, again, strict=True):
            found[place] = outputs
    weights = [outputs.weights for outputs in found]
    label_probs = [outputs.label_probs for outputs in found]
    return Answer(logits, *merge_outputs(document, weights, label_probs))


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


def run_batches(
    batches: Sequence[Sequence[Row]],
    run: Callable[[Sequence[Row]], list[RowOutputs]],
    runners: int = 1,
) -> Generator[list[RowOutputs], None, None]:
    """Runs batches, several at a time, and yields the outputs of each, in order.

    Args:
        batches: each of one bucket.
        run: runs the graph once, see `run_rows`; asked by `runners` threads.
        runners: at a time. Only so many and two more are begun before they are taken.
    """
    if runners == 1 or len(batches) == 1:
        yield from map(run, batches)
        return
    begun: deque[Future[list[RowOutputs]]] = deque()
    with ThreadPoolExecutor(runners, "run of the graph") as pool:
        try:
            for batch in batches:
                if len(begun) == runners + 2:
                    yield begun.popleft().result()
                begun.append(pool.submit(run, batch))
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def run_flows(
    flows: Iterable[Flow[Result]],
    run: Callable[[Sequence[Row]], list[RowOutputs]],
    max_tokens: int,
    runners: int = 1,
) -> list[Result]:
    """Drives flows to their ends, all at a time.

    Args:
        flows: fresh ones.
        run: runs the graph once, see `run_rows`.
        max_tokens: padded tokens that it gets; a longer row runs alone.
        runners: runs at a time, on as many threads.

    Returns:
        What each flow returned, in order.
    """
    all_flows = list(flows)
    results: dict[int, Result] = {}
    wanted: dict[int, list[Row]] = {}

    def go_on(number: int, outputs: list[RowOutputs] | None) -> None:
        try:
            rows = all_flows[number].send(outputs)  # type: ignore[arg-type] # None begins
        except StopIteration as end:
            results[number] = end.value
            return
        if not rows:
            raise RuntimeError("a flow without rows")
        wanted[number] = rows

    for number in range(len(all_flows)):
        go_on(number, None)
    while wanted:
        rows = [(number, place) for number, rows in wanted.items() for place in range(len(rows))]
        asked, wanted = wanted, {}
        found: dict[int, dict[int, RowOutputs]] = {number: {} for number in asked}
        several = [asked[number][place] for number, place in rows]
        batches = [*_batches(several, max_tokens)]
        runs = run_batches([[several[i] for i in batch] for batch in batches], run, runners)
        with closing(runs):
            for batch, outputs in zip(batches, runs, strict=True):
                for index, one in zip(batch, outputs, strict=True):
                    number, place = rows[index]
                    found[number][place] = one
                    if len(found[number]) == len(asked[number]):
                        # At once, for outputs are much larger than what becomes of them.
                        mine = found.pop(number)
                        go_on(number, [mine[place] for place in range(len(mine))])
    return [results[number] for number in range(len(results))]


def document_logits(
    session: OnnxSession,
    encoder: TextEncoder,
    documents: Sequence[Document],
    keep: Sequence[BoolArray] | None = None,
) -> list[FloatArray]:
    """Classifies n documents with some of their words masked, see `logits_flow`."""
    kept: Sequence[BoolArray | None] = [None] * len(documents) if keep is None else keep
    pairs = zip(documents, kept, strict=True)
    flows = [logits_flow(encoder, document, [mask]) for document, mask in pairs]
    run = partial(run_rows, session, encoder.pad_id)
    found = run_flows(flows, run, session.batch_tokens, session.runners)
    return [logits[0] for logits in found]


def answer_documents(
    session: OnnxSession,
    encoder: TextEncoder,
    documents: Sequence[Document],
    targets: Sequence[int] | None = None,
) -> list[Answer]:
    """Classifies n documents and explains one class of each, see `answer_flow`."""
    wanted = [PREDICTED] * len(documents) if targets is None else targets
    flows = [answer_flow(one, target) for one, target in zip(documents, wanted, strict=True)]
    run = partial(run_rows, session, encoder.pad_id)
    return run_flows(flows, run, session.batch_tokens, session.runners)


def make_golden(
    session: OnnxSession,
    encoder: TextEncoder,
    labels: Sequence[str],
    *,
    text: str,
    target: str,
    tolerance: Mapping[str, float],
) -> Golden:
    """Ask the golden question that a bundle will be asked whenever it is loaded."""
    found = answer_documents(session, encoder, [encoder.encode(text)], [labels.index(target)])[0]
    logits, weights = found.logits.tolist(), found.weights.tolist()
    return Golden(text, target, tuple(logits), tuple(weights), tolerance)


def check_golden(bundle: Bundle, session: OnnxSession, encoder: TextEncoder) -> None:
    """Ask the golden question.

    Raises:
        MismatchError: the answer is off by more than the tolerance, or there is none.
    """
    manifest, golden = bundle.manifest, bundle.manifest.golden
    cure = "restore the bundle from its source or export it again"
    if manifest.precision != "fp32":
        cure += ", or take the one in fp32 that it was made from"
    try:
        found = make_golden(
            session,
            encoder,
            manifest.labels,
            text=golden.text,
            target=golden.target,
            tolerance=golden.tolerance,
        )
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        reason = " ".join(str(error).split())
        raise MismatchError(
            f"{bundle.path}: the golden text gets no answer ({reason}): {cure}"
        ) from error
    sizes = [(len(pair.logits), len(pair.weights)) for pair in (found, golden)]
    if sizes[0] != sizes[1]:
        raise MismatchError(
            f"{bundle.path}: the golden text gets {sizes[0][0]} logits and {sizes[0][1]} words"
            f" instead of {sizes[1][0]} and {sizes[1][1]}: {cure}"
        )
    expected = np.array(golden.logits + golden.weights)
    gap = float(np.abs(np.array(found.logits + found.weights) - expected).max())
    tolerance = golden.allowed(manifest.precision, session.precision)
    if not gap <= tolerance:  # so that NaN fails
        raise MismatchError(
            f"{bundle.path}: the answer to the golden text is off by {gap:.3g}, more than"
            f" {tolerance:g}, on {session.provider}: {cure}"
        )


def _batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
    """The places of any rows in batches of one bucket and a bounded number of tokens."""
    for explain in (True, False):
        chosen = [place for place, row in enumerate(rows) if row.explain == explain]
        lengths = [len(rows[place].input_ids) for place in chosen]
        for batch in plan_batches(lengths, max_tokens):
            yield [chosen[index] for index in batch]


def _mean_logits(windows: Sequence[RowOutputs]) -> FloatArray:
    if len(windows) == 1:
        return windows[0].logits.astype(np.float64) + 0.0  # -0.0 becomes 0.0, as in a mean
    stacked = np.stack([window.logits for window in windows])  # [windows, C]
    return np.asarray(stacked.mean(axis=0, dtype=np.float64))
