"""Compares teachers on one black box: faithfulness, agreement with themselves, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.text import Document, FloatArray
from training.attribution.record import Attribution, predicted, text_rng
from training.attribution.reliability import split_half
from training.attribution.report import known_or_none
from training.attribution.run import attribute_texts
from training.attribution.store import VERSION, AttributionStore
from training.attribution.teachers import teacher_named
from training.blackbox.protocol import BlackBox
from training.blackbox.source import identity
from training.data import Example
from training.evaluation.faithfulness import MEASURES, measure_faithfulness, random_weights
from training.evaluation.shards import compute_records, texts_digest

RANDOM = "random"  # the row of random words
# What the table calls the measures.
NAMES = {
    "comprehensiveness": "aopc_comprehensiveness",
    "sufficiency": "aopc_sufficiency",
    "log_odds_drop": "log_odds_drop",
    "agreement": "agreement",
}


def compare_teachers(
    black_box: BlackBox,
    examples: Sequence[Example],
    teachers: Mapping[str, int],
    *,
    seed: int,
    work: Path,
) -> dict[str, dict[str, Any]]:
    """Compares teachers on the same texts and for the predicted class.

    Args:
        black_box: explained, and answers for the masked copies of the measures.
        examples: texts; their labels are not used.
        teachers: name to budget.
        seed: of the teachers and of random words.
        work: folder of intermediate results, from which a killed run resumes.

    Returns:
        For each teacher and for `random` the means over texts of the measures (see
        `measure_faithfulness`), the split-half `reliability`, `seconds_per_text` of a batched run
        and the `budget` spent, also a mean; the `residual`, the median of |sum of weights - gap| /
        |gap| with gap = full less null value. None where a number is not defined.
    """
    texts = {example.id: example.text for example in examples}
    documents = [black_box.encoder.encode(text) for text in texts.values()]
    targets = [int(target) for target in predicted(black_box, documents)]
    key = identity(black_box)
    store = AttributionStore(work / "attributions" / texts_digest([str(key)])[:16], key)
    key = {
        **key,
        "version": VERSION,
        "texts": texts_digest([*texts.values()]),
        "targets": targets,
        "seed": seed,
    }

    def measure(name: str, weights: Sequence[Sequence[FloatArray]], what: object) -> Any:
        """Means of the measures over texts and over each text's arrays of weights."""

        def compute(row: int) -> dict[str, Any]:
            found = measure_faithfulness(black_box, documents[row], targets[row], weights[row])
            return {m: float(np.mean([part[m] for part in found])) for m in MEASURES}

        records = compute_records(
            work / "faithfulness", {**key, "weights": what}, len(texts), compute, f"{name} measured"
        )
        return {
            mine: float(np.mean([record[measure] for record in records]))
            for mine, measure in NAMES.items()
        }

    rows = {}
    for name, budget in teachers.items():
        records = attribute_texts(
            black_box, texts, teacher=name, budget=budget, seed=seed, store=store,
            targets=dict(zip(texts, targets, strict=True)),
        )  # fmt: skip
        found = split_half(teacher_named(name), documents, records)
        rows[name] = {
            **measure(name, [[record.weights] for record in records], [name, budget]),
            "reliability": known_or_none(found.reliability),
            "seconds_per_text": known_or_none(store.seconds_per_text(texts, records)),
            "budget": float(np.mean([record.budget for record in records])),
            "residual": _residual(records),
            "texts": len(texts),
        }
    draws = [_draw(document, seed) for document in documents]
    rows[RANDOM] = {
        **measure(RANDOM, draws, RANDOM),
        "reliability": None,
        "seconds_per_text": None,
        "budget": 0.0,
        "residual": None,
        "texts": len(texts),
    }
    return rows


def _residual(records: Sequence[Attribution]) -> float | None:
    if records[0].members:
        return None  # ranks have no sum to keep
    gaps = np.array([record.value - record.null_value for record in records])
    sums = np.array([record.weights.sum() for record in records])
    return float(np.median(np.abs(sums - gaps) / np.maximum(np.abs(gaps), 1e-12)))


def _draw(document: Document, seed: int) -> list[FloatArray]:
    return random_weights(len(document.words), text_rng(document.text, seed + 1))
