"""Evaluates a bundle on labelled texts: accuracy, faithfulness against teachers, speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.explainer import Explainer
from models.text import FloatArray
from training.attribution.record import text_rng
from training.attribution.run import teacher_named
from training.attribution.store import ShardStore, texts_digest
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.data import Example, sample
from training.evaluation.faithfulness import MEASURES, measure_faithfulness, random_weights
from training.export import to_torch
from training.runtime import progress

SHARD = 4  # documents per file: a killed run loses at most these
WARM_UP = 3  # texts answered before the clock counts


@dataclass(frozen=True)
class Setting:
    """How to evaluate.

    Attributes:
        teachers: name to budget.
        limit: texts explained, a label-stratified sample; None explains all.
        seed: of the sample, the teachers and the random words.
        precision: of the black box under masking, `bf16` or `fp32`.
    """

    teachers: Mapping[str, int]
    limit: int | None = None
    seed: int = 0
    precision: str = "fp32"


def evaluate(
    explainer: Explainer, examples: Sequence[Example], setting: Setting, work: Path
) -> dict[str, Any]:
    """Evaluates on labelled texts.

    Accuracy and the student's weights come from the bundle's own graph; masked copies run
    through the torch classifier rebuilt from the same file.

    Args:
        explainer: the bundle.
        examples: with labels of the bundle.
        setting: see `Setting`.
        work: folder of intermediate results, from which a killed run resumes.

    Returns:
        The JSON of `l2e evaluate`: probabilities, natural log-odds, milliseconds.
    """
    documents = [explainer.encode(example.text) for example in examples]
    gold = np.array([explainer.labels.index(example.label) for example in examples])
    accuracy = float((explainer.logits(documents).argmax(axis=1) == gold).mean())
    limit = len(examples) if setting.limit is None else setting.limit
    chosen = sample(examples, limit, setting.seed)
    records = _measure_all(explainer, chosen, setting, work)
    return {
        "n": len(examples),
        "n_explained": len(chosen),
        "accuracy": accuracy,
        "labels": list(explainer.labels),
        "explainer": _summarise(records, "explainer"),
        "teachers": {name: _summarise(records, name) for name in setting.teachers},
        "random": _summarise(records, "random"),
        "label_only_ms_per_text": float(np.median([r["label_only_ms"] for r in records])),
        "setting": {
            "bundle": explainer.bundle.digest,
            "teachers": dict(setting.teachers),
            "seed": setting.seed,
            "precision": setting.precision,
        },
    }


def _measure_all(
    explainer: Explainer, chosen: Sequence[Example], setting: Setting, work: Path
) -> list[dict[str, Any]]:
    texts = [example.text for example in chosen]
    key = {
        "bundle": explainer.bundle.digest,
        "texts": texts_digest(texts),
        "teachers": dict(setting.teachers),
        "seed": setting.seed,
        "precision": setting.precision,
    }
    store = ShardStore(work / texts_digest([str(key)])[:16], key)
    shards = -(-len(texts) // SHARD)
    todo = store.missing(shards)
    if todo:
        black_box, _ = to_torch(explainer.bundle)
        black_box.precision = setting.precision
        for text in texts[:WARM_UP]:
            explainer.explain([text])
            explainer.predict([text])
        bar = progress(todo, total=shards, done=shards - len(todo), what="evaluation")
        for number in bar:
            part = texts[number * SHARD : (number + 1) * SHARD]
            store.write(number, [_measure(explainer, black_box, text, setting) for text in part])
    return store.read(shards)


def _measure(
    explainer: Explainer, black_box: HuggingFaceBlackBox, text: str, setting: Setting
) -> dict[str, Any]:
    """Explains one text in every way and measures each explanation."""
    started = time.perf_counter()
    label = explainer.predict([text])[0].label
    label_only = time.perf_counter() - started
    started = time.perf_counter()
    [answer] = explainer.explain([text])
    seconds = {"explainer": time.perf_counter() - started}
    weights: dict[str, FloatArray] = {"explainer": np.array([w.weight for w in answer.words])}
    document, target = explainer.encode(text), explainer.labels.index(label)
    for name, budget in setting.teachers.items():
        started = time.perf_counter()
        [record] = teacher_named(name)(
            black_box, [document], np.array([target]), budget=budget, seed=setting.seed
        )
        seconds[name] = time.perf_counter() - started
        weights[name] = record.weights
    draws = random_weights(len(document.words), text_rng(text, setting.seed + 1))
    (*measured,) = measure_faithfulness(black_box, document, target, [*weights.values(), *draws])
    result: dict[str, Any] = {
        name: {**found, "ms_per_text": 1e3 * seconds[name]}
        for name, found in zip(weights, measured, strict=False)
    }
    drawn = measured[len(weights) :]
    result["random"] = {name: float(np.mean([d[name] for d in drawn])) for name in MEASURES}
    result["label_only_ms"] = 1e3 * label_only
    return result


def _summarise(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Means over texts; the median for the time."""
    rows = [record[name] for record in records]
    found = {measure: float(np.mean([row[measure] for row in rows])) for measure in MEASURES}
    if "ms_per_text" in rows[0]:
        found["ms_per_text"] = float(np.median([row["ms_per_text"] for row in rows]))
    return found
