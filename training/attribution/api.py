"""Attributions in one call, without files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.attribution.record import PREDICTED, Attribution
from training.attribution.teachers import default_budget, teacher_named
from training.blackbox.protocol import BlackBox


def attribute(
    black_box: BlackBox,
    texts: Sequence[str],
    *,
    teacher: str = "lime",
    budget: int | None = None,
    seed: int = 0,
    target: str | None = None,
) -> list[Attribution]:
    """Explains texts; for many, `training.attribution.run` works in shards and resumes.

    Args:
        black_box: see `training.blackbox.source.BlackBoxSource` for how to open one.
        texts: not blank.
        teacher: a name, see `teacher_named`.
        budget: black-box evaluations per text, full and null text included; None takes what
            `default_budget` says, as the command line does.
        seed: of sampling; a text's result does not depend on the texts beside it.
        target: the label to explain; None explains the predicted one of each text.

    Returns:
        One record per text, its id the text's place in the list. `weights` belong to the words of
        `black_box.encoder.encode(text)`.

    Raises:
        ValueError: on an unknown teacher or label, a text that `models.text.check_text` refuses,
            a budget that is too small, or a black box that this teacher cannot look into.
    """
    found = teacher_named(teacher)
    budget = default_budget(teacher) if budget is None else budget
    if target is not None and target not in black_box.labels:
        raise ValueError(f"no label {target!r}; the black box knows {', '.join(black_box.labels)}")
    chosen = PREDICTED if target is None else black_box.labels.index(target)
    documents = [black_box.encoder.encode(text) for text in texts]
    targets = np.full(len(texts), chosen, dtype=np.int64)
    records = found.attribute(black_box, documents, targets, budget=budget, seed=seed)
    return [replace(record, id=str(row)) for row, record in enumerate(records)]
