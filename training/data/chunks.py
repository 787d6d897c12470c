"""Cuts long texts into chunks that a teacher can afford to explain."""

from __future__ import annotations

import numpy as np

from models.text import Document, IntArray, TextEncoder

_SENTENCE_ENDS = frozenset(".!?…。！？")

Stretch = tuple[int, int]  # words [first, stop) of a document


def cut(text: str, encoder: TextEncoder, tokens: int) -> list[str]:
    """Cuts a text into consecutive chunks of at most `tokens` tokens, special tokens included.

    A chunk ends after a sentence where one ends in its second half, else after a word; a word
    longer than a chunk stays whole. A text that fits is returned as it is.

    Args:
        text: not blank.
        encoder: counts the tokens.
        tokens: at least 8.

    Returns:
        Substrings of `text` in order; blanks between chunks belong to none.

    Raises:
        ValueError: when `tokens` is too small, or as `models.text.check_text`.
    """
    if tokens < 8:
        raise ValueError(f"chunks of {tokens} tokens: give at least 8")
    document = encoder.encode(text)
    if len(document.windows) == 1 and len(document.windows[0].input_ids) <= tokens:
        return [text]
    room = tokens - encoder.special_tokens
    planned = _plan(document, _pieces_per_word(document, encoder), room)
    stretches = [part for whole in planned for part in _fitting(document, encoder, whole, room)]
    return [_slice(document, stretch) for stretch in stretches]


def _plan(document: Document, sizes: IntArray, room: int) -> list[Stretch]:
    """Plans chunks of at most `room` pieces from the words' sizes, int64 [words]."""
    stretches: list[Stretch] = []
    first, word, filled, sentence_end = 0, 0, 0, -1
    while word < len(document.words):
        if word > first and filled + sizes[word] > room:
            stop = sentence_end + 1 if sentence_end >= first else word
            stretches.append((first, stop))
            first = word = stop
            filled, sentence_end = 0, -1
            continue
        filled += int(sizes[word])
        if document.words[word].text in _SENTENCE_ENDS and filled > room // 2:
            sentence_end = word
        word += 1
    return [*stretches, (first, len(document.words))]


def _fitting(
    document: Document, encoder: TextEncoder, stretch: Stretch, room: int
) -> list[Stretch]:
    """Halves a stretch until its own text has at most `room` pieces or is one word.

    Words of a script without blanks are cut where the tokenizer sees one run of characters, and
    the two parts of a run can have more pieces than the whole.
    """
    fitting, waiting = [], [stretch]
    while waiting:
        first, stop = waiting.pop()
        pieces = encoder.tokenizer.encode(_slice(document, (first, stop)), add_special_tokens=False)
        if len(pieces) <= room or stop - first == 1:
            fitting.append((first, stop))
        else:
            middle = (first + stop) // 2
            waiting += [(middle, stop), (first, middle)]
    return fitting


def _pieces_per_word(document: Document, encoder: TextEncoder) -> IntArray:
    """Counts the tokenizer's pieces of each word, int64 [words]; a piece in no word goes along."""
    encoding = encoder.tokenizer.encode(document.text, add_special_tokens=False)
    starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
    ends = [word.end for word in document.words]
    owners = np.minimum(np.searchsorted(ends, starts, side="right"), len(ends) - 1)
    return np.bincount(owners, minlength=len(ends))


def _slice(document: Document, stretch: Stretch) -> str:
    first, stop = stretch
    return document.text[document.words[first].start : document.words[stop - 1].end]
