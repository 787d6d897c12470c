"""What people marked as targets of a rationale layer, the loss, and how well the layer finds it.

The plausibility loss of UNIREX (Chan et al., ICML 2022): binary cross entropy of each word piece's
logit, in which a marked piece counts for as many as there are unmarked pieces to each marked one in
the training texts. Counted alike, a layer that never picks anything would be nearly right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional

from models.text import BoolArray, Document, FloatArray, Window, bucket_length, pad_rows
from training.blackbox.copies import Finding, LabelledDocument, mark, rationale_inside
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.output import LOWEST
from training.config import NEUTRAL


def piece_targets(
    part: LabelledDocument, window: Window, keep: BoolArray | None = None
) -> npt.NDArray[np.float32]:
    """Says which pieces of a window lie in the rationale.

    Args:
        part: the text.
        window: a window of it.
        keep: bool [words], False for words that are masked; None keeps all.

    Returns:
        float32 [tokens], 1 inside and 0 outside and for masked words, which are evidence of
        nothing whatever stood there: else a gap in a rationale, seen from the words around it,
        would count like the word, and masking it would change little. NaN, nothing known, for
        special tokens, pieces of no word, and everywhere where no rationale lies in the window.
    """
    targets = np.full(len(window.input_ids), np.nan, dtype=np.float32)
    spans = rationale_inside(part, window)
    if spans:
        marked = mark(spans, len(part.document.words))
        if keep is not None:
            marked &= keep
        known = window.word_index >= 0
        targets[known] = marked[window.word_index[known]]
    return targets


def piece_emphasis(
    window: Window, finding: Finding | None, factor: float
) -> npt.NDArray[np.float32]:
    """Says how often each piece of a window counts.

    Args:
        window: of a text.
        finding: what an explanation of the text got wrong, None where it has none.
        factor: of the words that it missed or named wrongly.

    Returns:
        float32 [tokens].
    """
    if finding is None:
        return np.ones(len(window.input_ids), dtype=np.float32)
    wrong = np.append(finding.missed | finding.distracting, False)[window.word_index]
    return np.where(wrong, factor, 1.0).astype(np.float32)


def marked_weight(documents: Sequence[LabelledDocument], most: float) -> float:
    """Returns for how many a marked piece counts: unmarked over marked pieces, at most `most`.

    Args:
        documents: those with a rationale count, with each of their windows.
        most: the limit, which a few short rationales would exceed.
    """
    marked = known = 0
    for part in documents:
        for window in part.document.windows if part.rationale else ():
            targets = piece_targets(part, window)
            marked += int(np.nansum(targets))
            known += int((~np.isnan(targets)).sum())
    return min(most, (known - marked) / max(1, marked))


def rationale_loss(
    logits: Tensor,
    targets: Tensor,
    labels: Tensor,
    weight: float,
    emphasis: Tensor | None = None,
) -> Tensor:
    """Returns the mean binary cross entropy over the pieces of which something is known.

    Where there is a logit for each class, a marked piece is evidence for its text's label and for
    no other class; the mean goes over the classes, too.

    Args:
        logits: of being part of the rationale, [rows, tokens] or [rows, tokens, classes].
        targets: float32 [rows, tokens], at least one not NaN; see `piece_targets`.
        labels: classes of the rows, int64 [rows].
        weight: of the marked pieces; see `marked_weight`.
        emphasis: how often each piece counts, float32 [rows, tokens]; None counts all once.
    """
    known = ~targets.isnan()
    if logits.ndim == 3:
        of_class = functional.one_hot(labels, logits.shape[2])[:, None]
        targets = targets[..., None] * of_class
    each = functional.binary_cross_entropy_with_logits(
        logits.float()[known], targets[known], pos_weight=torch.tensor(weight), reduction="none"
    )
    if emphasis is None:
        return each.mean()
    counts = emphasis[known].reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
    return (each * counts).sum() / counts.sum()


def measure_rationale(
    black_box: HuggingFaceBlackBox, documents: Sequence[LabelledDocument]
) -> dict[str, Any]:
    """Compares the words that the layer picks with those that people marked.

    Args:
        black_box: its model has a rationale layer.
        documents: whole texts; those without a rationale are left out.

    Returns:
        `texts`, how many count, and the means over them, in [0, 1] or None where there is none:
        `auprc`, scikit-learn's average precision of the word scores, and `f1` of the words whose
        score is above 0, a chance of more than one half.
    """
    precision, f1 = [], []
    for part in documents:
        if not part.rationale:
            continue
        scores = word_scores(black_box, part.document)
        gold = mark(part.rationale, len(scores))
        found = scores > 0
        precision.append(float(average_precision_score(gold, scores)))
        f1.append(2 * float((found & gold).sum()) / float(found.sum() + gold.sum()))
    means = [float(np.mean(values)) if values else None for values in (precision, f1)]
    return {"texts": len(f1), "auprc": means[0], "f1": means[1]}


def word_scores(black_box: HuggingFaceBlackBox, document: Document) -> FloatArray:
    """Returns the layer's logit for each word, the largest of its pieces, windows and classes.

    To be neutral is no class that a word could be evidence for.

    Returns:
        float64 [words]; `LOWEST` for a word without pieces.
    """
    scores = np.full(len(document.words), LOWEST)
    for window in document.windows:
        length = bucket_length(len(window.input_ids))
        ids, mask = pad_rows([window.input_ids], length, black_box.encoder.pad_id)
        with torch.inference_mode(), black_box.autocast():
            output = black_box.model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            )
        logits = output.rationale_logits[0].double().numpy()
        if logits.ndim == 2:
            logits = logits[:, [label != NEUTRAL for label in black_box.labels]].max(axis=1)
        inside = np.flatnonzero(window.word_index >= 0)
        np.maximum.at(scores, window.word_index[inside], logits[inside])
    return scores
