"""Occlusion: how much the log-odds fall when one word is masked (Zeiler and Fergus, ECCV 2014)."""

from __future__ import annotations

import numpy as np

from models.text import BoolArray, FloatArray
from training.attribution.perturbation import ENDS, PerturbationTeacher, start_masks


def draw(words: int, copies: int, rng: np.random.Generator) -> BoolArray:
    """Masks each word alone; see `PerturbationTeacher.draw`."""
    masks = start_masks(copies, words)
    masks[np.arange(words) + ENDS, np.arange(words)] = False
    return masks


def estimate(masks: BoolArray, values: FloatArray) -> FloatArray:
    """Returns what each word's absence costs, float64 [words]."""
    falls: FloatArray = values[0] - values[ENDS:]
    return falls


TEACHER = PerturbationTeacher(
    "occlusion",
    count=lambda words, budget: words + ENDS,
    draw=draw,
    estimate=estimate,
    unit=lambda words: 0,
)
