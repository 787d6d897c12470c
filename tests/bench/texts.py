"""Texts of our own words, of lengths as they come in practice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.explainer import Explainer
from training.evaluation.texts import SENTENCE

WORDS = (8, 510)  # of the mixed texts; a word of these is about a token
MEAN = 140
SHORT = " ".join(SENTENCE.split()[:22])  # about 24 tokens


def mixed_texts(count: int, seed: int) -> list[str]:
    """Texts of many lengths: log-normal, cut to `WORDS`, about `MEAN` words."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(MEAN) - 0.3, 0.8, count), *WORDS).astype(int)
    return [random_text(rng, length) for length in lengths]


def random_text(rng: np.random.Generator, words: int) -> str:
    """A text of so many words."""
    return " ".join(rng.choice(SENTENCE.split(), words))


def mean_tokens(explainer: Explainer, texts: Sequence[str]) -> float:
    """Tokens of a text in all its windows, special ones included."""
    rows = [window for text in texts for window in explainer.encode(text).windows]
    return sum(len(row.input_ids) for row in rows) / len(texts)
