"""Cuts long texts into chunks that a teacher can afford to explain."""

from __future__ import annotations

import numpy as np

from models.text import TextEncoder

_SENTENCE_ENDS = frozenset(".!?…。！？")


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
    """
    document = encoder.encode(text)
    single = document.windows[0].input_ids
    room = tokens - int((document.windows[0].word_index < 0).sum())
    if len(document.windows) == 1 and len(single) <= tokens:
        return [text]
    sizes = _pieces_per_word(document.words[-1].end, encoder, text, [w.end for w in document.words])
    chunks, first, filled, last_end = [], 0, 0, -1
    word = 0
    while word < len(document.words):
        if word > first and filled + sizes[word] > room:
            stop = last_end + 1 if last_end >= first and filled > room // 2 else word
            chunks.append((first, stop))
            first = word = stop
            filled, last_end = 0, -1
            continue
        filled += int(sizes[word])
        if document.words[word].text in _SENTENCE_ENDS and filled > room // 2:
            last_end = word
        word += 1
    chunks.append((first, len(document.words)))
    return [text[document.words[a].start : document.words[b - 1].end] for a, b in chunks if b > a]


def _pieces_per_word(
    end: int, encoder: TextEncoder, text: str, ends: list[int]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Counts the tokenizer's pieces of each word, int64 [words]."""
    encoding = encoder.tokenizer.encode(text[:end], add_special_tokens=False)
    starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
    owners = np.minimum(np.searchsorted(ends, starts, side="right"), len(ends) - 1)
    return np.bincount(owners, minlength=len(ends))
