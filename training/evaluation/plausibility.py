"""Plausibility by human evidence: whether the words that weigh most are those that people marked.

The weights are signed and for the gold label, the label that the people gave evidence for; a span
that speaks against it is not what they marked.

One ranking serves all measures. Words of equal weight come in an order that depends on the text
alone: by position, an explanation that is all zeros would score well wherever evidence comes early,
and the trapezoids under ERASER's curve would give it (1 + share of gold words) / 2. Where all
weights differ, and only there, the order plays no part and AUPRC is ERASER's to the last digit.

Sources: AUPRC, token F1 and IOU F1 as in ERASER (DeYoung et al., ACL 2020, section 4, and its
published code), over all words. AP@k and MR@k mend those of the LIME feedback paper (Kadapala and
Borchard), which matched strings, so that `he` was found in `the`, and whose MR was the number of
human spans over ten, whatever the model said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import auc, precision_recall_curve

from models.text import BoolArray, Document, FloatArray
from training.attribution.record import text_rng
from training.data.rationale import STOP_WORDS, Span, content_words, gold_words, word_ranges
from training.evaluation.faithfulness import Measure, random_weights, top_words

BUDGETS = ("5", "10", "5%", "gold")
IOU_THRESHOLD = 0.5  # ERASER's
TIE_SEED = 5

PLAUSIBILITY: Mapping[str, Measure] = {
    **{f"ap@{budget}": Measure(0.0, 1.0, True) for budget in BUDGETS},
    **{f"mr@{budget}": Measure(0.0, 1.0, False) for budget in BUDGETS},
    "auprc": Measure(0.0, 1.0, True),
    **{
        f"{kind}_{part}": Measure(0.0, 1.0, True)
        for kind in ("token", "iou")
        for part in ("precision", "recall", "f1")
    },
}


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Human spans as disjoint ranges of words; bool [words]: those inside, those of content."""

    ranges: list[Span]
    gold: BoolArray
    content: BoolArray


def measure_plausibility(
    document: Document,
    weights: FloatArray,
    spans: Sequence[Span] | None,
    share: float,
    *,
    stop_words: frozenset[str] = STOP_WORDS,
) -> dict[str, float]:
    """Measures one explanation of one document against its human spans.

    AP@k is the share of human spans with a word among the k content words of largest weight, MR@k
    the share of these k words that lie outside every span. k is 5, 10, 5 % of all words (rounded
    up) or the number of content words in spans (gold); where there are fewer content words, all of
    them. A span without content words cannot be hit and counts all the same: people marked it,
    and the oracle's row shows how much is out of reach. Where no word can be taken, AP is 0 and MR
    is 1, the worst, for the oracle too.

    Spans that share a word count as one, those that only touch as two. A span over blanks alone is
    none.

    Args:
        document: with n words.
        weights: float64 [n], finite, signed, for the gold label.
        spans: half-open code-point ranges of the text, in any order.
        share: of words, in (0, 1], that the hard prediction takes for token and IOU F1: the mean
            share of gold words in the training part of the dataset (see `gold_words`).
        stop_words: see `content_words`.

    Returns:
        The measures of `PLAUSIBILITY`, each in [0, 1].

    Raises:
        ValueError: when no span covers a word, a span leaves the text, a weight is missing or not
            finite, or the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not in (0, 1]")
    evidence = _read(document, spans, stop_words)
    scores = _scores(document, weights)
    chosen = top_words(scores, max(share, 1 / len(scores)))  # at least one, however small the share
    precision, recall, _ = precision_recall_curve(evidence.gold, scores)
    return {
        **_alignment(scores, evidence),
        # The trapezoids of a perfect curve may add up to 1 + 2e-16.
        "auprc": min(1.0, float(auc(recall, precision))),
        **_scored("token", evidence.gold[chosen].mean(), chosen[evidence.gold].mean()),
        **_matched(_runs(chosen), evidence.ranges),
    }


def random_plausibility(
    document: Document,
    spans: Sequence[Span] | None,
    share: float,
    rng: np.random.Generator,
    *,
    stop_words: frozenset[str] = STOP_WORDS,
) -> dict[str, float]:
    """Measures the random row: the mean over the draws of `random_weights`.

    Raises:
        ValueError: see `measure_plausibility`.
    """
    draws = random_weights(len(document.words), rng)
    measured = [
        measure_plausibility(document, draw, spans, share, stop_words=stop_words) for draw in draws
    ]
    return _means(measured)


def oracle_weights(
    document: Document,
    spans: Sequence[Span] | None,
    *,
    stop_words: frozenset[str] = STOP_WORDS,
) -> FloatArray:
    """Returns the explanation of one who knows the spans: the ceiling, except for IOU F1.

    First comes one content word of each span, then the other words of spans, short spans first,
    then what lies around them, near before far in lengths of the span. No weights have a better AP
    or MR at any k, AUPRC or token F1. IOU F1 would rather leave out a span than begin it, so where
    the share is smaller than that of gold words others may have more.

    Returns:
        float64 [words], positive for gold words only.

    Raises:
        ValueError: see `measure_plausibility`.
    """
    evidence = _read(document, spans, stop_words)
    places = np.arange(len(document.words))
    distance = np.full(len(places), np.inf)
    weights = np.zeros(len(places))
    by_length = sorted(evidence.ranges, key=lambda span: span[1] - span[0])
    for rank, (first, end) in enumerate(by_length):
        length = end - first
        away = np.maximum(np.maximum(first - places, places - end + 1), 0) / length
        distance = np.minimum(distance, away)
        weights[first:end] = 2 - (rank + np.arange(length) / length) / len(by_length)
        weights[first + np.flatnonzero(evidence.content[first:end])[:1]] += 2
    return np.where(evidence.gold, weights, -distance)


def summarize_plausibility(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Averages the measures over documents.

    Args:
        rows: of `measure_plausibility` or `random_plausibility`, at least one.

    Returns:
        The mean of each measure, and `iou_f1_eraser`: ERASER reports F1 of the mean precision and
        the mean recall, which no significance test by document can use; `iou_f1` is the mean of
        the documents' own.
    """
    means = _means(rows)
    return {**means, "iou_f1_eraser": _f1(means["iou_precision"], means["iou_recall"])}


def _read(
    document: Document, spans: Sequence[Span] | None, stop_words: frozenset[str]
) -> _Evidence:
    content = content_words(document, stop_words)
    return _Evidence(word_ranges(document, spans), gold_words(document, spans), content)


def _scores(document: Document, weights: FloatArray) -> FloatArray:
    """Returns n for the strongest word down to 1: the ranking, as weights without ties."""
    words = len(document.words)
    if weights.shape != (words,) or not np.isfinite(weights).all():
        raise ValueError(f"an explanation of {words} words needs as many finite weights")
    by_chance = text_rng(document.text, TIE_SEED).permutation(words)
    scores = np.empty(words)
    scores[np.lexsort((by_chance, -weights))] = np.arange(words, 0, -1)
    return scores


def _alignment(scores: FloatArray, evidence: _Evidence) -> dict[str, float]:
    """Computes AP@k and MR@k."""
    candidates = np.flatnonzero(evidence.content)
    ranked = candidates[np.argsort(-scores[candidates])]
    gold_length = int((evidence.gold & evidence.content).sum())
    result = {}
    for name, count in zip(BUDGETS, (5, 10, -(-len(scores) // 20), gold_length), strict=True):
        top = np.zeros(len(scores), dtype=np.bool_)
        top[ranked[:count]] = True
        hits = [bool(top[first:end].any()) for first, end in evidence.ranges]
        result[f"ap@{name}"] = float(np.mean(hits))
        result[f"mr@{name}"] = float((~evidence.gold[top]).mean()) if top.any() else 1.0
    return result


def _matched(predicted: Sequence[Span], human: Sequence[Span]) -> dict[str, float]:
    """Counts the predicted spans whose best IOU with a human span reaches the threshold."""
    found = sum(max(_iou(span, other) for other in human) >= IOU_THRESHOLD for span in predicted)
    return _scored("iou", found / len(predicted), found / len(human))


def _iou(one: Span, other: Span) -> float:
    common = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return common / (one[1] - one[0] + other[1] - other[0] - common)


def _runs(chosen: BoolArray) -> list[Span]:
    """Returns the maximal runs of True, half-open."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _scored(kind: str, precision: float, recall: float) -> dict[str, float]:
    return {
        f"{kind}_precision": float(precision),
        f"{kind}_recall": float(recall),
        f"{kind}_f1": _f1(float(precision), float(recall)),
    }


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision and recall else 0.0


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in PLAUSIBILITY}
