"""Whether a classifier turns neutral without the rationale, and only then (L2E, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

from models.text import BoolArray
from training.attribution.record import text_rng
from training.blackbox.copies import LabelledDocument, mark, random_spans
from training.blackbox.protocol import BlackBox
from training.config import NEUTRAL


def measure_neutral(
    black_box: BlackBox, documents: Sequence[LabelledDocument], seed: int
) -> dict[str, float | int | None]:
    """Masks the human rationale, and as much text elsewhere, in whole documents.

    Args:
        black_box: with a class `NEUTRAL`.
        documents: those without a rationale are left out.
        seed: of the places of the random spans.

    Returns:
        Of the documents that are classified correctly (`texts`) the shares that turn neutral
        `without_rationale` and without `random_spans` of the same lengths outside of it, in
        [0, 1], None where there is no such document; `masked_ratio`, words masked by the random
        spans for each word of the rationale, below 1 where a document leaves no room for them.
    """
    parts = [part for part in documents if part.rationale]
    if not parts:
        return {"texts": 0, "without_rationale": None, "random_spans": None, "masked_ratio": None}
    gold: list[BoolArray] = []
    other: list[BoolArray] = []
    for part in parts:
        words = len(part.document.words)
        gold.append(mark(part.rationale or (), words))
        rng = text_rng(part.document.text, seed)
        other.append(mark(random_spans(part.rationale or (), ~gold[-1], rng), words))
    texts = [part.document for part in parts]
    right = black_box.logits(texts).argmax(axis=1) == [part.label for part in parts]
    neutral = black_box.labels.index(NEUTRAL)
    shares: dict[str, float | int | None] = {"texts": int(right.sum())}
    for name, masks in (("without_rationale", gold), ("random_spans", other)):
        found = black_box.logits(texts, [~mask for mask in masks]).argmax(axis=1) == neutral
        shares[name] = float(found[right].mean()) if right.any() else None
    covered = sum(int(mask.sum()) for mask in other)
    shares["masked_ratio"] = covered / sum(int(mask.sum()) for mask in gold)
    return shares
