"""A bundle in another precision: made from an fp32 bundle, measured against it, refused if worse.

    fp32  what a recipe exports: matrices stored in float16, everything computed in float32
    fp16  computed in float16 too, for GPUs; layer norms, softmax and logits in float32
    int8  linear layers in 8-bit integers with scales fixed on training texts, for processors

Both are compared on a processor, as the card says (`compared_on`): a GPU rounds fp16 more often.
Dynamic int8, whose scales follow the batch, is not offered: a text's answer would depend on the
other texts of its batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final, Literal

import numpy as np

from models import bundle as bundles
from models.answer import make_golden
from models.bundle import Bundle
from models.explainer import Explainer
from models.session import OnnxSession
from models.text import TextEncoder
from training.config import DataSource, Recipe
from training.data import Example, load, sample
from training.export.agreement import Comparison, compare
from training.export.half import to_half
from training.export.integer import to_int8
from training.export.release import describe_validation
from training.export.scales import choose_scales
from training.guard import guard_data, hold
from training.recipe import read_recipe

Derived = Literal["fp16", "int8"]
CALIBRATION_TEXTS: Final = 256  # of the training data, for the scales of int8
COMPARED_TEXTS: Final = 400  # of the validation data
# Raise it with every change of how a bundle is derived: one made before is then made anew.
VERSION: Final = {"fp16": 1, "int8": 2}
# Least label agreement and least rationale overlap with the fp32 bundle.
LEAST: Final = {"fp16": (0.995, 0.97), "int8": (0.97, 0.90)}
# By how much a processor may be off the golden answer of the one that exported: in int8 one number
# that rounds to the other side moves all that follow, and in fp16 each product rounds anew.
GOLDEN_TOLERANCE: Final = {"fp16": 0.1, "int8": 0.2}


class PrecisionError(RuntimeError):
    """A bundle in another precision answers too differently."""


def export_as(recipe_path: Path, overrides: Sequence[str], runs: Path, precision: Derived) -> Path:
    """Derives `runs/NAME/bundle-PRECISION` from the bundle of a run that has been exported.

    Returns:
        The folder of the new bundle; one that came from the same bundle is not made again.

    Raises:
        PrecisionError: it answers too differently on the validation texts.
    """
    recipe = read_recipe(recipe_path, overrides)
    run = runs / recipe.name
    with hold(run):
        return derive_run(recipe, run, precision)


def derive_run(
    recipe: Recipe, run: Path, precision: Derived, least: tuple[float, float] | None = None
) -> Path:
    """Does what `export_as` does, in a run that nobody else holds; `least` as of `derive`."""
    path = run / f"bundle-{precision}"
    bundle = bundles.load(run / "bundle")
    if (path / bundles.MANIFEST).exists():
        found = bundles.load(path).manifest.card.get("precision", {})
        made = found.get("derived_from"), found.get("version", 1)
        if made == (bundle.digest, VERSION[precision]):
            compared = Comparison(**{part.name: found[part.name] for part in fields(Comparison)})
            check(compared, precision, least or LEAST[precision])
            return path
    guard_data(recipe, run)
    validation = _draw(recipe, recipe.data.validation, COMPARED_TEXTS)
    derive(
        bundle,
        precision,
        calibration=[each.text for each in _draw(recipe, recipe.data.train, CALIBRATION_TEXTS)],
        validation=[each.text for each in validation],
        gold=[each.label for each in validation],
        path=path,
        least=least,
    )
    return path


def _draw(recipe: Recipe, sources: Sequence[DataSource], limit: int) -> list[Example]:
    """Draws examples, from each source as many."""
    share = -(-limit // len(sources))
    return [
        example
        for source in sources
        for example in sample(load(source, recipe.data.labels, recipe.data.root), share, 0)
    ]


def derive(
    bundle: Bundle,
    precision: Derived,
    *,
    calibration: Sequence[str],
    validation: Sequence[str],
    path: Path,
    gold: Sequence[str] | None = None,
    least: tuple[float, float] | None = None,
) -> Bundle:
    """Rewrites a bundle's graph, compares the answers of both and saves the new bundle.

    Args:
        bundle: in fp32.
        precision: of the new one.
        calibration: texts of the training data; fp16 needs none.
        validation: texts to compare on.
        path: the new bundle's folder.
        gold: the labels of the validation texts, for the accuracy in the card.
        least: label agreement and rationale overlap to insist on; None takes `LEAST`.

    Returns:
        The new bundle; `precision` in its card holds the comparison, see `Comparison`.

    Raises:
        ValueError: `bundle` is not in fp32.
        PrecisionError: labels, rationales or the independence of the batch do not hold.
    """
    started = time.monotonic()
    before = _explainer(bundle, bundle.model_bytes())
    model = lower(bundle, before.encoder, precision, calibration)
    after = _explainer(bundle, model)
    comparison = compare(before, after, validation)
    check(comparison, precision, least or LEAST[precision])
    manifest, golden = bundle.manifest, bundle.manifest.golden
    # What was measured, was in fp32.
    measured = {
        "evaluation",
        "validation",
        "label_agreement_with_unrounded",
        "largest_difference_from_torch",
    }
    card = {name: value for name, value in manifest.card.items() if name not in measured}
    if gold is not None:
        logits = after.logits([after.encode(text) for text in validation])
        classes = np.array([manifest.labels.index(label) for label in gold])
        card["validation"] = describe_validation(logits, classes, manifest.temperature)
    found = {
        "derived_from": bundle.digest,
        "version": VERSION[precision],
        **asdict(comparison),
    }
    if precision == "int8":
        found["calibration_texts"] = len(calibration)
    return bundles.save_changed(
        bundle,
        path,
        model=model,
        precision=precision,
        card={**card, "precision": found},
        golden=make_golden(
            after.session,
            after.encoder,
            manifest.labels,
            text=golden.text,
            target=golden.target,
            tolerance={precision: GOLDEN_TOLERANCE[precision]},
        ),
        times={"export": time.monotonic() - started},
    )


def lower(
    bundle: Bundle, encoder: TextEncoder, precision: Derived, calibration: Sequence[str]
) -> bytes:
    """Returns the graph of an fp32 bundle in another precision.

    Raises:
        ValueError: the bundle is not in fp32.
    """
    found = bundle.manifest.precision
    if found != "fp32":
        raise ValueError(f"{bundle.path}: is in {found}: give the fp32 bundle that it came from")
    model = bundle.model_bytes()
    if precision == "fp16":
        return to_half(model)
    return to_int8(model, choose_scales(model, encoder, calibration))


def check(comparison: Comparison, precision: Derived, least: tuple[float, float]) -> None:
    """Refuses a bundle whose answers are not those of the one it came from.

    Raises:
        PrecisionError: naming what is missed.
    """
    agreement, overlap = least
    limits = {
        "label agreement": (comparison.label_agreement, agreement),
        "rationale F1": (comparison.rationale_f1, overlap),
        "share of answers that do not depend on their batch": (comparison.batch_equal, 1.0),
    }
    missed = [
        f"{name} {found:.3f}, less than {limit:g}"
        for name, (found, limit) in limits.items()
        if not found >= limit  # so that NaN fails
    ]
    if missed:
        raise PrecisionError(
            f"in {precision} this bundle answers too differently ({'; '.join(missed)}, on"
            f" {comparison.texts} validation texts, with {comparison.compared_on}): serve it in"
            " fp32"
        )


def _explainer(bundle: Bundle, model: bytes) -> Explainer:
    return Explainer(bundle, OnnxSession(model, device="cpu"))
