"""Texts of our own words, as long as a measurement wants them; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.explainer import Explainer

SOURCE = "words of our own sentences, drawn with the seed"
SENTENCE = (
    "the story drags in places yet every scene with her is charming and i would gladly see it "
    "again while the music was dull and far too loud but nobody left before the end"
)


def texts_of(explainer: Explainer, tokens: int, count: int, seed: int) -> list[str]:
    """Returns different texts, each of as many words as fit into so many tokens."""
    rng, words = np.random.default_rng([seed, tokens]), SENTENCE.split()
    return [_fitting(explainer, rng.choice(words, tokens).tolist(), tokens) for _ in range(count)]


def _fitting(explainer: Explainer, words: Sequence[str], tokens: int) -> str:
    """Returns as many of the first words as fit, at least one."""
    low, high = 1, len(words)  # the number lies in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        windows = explainer.encode(" ".join(words[:middle])).windows
        if sum(len(window.input_ids) for window in windows) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
