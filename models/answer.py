"""What the graph says about documents: windows in, numbers per document out.

Rows are batched with rows of their own padded length only and a batch has a bounded number of
tokens, so a document of any length, alone or in company, gets the same numbers in bounded memory.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle, Golden, MismatchError
from models.session import OnnxSession, Outputs
from models.text import (
    Document,
    IntArray,
    TextEncoder,
    bucket_length,
    mean_pieces,
    merge_pieces,
    pad_rows,
    plan_batches,
)

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

PREDICTED: Final = -1  # as a target: the class that is predicted
TOKEN_BUDGET: Final = 16_384  # padded tokens in one run of the graph


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


def document_logits(
    session: OnnxSession,
    encoder: TextEncoder,
    documents: Sequence[Document],
    keep: Sequence[BoolArray] | None = None,
) -> list[FloatArray]:
    """Classify documents with some of their words masked, without explaining.

    Args:
        session: the graph.
        encoder: that made the documents.
        documents: n documents.
        keep: n arrays bool [words of the document]; the pieces of a dropped word become the mask
            token. None keeps all.

    Returns:
        n arrays float64 [C], the mean over the windows of a document, not calibrated.
    """
    rows = [window.input_ids for document in documents for window in document.windows]
    if keep is not None:
        rows = [
            encoder.masked_ids(window, kept)
            for document, kept in zip(documents, keep, strict=True)
            for window in document.windows
        ]
    found = _run(session, encoder.pad_id, rows, [PREDICTED] * len(rows), explain=False)
    return [_mean_logits(windows) for windows in _by_document(documents, found)]


def answer_documents(
    session: OnnxSession,
    encoder: TextEncoder,
    documents: Sequence[Document],
    targets: Sequence[int] | None = None,
) -> list[Answer]:
    """Classify documents and explain one class of each.

    Args:
        session: the graph.
        encoder: that made the documents.
        documents: n documents.
        targets: n class indices to explain; `PREDICTED`, or None for all, is the class that the
            whole document is given.
    """
    if targets is None:
        targets = [PREDICTED] * len(documents)
    owners = [number for number, document in enumerate(documents) for _ in document.windows]
    rows = [window.input_ids for document in documents for window in document.windows]
    wanted = [targets[owner] for owner in owners]
    found = _run(session, encoder.pad_id, rows, wanted, explain=True)
    logits = [_mean_logits(windows) for windows in _by_document(documents, found)]
    # A window explained its own class; where the document's is another, it is asked again.
    labels = [int(values.argmax()) for values in logits]
    stray = [
        row
        for row, owner in enumerate(owners)
        if wanted[row] == PREDICTED and found[row].logits.argmax() != labels[owner]
    ]
    classes = [labels[owners[row]] for row in stray]
    again = _run(session, encoder.pad_id, [rows[row] for row in stray], classes, explain=True)
    for row, outputs in zip(stray, again, strict=True):
        found[row] = outputs
    return [
        Answer(
            values,
            merge_pieces(document, [window.weights for window in windows]),
            mean_pieces(document, [window.label_probs for window in windows]),
        )
        for document, values, windows in zip(
            documents, logits, _by_document(documents, found), strict=True
        )
    ]


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
    tolerance = golden.tolerance[manifest.precision]
    if not gap <= tolerance:  # so that NaN fails
        raise MismatchError(
            f"{bundle.path}: the answer to the golden text is off by {gap:.3g}, more than"
            f" {tolerance:g}, on {session.provider}: {cure}"
        )


def _run(
    session: OnnxSession,
    pad_id: int,
    rows: Sequence[IntArray],
    targets: Sequence[int],
    *,
    explain: bool,
) -> list[Outputs]:
    """Run rows [t] in bounded batches of one bucket each.

    Returns:
        The outputs of each row, without the batch axis and without pads: logits [C] and, empty
        unless explained, weights [t] and label_probs [t, 5].
    """
    found: dict[int, Outputs] = {}
    for batch in plan_batches([len(row) for row in rows], TOKEN_BUDGET):
        length = bucket_length(len(rows[batch[0]]))
        input_ids, mask = pad_rows([rows[row] for row in batch], length, pad_id)
        wanted = np.array([targets[row] for row in batch], dtype=np.int64)
        outputs = session.run(input_ids, mask, wanted, explain=explain)
        for place, row in enumerate(batch):
            size = len(rows[row]) if explain else 0
            # Copies, or each short row would keep its whole batch in memory.
            found[row] = Outputs(
                outputs.logits[place].copy(),
                outputs.weights[place, :size].copy(),
                outputs.label_probs[place, :size].copy(),
            )
    return [found[row] for row in range(len(rows))]


def _by_document(
    documents: Sequence[Document], found: Sequence[Outputs]
) -> Iterator[list[Outputs]]:
    """Yield the outputs of each document's windows."""
    remaining = iter(found)
    for document in documents:
        yield list(itertools.islice(remaining, len(document.windows)))


def _mean_logits(windows: Sequence[Outputs]) -> FloatArray:
    stacked = np.stack([window.logits for window in windows])  # [windows, C]
    return np.asarray(stacked.mean(axis=0, dtype=np.float64))
