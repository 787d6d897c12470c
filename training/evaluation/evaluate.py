"""Evaluates a bundle on labelled texts: accuracy, faithfulness against teachers, speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import MODEL
from models.explainer import Explainer
from models.text import FloatArray
from training.attribution.record import text_rng
from training.attribution.store import VERSION
from training.attribution.teachers import looks_inside, teacher_named
from training.blackbox.graph import OnnxBlackBox
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.protocol import BlackBox
from training.data import Example, sample
from training.evaluation.classification import measure_classification
from training.evaluation.classifier_graph import classifier_alone
from training.evaluation.faithfulness import MEASURES, measure_faithfulness, random_weights
from training.evaluation.shards import compute_records, texts_digest
from training.export.graph import to_torch

WARM_UP = 3  # texts answered before the clock counts


@dataclass(frozen=True)
class Setting:
    """How to evaluate.

    Attributes:
        teachers: name to budget.
        limit: texts explained, a label-stratified sample; None explains all.
        seed: of the sample, the teachers and the random words.
        precision: of the black box under masking: `bf16` or `fp32`, of the torch classifier
            rebuilt from the bundle; `graph` asks the bundle's own graph instead, which for a bundle
            in fp16 or int8 is what is served.
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
    through the torch classifier rebuilt from the same file, or through the graph, too.

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
    classification = measure_classification(explainer.logits(documents), gold, explainer.labels)
    limit = len(examples) if setting.limit is None else setting.limit
    chosen = sample(examples, limit, setting.seed)
    records = _measure_all(explainer, chosen, setting, work)
    return {
        "n": len(examples),
        "n_explained": len(chosen),
        "accuracy": classification["accuracy"],
        "labels": list(explainer.labels),
        "explainer": _summarise(records, "explainer"),
        "teachers": {name: _summarise(records, name) for name in setting.teachers},
        "random": _summarise(records, "random"),
        "label_only_ms_per_text": float(np.median([r["label_only_ms"] for r in records])),
        "classification": classification,
        "setting": {
            "model_sha256": explainer.bundle.manifest.files[MODEL]["sha256"],
            "teachers": dict(setting.teachers),
            "seed": setting.seed,
            "precision": setting.precision,
        },
    }


def _measure_all(
    explainer: Explainer, chosen: Sequence[Example], setting: Setting, work: Path
) -> list[dict[str, Any]]:
    """Explains and measures every text; what is on disk already is not computed again."""
    texts = [example.text for example in chosen]
    labels = [explainer.predict([text])[0].label for text in texts]
    targets = [explainer.labels.index(label) for label in labels]
    classifier = _Classifier.of(explainer, setting.precision)
    # What teachers and measures depend on: not the explainer, so that another student of the
    # same classifier finds its teachers' work done.
    key = {
        "classifier": classifier.digest,
        "texts": texts_digest(texts),
        "targets": targets,
        "seed": setting.seed,
        "precision": setting.precision,
        "version": VERSION,
    }
    explanations = {
        name: _attribute(
            classifier.seen_by(name), texts, targets, name, budget, setting.seed, work, key
        )
        for name, budget in setting.teachers.items()
    }
    key = {
        **key,
        "model": explainer.bundle.manifest.files[MODEL]["sha256"],
        "teachers": dict(setting.teachers),
    }

    def measure(row: int) -> dict[str, Any]:
        found = {name: records[row] for name, records in explanations.items()}
        return _measure(explainer, classifier.asked, texts[row], targets[row], found, setting.seed)

    for text in texts[:WARM_UP]:
        explainer.explain([text])
        explainer.predict([text])
    return compute_records(work, key, len(texts), measure, "faithfulness")


@dataclass(frozen=True)
class _Classifier:
    """The bundle's classifier.

    Attributes:
        asked: answers masked copies.
        torch: what teachers look into that need more than answers.
        digest: of what decides the answers, whatever the explainer is.
    """

    asked: BlackBox
    torch: HuggingFaceBlackBox
    digest: str

    @classmethod
    def of(cls, explainer: Explainer, precision: str) -> _Classifier:
        torch, _ = to_torch(explainer.bundle)
        if precision != "graph":
            torch.precision = precision
            return cls(torch, torch, state_digest(torch))
        alone = sha256(classifier_alone(explainer.bundle.model_bytes())).hexdigest()
        digest = f"{state_digest(torch)}, {alone} on {explainer.session.device}"
        return cls(OnnxBlackBox(explainer), torch, digest)

    def seen_by(self, teacher: str) -> BlackBox:
        return self.torch if looks_inside(teacher) else self.asked


def _attribute(
    black_box: BlackBox,
    texts: Sequence[str],
    targets: Sequence[int],
    name: str,
    budget: int,
    seed: int,
    work: Path,
    key: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Runs a teacher text by text; records hold the weights and their milliseconds."""
    teacher = teacher_named(name)

    def attribute(row: int) -> dict[str, Any]:
        document, target = black_box.encoder.encode(texts[row]), np.array([targets[row]])
        started = time.perf_counter()
        [found] = teacher.attribute(black_box, [document], target, budget=budget, seed=seed)
        spent = 1e3 * (time.perf_counter() - started)
        return {"weights": found.weights.tolist(), "budget": found.budget, "ms": spent}

    key = {**key, "teacher": name, "budget": budget}
    return compute_records(work, key, len(texts), attribute, f"{name} {budget or ''}")


def _measure(
    explainer: Explainer,
    black_box: BlackBox,
    text: str,
    target: int,
    teachers: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """Measures the student, the teachers and random words on one text."""
    started = time.perf_counter()
    explainer.predict([text])
    label_only = time.perf_counter() - started
    started = time.perf_counter()
    [answer] = explainer.explain([text])
    seconds = time.perf_counter() - started
    weights: dict[str, FloatArray] = {"explainer": answer.word_scores.weights}
    weights |= {name: np.array(record["weights"]) for name, record in teachers.items()}
    document = explainer.encode(text)
    draws = random_weights(len(document.words), text_rng(text, seed + 1))
    measured = measure_faithfulness(black_box, document, target, [*weights.values(), *draws])
    spent = {"explainer": 1e3 * seconds} | {name: found["ms"] for name, found in teachers.items()}
    result: dict[str, Any] = {
        name: {**found, "ms_per_text": spent[name]}
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
