"""How far a classifier's explanations point at what people point at, for the gold label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.text import TextEncoder
from training.attribution.record import text_rng
from training.attribution.run import attribute_texts
from training.attribution.store import AttributionStore
from training.blackbox.protocol import BlackBox
from training.blackbox.source import identity
from training.data import Example
from training.data.chunks import cut
from training.data.rationale import gold_words
from training.evaluation.plausibility import (
    measure_plausibility,
    oracle_weights,
    random_plausibility,
    summarize_plausibility,
)
from training.evaluation.shards import texts_digest

RANDOM, ORACLE = "random", "oracle"  # rows of words drawn by chance, and of one who knows


def measure_alignment(
    black_box: BlackBox,
    examples: Sequence[Example],
    teachers: Mapping[str, int],
    *,
    share: float,
    seed: int,
    work: Path,
) -> dict[str, Any]:
    """Explains the gold label of each text and compares the explanations with human rationales.

    Args:
        black_box: explained.
        examples: with rationales; their ids are unique.
        teachers: name to budget.
        share: of words in the hard prediction, see `measure_plausibility`.
        seed: of the teachers and of random words.
        work: folder of the attributions, from which a killed run resumes.

    Returns:
        `metrics`: for each teacher, `random` and `oracle` the means over documents (see
        `summarize_plausibility`); `documents`: for each the `id` and, by teacher, its own values;
        `setting`: budgets spent on average, share, seed and number of documents.
    """
    texts = {example.id: example.text for example in examples}
    targets = {example.id: black_box.labels.index(example.label) for example in examples}
    key = identity(black_box)
    store = AttributionStore(work / "attributions" / texts_digest([str(key)])[:16], key)
    documents = [black_box.encoder.encode(text) for text in texts.values()]
    spans = [example.rationale for example in examples]
    rows: dict[str, list[dict[str, float]]] = {}
    budgets: dict[str, float] = {}
    for name, budget in teachers.items():
        records = attribute_texts(
            black_box, texts, teacher=name, budget=budget, seed=seed, store=store, targets=targets
        )
        budgets[name] = float(np.mean([record.budget for record in records]))
        rows[name] = [
            measure_plausibility(document, record.weights, of_text, share)
            for document, record, of_text in zip(documents, records, spans, strict=True)
        ]
    pairs = list(zip(documents, spans, strict=True))
    rows[RANDOM] = [
        random_plausibility(document, of_text, share, text_rng(document.text, seed + 1))
        for document, of_text in pairs
    ]
    rows[ORACLE] = [
        measure_plausibility(document, oracle_weights(document, of_text), of_text, share)
        for document, of_text in pairs
    ]
    return {
        "metrics": {name: summarize_plausibility(found) for name, found in rows.items()},
        "documents": [
            {"id": example.id, **{name: found[row] for name, found in rows.items()}}
            for row, example in enumerate(examples)
        ],
        "setting": {"texts": len(examples), "budgets": budgets, "share": share, "seed": seed},
    }


def rationale_share(black_box: BlackBox, examples: Sequence[Example]) -> float:
    """Returns the mean share of words that people marked, over the texts with a rationale.

    Raises:
        ValueError: when no text has one.
    """
    shares = [
        gold_words(black_box.encoder.encode(example.text), example.rationale).mean()
        for example in examples
        if example.rationale
    ]
    if not shares:
        raise ValueError("no text has a human rationale: give data in ERASER format")
    return float(np.mean(shares))


def first_chunk(example: Example, encoder: TextEncoder, tokens: int) -> Example | None:
    """Returns a text's first chunk of at most so many tokens with the rationale that lies in it.

    None where none does.
    """
    chunk = cut(example.text, encoder, tokens)[0]
    start = example.text.index(chunk)
    end = start + len(chunk)
    clipped = [
        (max(first, start) - start, min(last, end) - start)
        for first, last in example.rationale or ()
    ]
    spans = tuple(
        (first, last) for first, last in clipped if first < last and chunk[first:last].strip()
    )
    return replace(example, text=chunk, rationale=spans) if spans else None
