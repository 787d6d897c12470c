"""A study of alignment: trains the classifiers of its rows and explains them, seed by seed.

Each row and seed has a folder of its own, where training and attributions resume and the finished
result lies beside what it was made from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from training.attribution import store
from training.attribution.run import check_budgets
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.source import identity
from training.config import AlignmentStudy, RecipeError
from training.data import Example, sample
from training.evaluation.align_plan import VERSION, Texts, Trial, base_of, check_trials, digest
from training.evaluation.align_request import check_request, note_request, request
from training.evaluation.align_result import Results, collect, unfinished
from training.evaluation.alignment import first_chunk, measure_alignment, rationale_share
from training.evaluation.classification import measure_classification
from training.evaluation.machine import machine_digest
from training.guard import LEARNT, guard_recipe, hold
from training.runtime import write_json
from training.stages import load_black_box, train

RESULT = "alignment.json"


def run_study(
    study: AlignmentStudy,
    trials: Sequence[Trial],
    only: Sequence[str] = (),
    known: Results = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs trials and says on standard error how far it is.

    Args:
        study: what is asked.
        trials: of `plan_trials`.
        only: names of the rows to run, of the others only what is finished is used; empty for all.
        known: results of `read_results`, which are used where the folder of runs has none and the
            trial is asked the same.

    Returns:
        The JSON of `l2e align`, see `collect`.

    Raises:
        RecipeError: one line about what cannot be done, before anything is trained.
    """
    for name in only:
        if name not in study.rows:
            raise RecipeError(f"--only {name}: the rows are {', '.join(study.rows)}")
    texts = Texts()
    check_trials(trials, texts)
    for trial in trials:
        check_request(trial, trials, texts)
    chosen = [trial for trial in trials if not only or trial.row in only]
    asked = [request(trial, trials, texts) for trial in trials]
    same = [_same(known, *each) for each in zip(trials, asked, strict=True)]
    results = {}
    for trial, wanted, other in zip(trials, asked, same, strict=True):
        found = finished_trial(trial, texts) or other
        if trial in chosen:
            where = f"{_name(trial)} ({chosen.index(trial) + 1} of {len(chosen)})"
            sys.stderr.write(f"l2e align: {where}: {trial.run if found is None else 'is there'}\n")
            found = found or run_trial(trial, trials, texts)
        if found is not None:
            results[trial.row, trial.seed] = {**found, "asked": wanted}
    for name in study.rows:
        if seeds := unfinished(study, name, results):
            missing = ", ".join(map(str, seeds))
            sys.stderr.write(f"l2e align: not tested: {name}: no result of seed {missing}\n")
    return collect(study, results)


def _same(known: Results, trial: Trial, asked: str) -> Mapping[str, Any] | None:
    """Returns the known result of a trial if it was asked the same."""
    found = known.get((trial.row, trial.seed))
    if found is None or found["asked"] == asked:
        return found
    sys.stderr.write(f"l2e align: {_name(trial)}: the known result is of other settings or data\n")
    return None


def _name(trial: Trial) -> str:
    return f"{trial.row}, seed {trial.seed}"


def run_trial(trial: Trial, trials: Sequence[Trial], texts: Texts) -> dict[str, Any]:
    """Trains a classifier, measures it and explains it; what is finished is not done again.

    Args:
        trial: what to do.
        trials: all of the study; the one that this goes on from is trained first where it is not.
        texts: reads them.

    Returns:
        Plain JSON types: `accuracy` and `measures` (see `measure_classification`) over whole
        texts; `train_seconds`, and of these `feedback_seconds`, and on which `machine`; `metrics`
        and `documents` (see `measure_alignment`, empty without teachers) and `setting`, which says
        what was judged.
    """
    base = base_of(trial, trials)
    if base is not None:
        _train_base(base, trials, texts)
    with hold(trial.run):
        _train(trial, trials, texts)
        task = _Task.of(trial, texts)
        found = task.stored()
        if found is None:
            found = task.compute()
            write_json(trial.run / RESULT, {"key": task.key, "result": found})
    return found


def _train_base(base: Trial, trials: Sequence[Trial], texts: Texts) -> None:
    """Trains what others go on from, unless it is: another process may be explaining it."""
    if (base.run / LEARNT["train"]).exists():
        return
    below = base_of(base, trials)
    if below is not None:
        _train_base(below, trials, texts)
    with hold(base.run):
        _train(base, trials, texts)


def _train(trial: Trial, trials: Sequence[Trial], texts: Texts) -> None:
    guard_recipe(trial.recipe, trial.run)
    note_request(trial, trials, texts)
    train(trial.recipe, trial.run)


def finished_trial(trial: Trial, texts: Texts) -> dict[str, Any] | None:
    """Returns what `run_trial` has stored, or None where it has not finished."""
    if not (trial.run / RESULT).exists():
        return None
    return _Task.of(trial, texts).stored()


@dataclass(frozen=True)
class _Task:
    """A trained classifier and what it is asked; the key is a digest of all that matters."""

    trial: Trial
    texts: Texts
    black_box: HuggingFaceBlackBox
    key: str

    @classmethod
    def of(cls, trial: Trial, texts: Texts) -> _Task:
        settings, recipe = trial.settings, trial.recipe
        black_box = load_black_box(recipe, trial.run)
        black_box.precision = settings.precision
        key = {
            "version": [VERSION, store.VERSION],
            "blackbox": identity(black_box),
            "texts": texts.digest(trial.source, recipe),
            # These give the share of words in the hard prediction.
            "training": [texts.digest(source, recipe) for source in trial.training],
            "teachers": dict(settings.teachers),
            "tokens": settings.tokens,
            "sample": [settings.limit, trial.source.seed],
            "seed": trial.seed,
        }
        return cls(trial, texts, black_box, digest(key))

    def stored(self) -> dict[str, Any] | None:
        try:
            stored = json.loads((self.trial.run / RESULT).read_text(encoding="utf-8"))
            found: dict[str, Any] = stored["result"]
            return found if stored["key"] == self.key else None
        except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: made again
            return None

    def compute(self) -> dict[str, Any]:
        trial, settings = self.trial, self.trial.settings
        examples = self.texts.read(trial.source, trial.recipe)
        measures = self._classify(examples)
        spent = json.loads((trial.run / "blackbox" / "metrics.json").read_text(encoding="utf-8"))
        found = self._explain(examples)
        return {
            "accuracy": measures["accuracy"],
            "measures": measures,
            "train_seconds": float(spent["seconds"]),
            "feedback_seconds": float(spent.get("feedback_seconds", 0.0)),
            "machine": machine_digest(),
            "metrics": found["metrics"],
            "setting": {
                "source": trial.source.path,
                "split": trial.source.split,
                "classified": len(examples),
                "teachers": dict(settings.teachers),
                "tokens": settings.tokens,
                "limit": settings.limit,
                "precision": settings.precision,
                **found["setting"],
            },
            "documents": found["documents"],
        }

    def _classify(self, examples: Sequence[Example]) -> dict[str, Any]:
        black_box = self.black_box
        black_box.precision = "fp32"
        documents = [black_box.encoder.encode(example.text) for example in examples]
        gold = np.array([black_box.labels.index(example.label) for example in examples])
        return measure_classification(black_box.logits(documents), gold, black_box.labels)

    def _explain(self, examples: Sequence[Example]) -> dict[str, Any]:
        trial, black_box = self.trial, self.black_box
        teachers = trial.settings.teachers
        if not teachers:
            return {"metrics": {}, "documents": [], "setting": {"texts": 0}}
        black_box.precision = trial.settings.precision
        judged = _judged(trial, examples, black_box)
        check_budgets(black_box, [example.text for example in judged], teachers)
        sources = trial.training
        marked = [text for source in sources for text in self.texts.read(source, trial.recipe)]
        return measure_alignment(
            black_box,
            judged,
            teachers,
            share=rationale_share(black_box, marked),
            seed=trial.seed,
            work=trial.run / "alignment",
        )


def _judged(
    trial: Trial, examples: Sequence[Example], black_box: HuggingFaceBlackBox
) -> list[Example]:
    """Returns the texts to explain: with a rationale, cut, and of those the sample."""
    settings = trial.settings
    found = [example for example in examples if example.rationale]
    if settings.tokens:
        cut = [first_chunk(example, black_box.encoder, settings.tokens) for example in found]
        found = [example for example in cut if example is not None]
    if not found:
        raise RecipeError(
            f"rows.{trial.row}: no text has a human rationale in its first {settings.tokens} "
            "tokens: give more"
        )
    if settings.limit is None:
        return found
    return sample(found, settings.limit, trial.source.seed)
