"""What keeps the folder of a run one run: one recipe, one set of data, one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
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
# What each stage that learns from texts leaves when it is done.
LEARNT = {
    "train": "blackbox/metrics.json",
    "attribute": "attributions/metrics.json",
    "distill": "explainer/metrics.json",
    "export": "bundle/manifest.json",
}
# Names under which files and bundles are written before they get their own; and that of a whole
# bundle while another one takes its place.
HALF_WRITTEN = re.compile(r"\..+\.\d+|.+\.tmp-\d+-[0-9a-f]{8}")
REPLACED = re.compile(r"(.+)\.tmp-\d+-[0-9a-f]{8}-old")


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
            "--runs DIR"
        ) from None
    try:
        _sweep(run)
        yield
    finally:
        lock.release()


def _sweep(run: Path) -> None:
    for home, folders, files in os.walk(run):
        here = Path(home)
        # A run inside of this one, as a study has them, is not ours to clear.
        folders[:] = [name for name in folders if not (here / name / LOCK).exists()]
        for name in folders:
            replaced = REPLACED.fullmatch(name)
            if replaced and not (here / replaced[1]).exists():
                (here / name).rename(here / replaced[1])
            elif replaced or HALF_WRITTEN.fullmatch(name):
                shutil.rmtree(here / name, ignore_errors=True)
        for name in files:
            if HALF_WRITTEN.fullmatch(name):
                (here / name).unlink(missing_ok=True)


def guard_recipe(recipe: Recipe, run: Path) -> None:
    """Writes the recipe into a new run's folder; refuses a folder made by another recipe.

    Evaluation is left out of the comparison: it may be asked anew of a finished run. So is the
    memory to spend: what is kept is what would be computed again.

    Raises:
        RecipeError: naming the folder and what differs.
    """
    path, mine = run / RECIPE, json.loads(json.dumps(recipe.to_dict()))
    if path.exists():
        written = json.loads(path.read_text(encoding="utf-8"))
        if written == mine:
            return
        theirs = with_defaults(written)
        theirs["explainer"]["keep_gb"] = mine["explainer"]["keep_gb"]
        changed = [key for key in mine if key != "evaluation" and mine[key] != theirs.get(key)]
        if changed:
            raise RecipeError(
                f"{run} was made with another recipe ({', '.join(changed)} differ): "
                "remove the folder or choose another with --set name=NAME"
            )
    write_json(path, mine)


def learns(run: Path, verb: str) -> bool:
    """Whether a verb has yet to learn from texts in a run's folder; `run` is all stages."""
    stages = [stage for stage in LEARNT if verb in ("run", stage)]
    return any(not (run / LEARNT[stage]).exists() for stage in stages)


def guard_data(recipe: Recipe, run: Path) -> None:
    """Writes down what a new run learns from; refuses a folder that began with other texts.

    A classifier of yesterday's texts, attributed and distilled on today's, would be nobody's
    result. Where nothing has been learnt there is nothing to refuse, and a folder from before this
    was written down takes what there is now.

    Raises:
        RecipeError: naming the folder and the data.
    """
    path, mine = run / DATA, _digests(recipe)
    if path.exists() and any((run / "blackbox").glob("*")):
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
