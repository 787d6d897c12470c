"""Our teachers against `lime` and `shap` as their documentation drives them.

    python -m tests.bench.attribution [--bundle DIR] [--json FILE]

Same classifier, same texts, identical masks: the packages draw them, ours evaluate the same. Two
ways to drive a package: a `transformers` text-classification pipeline, one text after the other
as it does by default, and a predict function that batches by hand in fp32. Beside it, the share
of the raw forward pass that becomes attributions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shap
import torch
from lime.lime_text import LimeTextExplainer
from transformers import AutoTokenizer, pipeline

from models.bundle import load
from models.text import BoolArray, Document, FloatArray, bucket_length, pad_rows
from training.attribution import kernel_shap, lime
from training.attribution.perturbation import evaluate_copies
from training.blackbox.huggingface import TOKEN_BUDGET, HuggingFaceBlackBox
from training.blackbox.protocol import explained_value
from training.evaluation.machine import machine
from training.evaluation.report import packages_to_markdown
from training.evaluation.texts import SENTENCE
from training.export.graph import to_torch
from training.runtime import native_precision, tune_memory, use_threads, write_json

HAND_BATCH = 32  # rows of a batch of the hand-written predict function
Predict = Callable[[list[str]], FloatArray]


@dataclass(frozen=True)
class Case:
    """Texts of about so many tokens, each explained from so many copies."""

    tokens: int
    texts: int
    copies: int


CASES = (Case(24, 8, 200), Case(512, 2, 100))


def main() -> None:
    """Runs all cases and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/pretrained/reviews"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tune_memory()
    use_threads()
    black_box, _ = to_torch(load(options.bundle))
    # One window, as the packages' own drivers have: 512 tokens are within the model's positions.
    black_box.encoder.max_tokens = 512
    precision = native_precision()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        black_box.save(Path(folder))
        drivers = {"pipeline": _pipeline(folder), "hand-batched": _hand_batched(folder)}
        for case in CASES:
            for package in (_run_lime, _run_shap):
                rows.append(_compare(black_box, case, package, drivers, precision))
                print(f"{rows[-1]['package']}, {case.tokens} tokens: done", file=sys.stderr)
    result = {"machine": machine(), "precision": precision, "rows": rows}
    print(packages_to_markdown(result))
    if options.json is not None:
        write_json(options.json, result)


def _compare(
    black_box: HuggingFaceBlackBox,
    case: Case,
    package: Callable[[str, Predict, int], BoolArray],
    drivers: dict[str, Predict],
    precision: str,
) -> dict[str, Any]:
    texts = [_text(black_box, case.tokens, seed) for seed in range(case.texts)]
    documents = [black_box.encoder.encode(text) for text in texts]
    spent, masks = {}, []
    for name, predict in drivers.items():
        package(texts[0], predict, 10)  # warm-up
        started = time.perf_counter()
        masks = [package(text, predict, case.copies) for text in texts]
        spent[name] = time.perf_counter() - started
    estimate = lime.estimate if package is _run_lime else kernel_shap.estimate
    black_box.precision = precision
    evaluate_copies(black_box, documents, [mask[:10] for mask in masks])
    started = time.perf_counter()
    answers = evaluate_copies(black_box, documents, masks)
    for mask, logits in zip(masks, answers, strict=True):
        estimate(mask, explained_value(black_box, logits, 1))
    ours = time.perf_counter() - started
    copies = sum(map(len, masks))
    raw = _raw_seconds(black_box, documents, masks)
    return {
        "package": "lime" if package is _run_lime else "shap.KernelExplainer",
        "tokens": case.tokens,
        "texts": case.texts,
        "copies": copies,
        "ours_seconds": ours,
        **{f"{name}_seconds": seconds for name, seconds in spent.items()},
        **{f"times_{name}": seconds / ours for name, seconds in spent.items()},
        "evaluations_per_second": copies / ours,
        "raw_evaluations_per_second": copies / raw,
        "share_of_raw": raw / ours,
    }


def _run_lime(text: str, predict: Predict, copies: int) -> BoolArray:
    """Explains with LIME's own class; returns the masks that it drew."""
    seen: list[list[bool]] = []

    def classify(masked: list[str]) -> FloatArray:
        seen.extend([word != "[MASK]" for word in one.split()] for one in masked)
        return predict(masked)

    explainer = LimeTextExplainer(bow=False, mask_string="[MASK]", split_expression=r"\s+")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer.explain_instance(text, classify, labels=(1,), num_samples=copies)
    masks = np.array(seen)
    return np.concatenate([masks[:1], np.zeros_like(masks[:1]), masks[1:]])


def _run_shap(text: str, predict: Predict, copies: int) -> BoolArray:
    """Explains with `shap.KernelExplainer`; returns the masks that it drew."""
    words = text.split()
    seen: list[BoolArray] = []

    def classify(masks: FloatArray) -> FloatArray:
        rows = masks.astype(bool)
        seen.extend(rows)
        return predict([" ".join(np.where(row, words, "[MASK]")) for row in rows])

    explainer = shap.KernelExplainer(classify, np.zeros((1, len(words))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer.shap_values(np.ones((1, len(words))), nsamples=copies, silent=True)
    masks = np.array(seen)
    rest = masks[(masks.any(axis=1)) & (~masks.all(axis=1))]
    return np.concatenate([np.ones_like(masks[:1]), np.zeros_like(masks[:1]), rest])


def _pipeline(folder: str) -> Predict:
    classifier: Any = pipeline("text-classification", model=folder, top_k=None)

    def predict(texts: list[str]) -> FloatArray:
        answers = classifier(texts)
        return np.array(
            [[a["score"] for a in sorted(row, key=lambda a: a["label"])] for row in answers]
        )

    return predict


def _hand_batched(folder: str) -> Predict:
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def predict(texts: list[str]) -> FloatArray:
        found = []
        for first in range(0, len(texts), HAND_BATCH):
            batch = tokenizer(texts[first : first + HAND_BATCH], padding=True, return_tensors="pt")
            with torch.inference_mode():
                found.append(model(**batch).logits.softmax(-1))
        return torch.cat(found).double().numpy()

    return predict


def _raw_seconds(
    black_box: HuggingFaceBlackBox, documents: Sequence[Document], masks: Sequence[BoolArray]
) -> float:
    """Returns the seconds of as many forward passes over rows of the same padded lengths."""
    lengths = [
        bucket_length(len(window.input_ids))
        for document, mask in zip(documents, masks, strict=True)
        for _ in mask
        for window in document.windows
    ]
    started = time.perf_counter()
    for length in sorted(set(lengths)):
        left = lengths.count(length)
        while left > 0:
            rows = min(left, max(1, TOKEN_BUDGET // length))
            ids, mask = pad_rows([np.full(length, 5)] * rows, length, black_box.encoder.pad_id)
            with torch.inference_mode(), black_box.autocast():
                black_box.model(
                    input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
                )
            left -= rows
    return time.perf_counter() - started


def _text(black_box: HuggingFaceBlackBox, tokens: int, seed: int) -> str:
    """Returns a text of plain words, about so many tokens long."""
    rng = np.random.default_rng(seed)
    words: list[str] = []
    while True:
        longer = [*words, str(rng.choice(SENTENCE.split()))]
        if len(black_box.encoder.encode(" ".join(longer)).windows[0].input_ids) > tokens - 1:
            return " ".join(words)
        words = longer


if __name__ == "__main__":
    main()
