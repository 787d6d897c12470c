"""From the scores of words to the spans of a rationale, and its escaped HTML view."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from models.text import Word

Effect = Literal["supports", "opposes", "neutral"]
Strength = Literal["high", "low", "neutral"]
EFFECTS: Final[tuple[Effect, ...]] = ("supports", "opposes", "neutral")
STRENGTHS: Final[tuple[Strength, ...]] = ("high", "low", "neutral")

# The five classes in the order of the graph's `label_probs`.
_CLASSES: Final[tuple[tuple[Effect, Strength], ...]] = (
    ("opposes", "high"),
    ("opposes", "low"),
    ("neutral", "neutral"),
    ("supports", "low"),
    ("supports", "high"),
)
# argmax takes the first of equals, so the milder class comes first: a word without pieces, whose
# probabilities are all 0, is neutral.
_MILDEST_FIRST: Final = np.array([2, 1, 3, 0, 4])


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a text and what it does to the target label.

    Attributes:
        start: first code point.
        end: one past the last code point, so that `text[start:end]` is the span's text.
        text: the span itself.
        weight: in log-odds of the target, positive supports it.
        effect: supports, opposes or neutral.
        strength: high, low or neutral.
    """

    start: int
    end: int
    text: str
    weight: float
    effect: Effect
    strength: Strength

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, a record of the six fields."""
        return {
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "weight": self.weight,
            "effect": self.effect,
            "strength": self.strength,
        }


def word_spans(
    words: Sequence[Word],
    weights: npt.NDArray[np.floating],
    label_probs: npt.NDArray[np.floating],
) -> tuple[Span, ...]:
    """Give each word its weight and its most probable class.

    Args:
        words: n words of a text.
        weights: float [n].
        label_probs: float [n, 5], from high negative to high positive.
    """
    if len(weights) != len(words) or label_probs.shape != (len(words), len(_CLASSES)):
        raise ValueError(
            f"{len(words)} words, weights {weights.shape} and label_probs {label_probs.shape}"
            " do not fit together"
        )
    classes = _MILDEST_FIRST[label_probs[:, _MILDEST_FIRST].argmax(axis=1)]
    values = weights.astype(np.float64) + 0.0  # -0.0 becomes 0.0
    return tuple(
        Span(word.start, word.end, word.text, weight, *_CLASSES[number])
        for word, weight, number in zip(words, values.tolist(), classes.tolist(), strict=True)
    )


def rationale_spans(
    text: str, words: Sequence[Span], max_words: int | None = None
) -> tuple[Span, ...]:
    """Choose the rationale: runs of adjacent words that matter and agree.

    The `max_words` words of largest absolute weight are kept, the earlier of equals. Among them,
    a maximal run of adjacent words of one effect, supports or opposes, becomes a span if at least
    one of its words is high. Its weight is the sum.

    Args:
        text: what the words were cut from.
        words: all words of the text, as `word_spans` gives them.
        max_words: at least 1; None means 30 % of the words, rounded up.

    Returns:
        Spans ordered by start; none where no word is kept and high.

    Raises:
        ValueError: `max_words` is below 1.
    """
    if max_words is None:
        max_words = -(-3 * len(words) // 10)
    elif max_words < 1:
        raise ValueError(f"max_words is {max_words}: give at least 1")
    order = sorted(range(len(words)), key=lambda index: -abs(words[index].weight))
    kept = sorted(index for index in order[:max_words] if words[index].effect != "neutral")
    runs: list[list[int]] = []
    for index in kept:
        if runs and index == runs[-1][-1] + 1 and words[index].effect == words[index - 1].effect:
            runs[-1].append(index)
        else:
            runs.append([index])
    chosen = ([words[index] for index in run] for run in runs)
    return tuple(_join(text, run) for run in chosen if any(word.strength == "high" for word in run))


def to_html(text: str, spans: Sequence[Span]) -> str:
    """Mark spans in an escaped text; without our tags and unescaped it is the text again.

    Args:
        text: the whole text.
        spans: ordered by start and not overlapping, as a rationale or all words.

    Returns:
        HTML for an element's content, such as `A <mark class="supports high" …>great</mark> film`.

    Raises:
        ValueError: the spans overlap or leave the text.
    """
    parts, position = [], 0
    for span in spans:
        if not position <= span.start <= span.end <= len(text):
            raise ValueError(f"span [{span.start}, {span.end}) overlaps another or leaves the text")
        parts.append(_escape(text[position : span.start]))
        classes = " ".join(dict.fromkeys((span.effect, span.strength)))
        parts.append(f'<mark class="{_escape(classes)}" data-weight="{span.weight:.3f}">')
        parts.append(f"{_escape(text[span.start : span.end])}</mark>")
        position = span.end
    return "".join((*parts, _escape(text[position:])))


def _join(text: str, run: Sequence[Span]) -> Span:
    start, end = run[0].start, run[-1].end
    weight = sum(word.weight for word in run)
    return Span(start, end, text[start:end], weight, run[0].effect, "high")


def _escape(text: str) -> str:
    # A browser turns a bare carriage return into a line feed; as a reference it stays.
    return html.escape(text, quote=True).replace("\r", "&#13;")
