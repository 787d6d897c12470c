"""Runs a teacher over many texts, shard by shard, resuming where it was killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.attribution import integrated_gradients, lime, occlusion
from training.attribution.record import Attribution, Teacher, training_targets
from training.attribution.store import ShardStore, from_record, texts_digest, to_record
from training.blackbox.protocol import BlackBox
from training.runtime import progress

TEACHERS: Mapping[str, Teacher] = {
    "integrated_gradients": integrated_gradients.attribute,
    "lime": lime.attribute,
    "occlusion": occlusion.attribute,
}

# The others spend what the text takes and ignore a budget.
BUDGETED = frozenset({"integrated_gradients", "lime"})


def teacher_named(name: str) -> Teacher:
    """Returns a teacher.

    Raises:
        ValueError: naming those that exist.
    """
    if name not in TEACHERS:
        raise ValueError(f"no teacher {name!r}; choose one of {', '.join(TEACHERS)}")
    return TEACHERS[name]


def attribute_texts(
    black_box: BlackBox,
    texts: Mapping[str, str],
    *,
    teacher: str,
    budget: int,
    seed: int,
    folder: Path,
    key: Mapping[str, Any],
    shard: int = 64,
) -> list[Attribution]:
    """Explains every training text; see `training_targets` for the class.

    Args:
        black_box: the classifier.
        texts: id to text.
        teacher: a name in `TEACHERS`.
        budget: evaluations per text.
        seed: of sampling.
        folder: of the store.
        key: identifies the black box; the texts and the teacher's setting are added to it.
        shard: texts per file. Batches are formed inside a shard, so that resumed and
            uninterrupted runs do the same sums.

    Returns:
        One record per text, in the order of `texts`.
    """
    explain = teacher_named(teacher)
    names, bodies = list(texts), list(texts.values())
    setting = {"teacher": teacher, "budget": budget, "seed": seed, "shard": shard}
    store = ShardStore(folder, {**key, **setting, "texts": texts_digest(bodies)})
    shards = -(-len(names) // shard)
    todo = store.missing(shards)
    done = shards - len(todo)
    for number in progress(todo, total=shards, done=done, what=f"{teacher} attributions"):
        part = slice(number * shard, (number + 1) * shard)
        documents = [black_box.encoder.encode(text) for text in bodies[part]]
        targets = training_targets(black_box, documents, seed)
        found = explain(black_box, documents, targets, budget=budget, seed=seed)
        store.write(number, map(to_record, found))
    # The store is keyed by texts; what a text is called is the caller's affair.
    return [
        dataclasses.replace(from_record(record), id=name)
        for name, record in zip(names, store.read(shards), strict=True)
    ]
