"""What a trial of a study is asked, as digests known before it is trained, on any machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from models.bundle import MANIFEST
from training.attribution import store
from training.blackbox.source import BlackBoxSource, identity
from training.config import BlackBox, RecipeError
from training.evaluation.align_plan import VERSION, Texts, Trial, base_of, digest
from training.runtime import write_json

REQUEST: Final = "request.json"  # in the folder of a trial
CONTENT: Final = ("config.json", "tokenizer.json", "*.safetensors", "*.bin")  # of a checkpoint


def request(trial: Trial, trials: Sequence[Trial], texts: Texts) -> str:
    """Returns a digest of all that a trial is asked.

    Results with the same one may stand for each other wherever they were made. (The key of a
    stored result has the digest of the trained weights instead, which no other machine knows.)

    Args:
        trial: what to do.
        trials: all of the study: it may go on from another one's classifier.
        texts: reads them.
    """
    recipe, settings = trial.recipe, trial.settings
    return digest(
        {
            "version": [VERSION, store.VERSION],
            "training": training_request(trial, trials, texts),
            "texts": texts.digest(trial.source, recipe),
            "marked": [texts.digest(each, recipe) for each in trial.training],
            "teachers": dict(settings.teachers),
            "sample": [settings.tokens, settings.limit, trial.source.seed],
            "precision": settings.precision,
        }
    )


def training_request(trial: Trial, trials: Sequence[Trial], texts: Texts) -> str:
    """Returns a digest of what decides a trial's classifier; arguments as of `request`."""
    recipe, base = trial.recipe, base_of(trial, trials)
    settings = decisive(recipe.blackbox)
    settings["checkpoint"] = (
        _content(recipe.blackbox.checkpoint)
        if base is None
        else training_request(base, trials, texts)
    )
    settings["cnn"]["vectors"] = _content(recipe.blackbox.cnn.vectors)
    return digest(
        {
            "blackbox": settings,
            "labels": recipe.data.labels,
            "seed": trial.seed,
            "train": [[texts.digest(each, recipe), each.repeat] for each in recipe.data.train],
            "validation": [texts.digest(each, recipe) for each in recipe.data.validation],
        }
    )


def decisive(settings: BlackBox) -> dict[str, Any]:
    """Returns the settings that decide a classifier.

    One that came later than published results is left out where it is what they had, so that they
    stay known.
    """
    found = asdict(settings)
    del found["fit"]["save_seconds"]
    if settings.rationale.power == 1:
        del found["rationale"]["power"]
    return found


def check_request(trial: Trial, trials: Sequence[Trial], texts: Texts) -> None:
    """Refuses a folder whose classifier was trained on other data, or goes on from another one.

    Raises:
        RecipeError: naming the folder.
    """
    path = trial.run / REQUEST
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != {"training": training_request(trial, trials, texts)}:
        raise RecipeError(
            f"{trial.run} was trained on other data or from another classifier: remove the folder"
        )


def note_request(trial: Trial, trials: Sequence[Trial], texts: Texts) -> None:
    """Writes what a trial is trained on into its folder, for `check_request`."""
    write_json(trial.run / REQUEST, {"training": training_request(trial, trials, texts)})


@cache
def _content(name: str) -> Any:
    """Returns what a checkpoint or a file is known by on any machine: its content, else its name.

    Of a bundle the classifier alone counts.
    """
    path = Path(name)
    if (path / MANIFEST).is_file():
        return identity(BlackBoxSource(name).open())
    files = sorted(file for form in CONTENT for file in path.glob(form)) if path.is_dir() else []
    if path.is_file():
        files = [path]
    return [[file.name, sha256(file.read_bytes()).hexdigest()] for file in files] or name
