"""From the scores of words to the spans of a rationale, and its escaped HTML view."""

import html
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.text import FloatArray, IntArray

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
_NEUTRAL: Final = 2


class Span(NamedTuple):
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
        return self._asdict()


@dataclass(frozen=True, slots=True, eq=False)
class WordScores:
    """The n words of a text and what each does to the target label, as numbers.

    Attributes:
        text: the text.
        bounds: int64 [n, 2], see `models.text.word_bounds`.
        weights: float64 [n], in log-odds of the target.
        classes: int64 [n], from 0, opposes and high, to 4, supports and high.
    """

    text: str
    bounds: IntArray
    weights: FloatArray
    classes: IntArray

    @classmethod
    def of(
        cls,
        text: str,
        bounds: IntArray,
        weights: npt.NDArray[np.floating],
        label_probs: npt.NDArray[np.floating],
    ) -> "WordScores":
        """Give each word its weight and its most probable class.

        Args:
            text: the text.
            bounds: int64 [n, 2], see `models.text.word_bounds`.
            weights: float [n].
            label_probs: float [n, 5], from high negative to high positive.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if len(weights) != len(bounds) or label_probs.shape != (len(bounds), len(_CLASSES)):
            raise ValueError(
                f"{len(bounds)} words, weights {weights.shape} and label_probs {label_probs.shape}"
                " do not fit together"
            )
        classes = _MILDEST_FIRST[label_probs[:, _MILDEST_FIRST].argmax(axis=1)]
        return cls(text, bounds, weights.astype(np.float64) + 0.0, classes)  # -0.0 becomes 0.0

    @classmethod
    def none(cls, text: str) -> "WordScores":
        """No words: where the text has none, or nobody asked for them."""
        return cls(text, np.zeros((0, 2), np.int64), np.zeros(0), np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.bounds)

    def __eq__(self, other: object) -> bool:
        """Compare texts, bounds, weights and classes, to the last bit."""
        if not isinstance(other, WordScores):
            return NotImplemented
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return self.text == other.text and all(np.array_equal(*pair) for pair in pairs)

    __hash__ = None  # type: ignore[assignment] # holds arrays

    def spans(self) -> tuple[Span, ...]:
        """Return one span for each word."""
        numbers = (array.tolist() for array in self._arrays())
        return tuple(
            [
                Span(start, end, self.text[start:end], weight, *_CLASSES[number])
                for (start, end), weight, number in zip(*numbers, strict=True)
            ]
        )

    def covered(self, spans: Sequence[Span]) -> int:
        """Count the words that start in one of some spans, which do not overlap."""
        starts = self.bounds[:, 0].tolist()
        return sum(
            bisect_left(starts, span.end) - bisect_left(starts, span.start) for span in spans
        )

    def _arrays(self) -> tuple[IntArray, FloatArray, IntArray]:
        return self.bounds, self.weights, self.classes


def rationale_spans(words: WordScores, max_words: int | None = None) -> tuple[Span, ...]:
    """Choose the rationale: runs of adjacent words that matter and agree.

    The `max_words` words of largest absolute weight are kept, the earlier of equals. Among them,
    a maximal run of adjacent words of one effect, supports or opposes, becomes a span if at least
    one of its words is high. Its weight is the sum.

    Args:
        words: all words of the text.
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
    order = np.argsort(-np.abs(words.weights), kind="stable")
    kept = np.sort(order[:max_words])
    kept = kept[words.classes[kept] != _NEUTRAL]
    # As lists: most runs are of a word or two, for which NumPy's calls cost more than they do.
    places = kept.tolist()
    classes, weights = words.classes[kept].tolist(), words.weights[kept].tolist()
    bounds = words.bounds[kept].tolist()
    spans: list[Span] = []
    first = 0  # of the run
    for end in range(1, len(places) + 1):
        if (
            end < len(places)
            and places[end] == places[end - 1] + 1
            and (classes[end] < _NEUTRAL) == (classes[first] < _NEUTRAL)
        ):
            continue
        strongest = (min if classes[first] < _NEUTRAL else max)(classes[first:end])
        effect, strength = _CLASSES[strongest]
        if strength == "high":
            start, stop = bounds[first][0], bounds[end - 1][1]
            weight = sum(weights[first:end])
            spans.append(Span(start, stop, words.text[start:stop], weight, effect, strength))
        first = end
    return tuple(spans)


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


def _escape(text: str) -> str:
    # A browser turns a bare carriage return into a line feed; as a reference it stays.
    return html.escape(text, quote=True).replace("\r", "&#13;")
