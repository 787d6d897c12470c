"""What keeps the folder of a run one run: one recipe, one set of data, one process at a time."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from training.config import Recipe, RecipeError
from training.data import Example, load
from training.evaluation.shards import texts_digest
from training.recipe import with_defaults
from training.runtime import write_json

LOCK = ".lock"  # its file stays; the lock ends with the process, however that ends
RECIPE, DATA = "recipe.json", "data.json"
# Names under which files and bundles are written before they get their own.
HALF_WRITTEN = re.compile(r"\..+\.\d+|.+\.tmp-\d+-[0-9a-f]{8}")


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder, and clears away what killed ones left half done.

    Two that train in one folder would take turns in overwriting each other's checkpoint.

    Raises:
        RecipeError: another one is there.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RecipeError(
            f"{run}: another process works there: wait for it, or choose another folder with "
            "--set name=NAME"
        ) from None
    try:
        _sweep(run)
        yield
    finally:
        lock.release()


def _sweep(run: Path) -> None:
    for path in [path for path in run.rglob("*") if HALF_WRITTEN.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def guard_recipe(recipe: Recipe, run: Path) -> None:
    """Writes the recipe into a new run's folder; refuses a folder made by another recipe.

    Evaluation is left out of the comparison: it may be asked anew of a finished run. So is the
    memory to spend: what is kept is what would be computed again.

    Raises:
        RecipeError: naming the folder and what differs.
    """
    path, mine = run / RECIPE, json.loads(json.dumps(recipe.to_dict()))
    if path.exists():
        theirs = with_defaults(json.loads(path.read_text(encoding="utf-8")))
        theirs["explainer"]["keep_gb"] = mine["explainer"]["keep_gb"]
        changed = [key for key in mine if key != "evaluation" and mine[key] != theirs.get(key)]
        if changed:
            raise RecipeError(
                f"{run} was made with another recipe ({', '.join(changed)} differ): "
                "remove the folder or choose another with --set name=NAME"
            )
    write_json(path, mine)


def guard_data(recipe: Recipe, run: Path) -> None:
    """Writes down what a new run learns from; refuses a folder that began with other texts.

    A classifier of yesterday's texts, attributed and distilled on today's, would be nobody's
    result. A folder from before this was written down takes what there is now.

    Raises:
        RecipeError: naming the folder and the data.
    """
    path, mine = run / DATA, _digests(recipe)
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [part for part, found in mine.items() if found != theirs.get(part)]
        if changed:
            raise RecipeError(
                f"{run} began with other texts or labels ({', '.join(changed)} changed): put the "
                "data back, remove the folder, or choose another with --set name=NAME"
            )
    write_json(path, mine)


def _digests(recipe: Recipe) -> dict[str, Any]:
    """Digests of the recipe's data, by a name that says where they stand in it."""
    data = recipe.data
    return {
        f"data.{part}[{row}] {source.path}": examples_digest(load(source, data.labels, data.root))
        for part, sources in (("train", data.train), ("validation", data.validation))
        for row, source in enumerate(sources)
    }


def examples_digest(examples: Sequence[Example]) -> str:
    """Returns a digest of texts, their labels and rationales, in their order."""
    fields = [[each.id, each.text, each.label, each.rationale] for each in examples]
    return texts_digest([json.dumps(fields)])
