"""What the graph says about documents: windows in, numbers per document out.

A document's way to its answer is a flow (see `models.flows`): its windows are rows, and of what
these say its class and the numbers of its words are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle, Golden, MismatchError
from models.flows import Flow, run_flows
from models.rows import PREDICTED, FloatArray, LabelSoFar, Row, RowOutputs, run_rows
from models.session import OnnxSession
from models.text import Document, TextEncoder, merge_outputs

BoolArray = npt.NDArray[np.bool_]

# Windows of a document, the first ones, of which is kept what another class would take: 3 MB with
# the shipped bundle, and more windows than most reviews have.
_KEPT: Final = 16


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


def _mean_logits(windows: Sequence[RowOutputs]) -> FloatArray:
    if len(windows) == 1:
        return windows[0].logits.astype(np.float64) + 0.0  # -0.0 becomes 0.0, as in a mean
    stacked = np.stack([window.logits for window in windows])  # [windows, C]
    return np.asarray(stacked.mean(axis=0, dtype=np.float64))
