"""Puts a trained pair into a bundle: export, parity checks, temperature, golden answer, card."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import bundle as bundles
from models.answer import document_logits, make_golden
from models.bundle import Bundle
from models.session import OnnxSession
from models.text import FloatArray, IntArray
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.protocol import softmax
from training.config import Recipe
from training.data import Example
from training.evaluation.calibration import calibration_error, fit_temperature
from training.explainer.network import ExplainerNetwork
from training.export.graph import FusedModel, bundle_config, round_weights, to_onnx

PARITY_SHAPES = ((1, 1), (1, 512), (7, 33))
PARITY = 1e-4  # largest difference between the graph and the torch module it was made from
LABEL_AGREEMENT = 0.999  # of the fp16-stored graph with the unrounded classifier
GOLDEN_TEXT = "The plot is thin, but the two leads are wonderful and the ending really moved me."
GOLDEN_TOLERANCE = {"fp32": 2e-3}


class ParityError(RuntimeError):
    """The exported graph does not compute what the torch modules compute."""


@dataclass(frozen=True)
class Exported:
    """A graph that has passed its checks, and what they found.

    Attributes:
        model: the serialised graph.
        session: the graph in ONNX Runtime on the CPU.
        logits: float64 [validation texts, classes], from the graph.
        agreement: share of validation labels that fp16 storage leaves as they were.
        difference: largest absolute difference from the torch modules.
    """

    model: bytes
    session: OnnxSession
    logits: FloatArray
    agreement: float
    difference: float


def assemble(
    black_box: HuggingFaceBlackBox,
    network: ExplainerNetwork,
    validation: Sequence[Example],
    *,
    recipe: Recipe,
    times: Mapping[str, Any],
    versions: Mapping[str, str],
    path: Path,
) -> Bundle:
    """Exports, checks and saves.

    Args:
        black_box: trained; its matrices are rounded to fp16 in place.
        network: trained; likewise.
        validation: for the temperature, the calibration error and the label agreement.
        recipe: goes into the manifest.
        times: seconds of each stage.
        versions: of the libraries.
        path: the bundle's folder.

    Raises:
        ParityError: when graph and modules differ.
    """
    started = time.monotonic()
    encoder = black_box.encoder
    exported = export_checked(black_box, network, [example.text for example in validation])
    gold = np.array([black_box.labels.index(example.label) for example in validation])
    temperature = fit_temperature(exported.logits, gold)
    golden = make_golden(
        exported.session,
        encoder,
        black_box.labels,
        text=GOLDEN_TEXT,
        target=black_box.labels[-1],
        tolerance=GOLDEN_TOLERANCE,
    )
    settings = recipe.attribution
    return bundles.save(
        path,
        model=exported.model,
        tokenizer_json=encoder.to_json(),
        config=bundle_config(black_box, network),
        name=recipe.name,
        labels=black_box.labels,
        max_tokens=encoder.max_tokens,
        overlap=encoder.overlap,
        temperature=temperature,
        mask_token=encoder.mask_token,
        precision="fp32",
        teacher={"name": settings.teacher, "budget": settings.budget, "seed": recipe.seed},
        recipe=_published(recipe),
        card={
            "description": recipe.description,
            "language": recipe.language,
            "licence": recipe.licence,
            "validation": describe_validation(exported.logits, gold, temperature),
            "label_agreement_with_unrounded": exported.agreement,
            "largest_difference_from_torch": exported.difference,
        },
        golden=golden,
        times={**times, "export": time.monotonic() - started},
        versions=versions,
    )


def export_checked(
    black_box: HuggingFaceBlackBox, network: ExplainerNetwork, texts: Sequence[str]
) -> Exported:
    """Exports the pair and compares the graph with torch, before and after rounding to fp16.

    Args:
        black_box: trained; its matrices are rounded to fp16 in place.
        network: trained; likewise.
        texts: on which rounding must leave the labels as they were.

    Raises:
        ParityError: when the graph differs from the rounded modules, or its labels from those of
            the unrounded classifier.
    """
    fused = FusedModel(black_box.model, network)
    model = to_onnx(fused)
    documents = [black_box.encoder.encode(text) for text in texts]
    black_box.precision = "fp32"
    unrounded = black_box.logits(documents)
    round_weights(fused)
    session = OnnxSession(model, device="cpu")
    difference = check_parity(fused, session)
    logits = np.stack(document_logits(session, black_box.encoder, documents, None))
    agreement = float((logits.argmax(1) == unrounded.argmax(1)).mean())
    if agreement < LABEL_AGREEMENT:
        raise ParityError(
            f"fp16 storage changes {(1 - agreement) * len(texts):.0f} of {len(texts)} validation "
            f"labels, more than {1 - LABEL_AGREEMENT:.1%}: add validation texts or train longer"
        )
    return Exported(model, session, logits, agreement, difference)


def check_parity(fused: FusedModel, session: OnnxSession) -> float:
    """Compares graph and module on random ids of several shapes, padding included.

    Returns:
        The largest absolute difference found.

    Raises:
        ParityError: when it exceeds `PARITY`.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = fused.vocabulary
    gaps = []
    for batch, longest in PARITY_SHAPES:
        tokens = min(longest, fused.explainer.config.positions)
        ids = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[batch // 2, tokens - tokens // 3 :] = 0
        target = torch.arange(batch) % 3 - 1
        with torch.inference_mode():
            expected = fused(ids, mask, target)
        found = session.run(ids.numpy(), mask.numpy(), target.numpy(), explain=True)
        results = (found.logits, found.weights, found.label_probs)
        for mine, theirs in zip(results, expected, strict=True):
            gaps.append(np.abs(mine - theirs.numpy()).max())
    worst = float(np.max(gaps))  # of numpy, for which NaN is larger than any number
    if not worst <= PARITY:
        raise ParityError(f"the graph differs from the torch modules by {worst:.2e}")
    return float(f"{worst:.0e}")


def describe_validation(logits: FloatArray, gold: IntArray, temperature: float) -> dict[str, Any]:
    """Returns what the card says of a classifier on validation texts.

    Args:
        logits: float64 [texts, classes].
        gold: int64 [texts], the right classes.
        temperature: of the bundle.
    """
    return {
        "texts": len(gold),
        "accuracy": float((logits.argmax(1) == gold).mean()),
        "temperature": temperature,
        "calibration_error": round(calibration_error(softmax(logits / temperature), gold), 4),
        "calibration_error_before": round(calibration_error(softmax(logits), gold), 4),
    }


def write_card(bundle: Bundle, results: dict[str, Any]) -> Bundle:
    """Saves the bundle again with evaluation results in its card, timings under `times`."""
    manifest = bundle.manifest
    card, times = {}, {}
    for name, result in results.items():
        times[name], card[name] = _split_times(result)
    return bundles.save_changed(
        bundle,
        bundle.path,
        card={**manifest.card, "evaluation": card},
        times={**manifest.times, "evaluation": times},
    )


def _published(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe without folders of this machine."""
    values = recipe.to_dict()
    del values["data"]["root"]
    black_box = values["blackbox"]
    for part, key in ((black_box, "checkpoint"), (black_box["cnn"], "vectors")):
        if Path(part[key]).exists():
            part[key] = Path(part[key]).name
    evaluated = [each["source"] for each in values["evaluation"].values()]
    for source in (*values["data"]["train"], *values["data"]["validation"], *evaluated):
        if Path(source["path"]).is_absolute():
            source["path"] = Path(source["path"]).name
    return values


def _split_times(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates milliseconds, which differ between runs, from everything else."""
    times, rest = {}, {}
    for key, value in result.items():
        if isinstance(value, dict):
            inner_times, rest[key] = _split_times(value)
            if inner_times:
                times[key] = inner_times
        elif key.endswith("ms_per_text"):
            times[key] = value
        else:
            rest[key] = value
    return times, rest
