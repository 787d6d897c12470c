"""Occlusion: how much the log-odds fall when one word is masked (Zeiler and Fergus, 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.text import Document, IntArray
from training.attribution.record import Attribution, build_records, evaluate_copies
from training.blackbox.protocol import BlackBox


def attribute(
    black_box: BlackBox,
    documents: Sequence[Document],
    targets: IntArray,
    *,
    budget: int,
    seed: int,
) -> list[Attribution]:
    """Explains documents; see `Teacher`. Spends one evaluation a word, plus full and null text."""
    masks = []
    for document in documents:
        words = len(document.words)
        mask = np.ones((words + 2, words), dtype=np.bool_)
        mask[1] = False
        mask[np.arange(words) + 2, np.arange(words)] = False
        masks.append(mask)
    values = evaluate_copies(black_box, documents, targets, masks)
    return build_records(
        "occlusion",
        documents,
        targets,
        values,
        [value[0] - value[2:] for value in values],
        budgets=[len(value) for value in values],
        seed=seed,
    )
