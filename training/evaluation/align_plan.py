"""What a study of alignment comes to: its trials, and what they need before the first is begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.text import Document, word_bounds
from training.attribution.teachers import teacher_named
from training.config import AlignmentRow, AlignmentStudy, DataSource, Recipe, RecipeError
from training.data import Example, load
from training.demands import insist_on_rationales
from training.evaluation.shards import texts_digest
from training.guard import examples_digest, guard_recipe
from training.recipe import read_recipe

VERSION = 1  # of the measures and of what a result holds: raise it with every change of these


@dataclass(frozen=True)
class Trial:
    """A row of a study with one of its seeds.

    Attributes:
        row: its name.
        seed: of training, teachers and random words.
        settings: of the row.
        recipe: with the overrides of the row.
        source: of the judged texts.
        training: where the mean share of words that people marked is taken from.
        run: folder of the training and of the result.
    """

    row: str
    seed: int
    settings: AlignmentRow
    recipe: Recipe
    source: DataSource
    training: tuple[DataSource, ...]
    run: Path


class Texts:
    """Reads each source once, however many rows share it."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[list[Example], str]] = {}

    def read(self, source: DataSource, recipe: Recipe) -> list[Example]:
        """Returns the texts of a source, with labels of the recipe; see `training.data.load`."""
        return self._of(source, recipe)[0]

    def digest(self, source: DataSource, recipe: Recipe) -> str:
        """Returns a digest of these texts, their labels and rationales."""
        return self._of(source, recipe)[1]

    def _of(self, source: DataSource, recipe: Recipe) -> tuple[list[Example], str]:
        key = digest([asdict(source), recipe.data.labels, recipe.data.root])
        if key not in self._read:
            found = load(source, recipe.data.labels, recipe.data.root)
            self._read[key] = found, examples_digest(found)
        return self._read[key]


def plan_trials(study: AlignmentStudy, folder: Path, runs: Path) -> list[Trial]:
    """Reads the recipes of all rows.

    Args:
        study: see `training.recipe.read_study`.
        folder: where the paths of its recipes start.
        runs: parent of the study's folder.

    Returns:
        One trial for each row and seed, in the order of the study.

    Raises:
        RecipeError: one line about the first recipe that cannot be used.
    """
    return [
        _plan(study, name, seed, folder, runs / study.name)
        for name in study.rows
        for seed in study.seeds_of(name)
    ]


def base_of(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial of the same study whose classifier this one's training goes on from."""
    checkpoint = Path(trial.recipe.blackbox.checkpoint)
    return next((other for other in trials if other.run / "blackbox" == checkpoint), None)


def check_trials(trials: Sequence[Trial], texts: Texts) -> None:
    """Finds now what a stage of the last row would only find hours from now.

    Raises:
        RecipeError: one line, naming the row: its data cannot be read, hold no human rationales, a
            teacher is unknown or has too small a budget, or its folder was made with another
            recipe.
    """
    sources = {trial.row: trial.source for trial in trials}
    for trial in trials:
        try:
            _check_start(trial, trials)
            for other in trial.settings.against:
                if sources[other] == trial.source:
                    continue
                raise RecipeError(
                    f"against {other}: it is judged on other texts: name the same "
                    "source in both rows"
                )
            _check(trial, texts)
        except ValueError as error:
            raise RecipeError(f"rows.{trial.row}: {error}") from None


def digest(value: Any) -> str:
    """Returns a digest of plain JSON types."""
    return texts_digest([json.dumps(value)])


def _plan(study: AlignmentStudy, name: str, seed: int, folder: Path, home: Path) -> Trial:
    row = study.rows[name]
    run = home / f"{name}-{seed}"
    own = [entry.replace("{seed}", str(seed)).replace("{runs}", str(home)) for entry in row.set]
    # As TOML strings: a folder may be named 1.
    fixed = {"name": run.name, "data.root": study.root}
    quoted = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in fixed.items()]
    recipe = read_recipe(folder / row.recipe, [*own, f"seed={seed}", *quoted])
    # What a classifier without explanations is for, its recipe knows best.
    source = row.source or (study.source if row.teachers else None)
    if source is None:
        sets = [*recipe.evaluation.values()]
        if not sets:
            raise RecipeError(f"rows.{name}: source: {row.recipe} has no evaluation: name one here")
        source = sets[0].source
    training = recipe.data.train if study.training is None else (study.training,)
    return Trial(name, seed, row, recipe, source, training, run)


def _check_start(trial: Trial, trials: Sequence[Trial]) -> None:
    checkpoint = Path(trial.recipe.blackbox.checkpoint)
    if trial.run.parent in checkpoint.parents and base_of(trial, trials) is None:
        raise ValueError(f"set: {checkpoint} is no row and seed of this study's")
    passed, at = {trial.run}, base_of(trial, trials)
    while at is not None:
        if at.run in passed:
            raise ValueError(f"set: {trial.recipe.blackbox.checkpoint} goes on from itself")
        passed.add(at.run)
        at = base_of(at, trials)


def _check(trial: Trial, texts: Texts) -> None:
    if (trial.run / "recipe.json").exists():
        guard_recipe(trial.recipe, trial.run)
    asked, feedback = [*trial.settings.teachers.items()], trial.recipe.blackbox.feedback
    if feedback.every:
        asked.append(("lime", feedback.budget))
    for name, budget in asked:
        teacher_named(name).spent(Document("", word_bounds(""), ()), budget)
    data = trial.recipe.data
    for source in (trial.source, *data.train, *data.validation):
        texts.read(source, trial.recipe)
    read = [text for source in data.train for text in texts.read(source, trial.recipe)]
    insist_on_rationales(trial.recipe.blackbox, read)
    if trial.settings.teachers:
        _check_rationales(trial, texts)
        _check_budgets(trial, texts.read(trial.source, trial.recipe))


def _check_rationales(trial: Trial, texts: Texts) -> None:
    for sources, cure in (
        ((trial.source,), "give data in ERASER format, or leave teachers out"),
        (trial.training, "name data that has, as [training] of the study"),
    ):
        read = [text for source in sources for text in texts.read(source, trial.recipe)]
        if not any(text.rationale for text in read):
            paths = ", ".join(dict.fromkeys(source.path for source in sources))
            raise ValueError(f"no text of {paths} has a human rationale: {cure}")


def _check_budgets(trial: Trial, examples: Sequence[Example]) -> None:
    if trial.settings.tokens:
        return  # how many words a first chunk has, only the trained black box knows
    for example in examples:
        if example.rationale:
            document = Document(example.text, word_bounds(example.text), ())
            for name, budget in trial.settings.teachers.items():
                teacher_named(name).spent(document, budget)
