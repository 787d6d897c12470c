"""Human rationales in words: which words people marked, and which of them carry content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from models.text import BoolArray, Document

Span = tuple[int, int]

# scikit-learn's list has no contractions. They are single words here (don't), but come in pieces
# in corpora that were cut before, such as ERASER's (do n't, it 's, ca n't). Both must count alike,
# so the pieces are stop words too, and with them the forms of `do` that the list lacks.
_ENDINGS = ("d", "ll", "m", "re", "s", "ve")
_BEFORE_NOT = (
    *("ai", "are", "ca", "could", "dare", "did", "do", "does", "had", "has", "have", "is"),
    *("might", "must", "need", "ought", "sha", "should", "was", "were", "wo", "would"),
)
STOP_WORDS: frozenset[str] = frozenset(
    {
        *ENGLISH_STOP_WORDS,
        *_ENDINGS,
        *("ai", "ca", "did", "does", "n't", "sha", "wo"),
        *(f"{word}n't" for word in _BEFORE_NOT),
        *(f"{word}'{ending}" for word in ENGLISH_STOP_WORDS for ending in _ENDINGS),
    }
)


def word_ranges(document: Document, spans: Sequence[Span] | None) -> list[Span]:
    """Turns code-point spans into sorted, disjoint, half-open ranges of words.

    Spans that share a word count as one, those that only touch as two. A span over blanks alone is
    none.

    Args:
        document: the text.
        spans: half-open code-point ranges of it, in any order.

    Returns:
        At least one range.

    Raises:
        ValueError: when no span covers a word or a span leaves the text.
    """
    starts, ends = document.bounds.T
    ranges: list[Span] = []
    for start, end in sorted(spans or ()):
        if not 0 <= start < end <= len(document.text):
            raise ValueError(f"a human span leaves its text of {len(document.text)} characters")
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        if ranges and first < ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        elif first < last:
            ranges.append((first, last))
    if not ranges:
        raise ValueError("the document has no human span over a word; leave it out")
    return ranges


def gold_words(document: Document, spans: Sequence[Span] | None) -> BoolArray:
    """Marks the words that overlap a human span.

    Returns:
        bool [words], at least one True; its mean is the document's share of gold words.

    Raises:
        ValueError: when no span covers a word or a span leaves the text.
    """
    gold = np.zeros(len(document.words), dtype=np.bool_)
    for first, end in word_ranges(document, spans):
        gold[first:end] = True
    return gold


def content_words(document: Document, stop_words: frozenset[str] = STOP_WORDS) -> BoolArray:
    """Marks the words with a letter or a digit that are not stop words.

    Args:
        document: with n words.
        stop_words: in lower case and with straight apostrophes, taken as they are; the default is
            scikit-learn's English list with its contractions (don't, it's, I'll).

    Returns:
        bool [n].
    """
    return np.array(
        [
            any(character.isalnum() for character in word.text)
            and word.text.lower().replace("’", "'") not in stop_words
            for word in document.words
        ],
        dtype=np.bool_,
    )
