"""The stages of `l2e run`, each a function of a recipe and the run's folder.

A stage that has finished leaves its result under its final name and is not done again; one that
was killed continues from its own checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from models import bundle as bundles
from models.explainer import Explainer
from training.attribution.record import Attribution, training_targets
from training.attribution.run import attribute_texts
from training.attribution.store import AttributionStore
from training.blackbox.build import new_black_box
from training.blackbox.copies import mark_at_random
from training.blackbox.fit import encode_examples, fit
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.output import has_rationale_layer
from training.blackbox.source import identity
from training.config import NO_COPIES, DataSource, Recipe, RecipeError
from training.data import Example, load
from training.data.chunks import cut
from training.demands import insist_on_rationales
from training.evaluation.evaluate import Setting, evaluate
from training.evaluation.trained import measure_trained
from training.explainer.distill import distill, make_lessons, network_config
from training.explainer.network import ExplainerNetwork, NetworkConfig
from training.export.release import assemble, write_card
from training.feedback import Rounds, insist_on_use
from training.loop import Progress
from training.runtime import write_json

CONTROL = (0, 3)  # keeps the draw of random rationales apart from the others of a seed


def train(recipe: Recipe, run: Path) -> None:
    """Fine-tunes the black box into `run/blackbox`, with its metrics.json; 0 epochs keep it."""
    folder, settings = run / "blackbox", recipe.blackbox
    if (folder / "metrics.json").exists():
        return
    torch.manual_seed(recipe.seed)  # of the new classification head
    examples = [
        example for source in recipe.data.train for example in _read(recipe, source) * source.repeat
    ]
    insist_on_rationales(settings, examples)
    texts = [example.text for example in examples]
    black_box = new_black_box(settings, recipe.classes, texts)
    validation = {
        f"{row}:{source.path}": encode_examples(black_box, _read(recipe, source))
        for row, source in enumerate(recipe.data.validation)
    }
    documents = encode_examples(black_box, examples)
    picks = has_rationale_layer(black_box.model) and settings.rationale.weight > 0
    if settings.rationale.random:
        if not (picks or settings.feedback.every or settings.copies != NO_COPIES):
            raise RecipeError("blackbox: rationale: random: nothing here learns from rationales")
        documents = mark_at_random(documents, np.random.default_rng((recipe.seed, *CONTROL)))
    rounds = None
    if settings.feedback.every:
        insist_on_use(settings.feedback, black_box, picks)
        rounds = Rounds(black_box, documents, settings.feedback, settings.fit, recipe.seed, folder)
    progress = Progress()
    if settings.fit.epochs:
        progress = fit(
            black_box,
            documents,
            validation,
            settings.fit,
            mask_share=settings.mask_share,
            copies=settings.copies,
            feedback=rounds,
            rationale=settings.rationale if picks else None,
            seed=recipe.seed,
            folder=folder,
        )
    black_box.precision = "fp32"
    black_box.save(folder)
    explaining = rounds.seconds() if rounds else 0.0
    _finish(
        folder,
        **measure_trained(black_box, validation, settings.copies.neutral, recipe.seed),
        history=progress.history,
        texts=len(examples),
        seconds=progress.seconds + explaining,  # the loop keeps the time over restarts
        **({"feedback_seconds": explaining} if rounds else {}),
    )


def attribute(recipe: Recipe, run: Path) -> None:
    """Runs the teacher over chunks of the training and validation texts."""
    folder = run / "attributions"
    if (folder / "metrics.json").exists():
        return
    started = time.monotonic()
    black_box = load_black_box(recipe, run)
    network_config(black_box, recipe.explainer, 1.0)  # what it cannot read, it says now
    black_box.precision = recipe.attribution.precision
    counts = {}
    for part in ("train", "validation"):
        texts = chunk_texts(recipe, black_box, part)
        _attributions(recipe, run, black_box, part, texts)
        counts[part] = len(texts)
    _finish(folder, texts=counts, seconds=time.monotonic() - started)


def distill_explainer(recipe: Recipe, run: Path) -> None:
    """Distills the attributions into `run/explainer`."""
    folder = run / "explainer"
    if (folder / "metrics.json").exists():
        return
    black_box = load_black_box(recipe, run)
    black_box.precision = recipe.attribution.precision
    lessons = {}
    for part in ("train", "validation"):
        texts = chunk_texts(recipe, black_box, part)
        found = _attributions(recipe, run, black_box, part, texts)
        lessons[part] = make_lessons(black_box, texts, found)
    network, progress = distill(
        black_box,
        lessons["train"],
        lessons["validation"],
        recipe.explainer,
        seed=recipe.seed,
        folder=folder,
    )
    write_json(folder / "config.json", network.config.to_dict())
    save_file(network.state_dict(), folder / "model.safetensors")
    seconds = progress.seconds
    _finish(folder, history=progress.history, seconds=seconds)


def export(recipe: Recipe, run: Path) -> None:
    """Writes the bundle `run/bundle`, after checking that the graph equals the torch modules."""
    folder = run / "bundle"
    if (folder / bundles.MANIFEST).exists():
        return
    black_box, network = load_black_box(recipe, run), load_network(run)
    validation = [example for source in recipe.data.validation for example in _read(recipe, source)]
    assemble(
        black_box,
        network,
        validation,
        recipe=recipe,
        times={name: _seconds(run / name) for name in ("blackbox", "attributions", "explainer")},
        versions=_versions(),
        path=folder,
    )


def evaluate_bundle(recipe: Recipe, run: Path) -> None:
    """Evaluates the bundle on each set of the recipe and writes the numbers into its card."""
    explainer = Explainer.load(run / "bundle")
    results: dict[str, Any] = {}
    for name, chosen in recipe.evaluation.items():
        setting = Setting(chosen.teachers, chosen.limit, recipe.seed, chosen.precision)
        examples = _read(recipe, chosen.source)
        results[name] = evaluate(explainer, examples, setting, run / "evaluation")
        write_json(run / "evaluation" / f"{name}.json", results[name])
    write_card(explainer.bundle, results)


STAGES = {
    "train": train,
    "attribute": attribute,
    "distill": distill_explainer,
    "export": export,
    "evaluate": evaluate_bundle,
}


def load_black_box(recipe: Recipe, run: Path) -> HuggingFaceBlackBox:
    """Loads the trained black box of a run.

    Raises:
        RecipeError: when the stage `train` has not finished.
    """
    folder = run / "blackbox"
    if not (folder / "metrics.json").exists():
        raise RecipeError(f"{folder} holds no trained black box: run the stage train first")
    return HuggingFaceBlackBox.from_checkpoint(
        str(folder),
        recipe.classes,
        max_tokens=recipe.blackbox.max_tokens,
        overlap=recipe.blackbox.overlap,
    )


def load_network(run: Path) -> ExplainerNetwork:
    """Loads the distilled explainer of a run.

    Raises:
        RecipeError: when the stage `distill` has not finished.
    """
    folder = run / "explainer"
    if not (folder / "metrics.json").exists():
        raise RecipeError(f"{folder} holds no explainer: run the stage distill first")
    config = NetworkConfig.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
    network = ExplainerNetwork(config)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


def chunk_texts(recipe: Recipe, black_box: HuggingFaceBlackBox, part: str) -> dict[str, str]:
    """Returns the chunks that the teacher explains, id to text; each fits into one window.

    A word that fits into none, such as a long run of base64, is left out.

    Args:
        recipe: names the sources, the chunk lengths and how many chunks of each source.
        black_box: its encoder counts the tokens.
        part: `train` or `validation`.
    """
    sources: Sequence[DataSource] = getattr(recipe.data, part)
    lengths = recipe.attribution.chunk_tokens
    encoder = black_box.encoder
    texts: dict[str, str] = {}
    for number, source in enumerate(sources):
        chunks = [
            (f"{number}:{source.path}:{example.id}:{place}", chunk)
            for row, example in enumerate(_read(recipe, source))
            for place, chunk in enumerate(
                cut(example.text, encoder, min(lengths[row % len(lengths)], encoder.max_tokens))
            )
        ]
        if source.explained is not None and source.explained < len(chunks):
            rng = np.random.default_rng(recipe.seed)
            rows = np.sort(rng.choice(len(chunks), source.explained, replace=False))
            chunks = [chunks[row] for row in rows]
        texts.update(
            (name, chunk) for name, chunk in chunks if len(encoder.encode(chunk).windows) == 1
        )
    return texts


def _attributions(
    recipe: Recipe, run: Path, black_box: HuggingFaceBlackBox, part: str, texts: dict[str, str]
) -> list[Attribution]:
    settings = recipe.attribution
    documents = [black_box.encoder.encode(text) for text in texts.values()]
    targets = training_targets(black_box, documents, recipe.seed).tolist()
    return attribute_texts(
        black_box,
        texts,
        teacher=settings.teacher,
        budget=settings.budget,
        seed=recipe.seed,
        store=AttributionStore(run / "attributions" / part, identity(black_box)),
        targets=dict(zip(texts, targets, strict=True)),
        shard=settings.shard,
    )


def _read(recipe: Recipe, source: DataSource) -> list[Example]:
    return load(source, recipe.data.labels, recipe.data.root)


def _finish(folder: Path, **metrics: Any) -> None:
    """Marks a stage as done; only then may its checkpoint go."""
    write_json(folder / "metrics.json", metrics)
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def _seconds(folder: Path) -> float:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["seconds"])


def _versions() -> dict[str, str]:
    names = ("l2e", "torch", "transformers", "lime", "captum", "onnx", "onnxruntime")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # onnxruntime-gpu in place of onnxruntime, or a checkout on the path
    return found
