"""Text to words with exact offsets, words to token ids, long documents to windows.

Everything outside a network speaks in words of the original text; this module is the only place
that knows how words and word pieces correspond. It is shared by training and serving, so that a
text is cut and encoded in one way everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Tokenizer

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_QUICK_CHARS = 1_000  # of a text that is tokenised in a few tenths of a millisecond

# Han, Hiragana, Katakana and Thai are written without blanks: each character counts as one word
# (with the marks that belong to it) until better segmentation exists.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"
_INNER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]"
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*"  # one character of an unspaced script
    rf"|{_INNER}+(?:['’-]{_INNER}+)*"  # letters, marks, digits; ' ’ - only inside
    # Every other character by itself that `str.isspace` does not call blank, as in `check_text`;
    # the information separators are blank there and not in \s.
    r"|[^\s\x1c-\x1f]",
    flags=regex.V1,
)
# The same for ASCII alone, in a third of the time.
_ASCII_WORD = re.compile(
    r"[a-z0-9]+(?:['-][a-z0-9]+)*|[^\s\x1c-\x1f]", flags=re.ASCII | re.IGNORECASE
)


class Word(NamedTuple):
    """A word of a text: `text == document[start:end]`, half-open, in Unicode code points."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A stretch of a document that fits the model's context.

    Attributes:
        input_ids: int64 [tokens], with the tokenizer's special tokens at both ends.
        word_index: int64 [tokens], the document's word that a piece belongs to; -1 for special
            tokens and for pieces that lie in no word.
    """

    input_ids: IntArray
    word_index: IntArray


@dataclass(frozen=True, eq=False)
class Document:
    """A text, its words and its windows (at least one).

    Attributes:
        text: the text itself.
        bounds: int64 [words, 2], the first code point of each word and the one after its last.
        windows: what the model reads.
    """

    text: str
    bounds: IntArray
    windows: tuple[Window, ...]

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words, made when they are asked for: answering a text takes no more than bounds."""
        return tuple(_name_words(self.text, self.bounds))


def check_text(text: str) -> None:
    """Refuses what cannot be explained.

    Raises:
        ValueError: when the text is empty or blank, or holds a lone surrogate (such a string has
            no UTF-8 form, so no tokenizer can read it). The message does not repeat the text.
    """
    if not text or text.isspace():
        raise ValueError("text is empty or blank: send at least one non-blank character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate at character {error.start}: send valid Unicode"
        ) from None


def split_words(text: str) -> list[Word]:
    """Splits a text into words with offsets.

    A word is a maximal run of letters, marks and digits with word-internal `'`, `’` or `-`
    (don't, re-imagining); every other non-blank character is a word of its own; each Han,
    Hiragana, Katakana or Thai character is one word. Blank is what `str.isspace` says.
    """
    return _name_words(text, word_bounds(text))


def word_bounds(text: str) -> IntArray:
    """Where the words of `split_words` start and end: int64 [words, 2], half-open."""
    pattern = _ASCII_WORD if text.isascii() else _WORD
    spans = [match.span() for match in pattern.finditer(text)]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


class TextEncoder:
    """Turns texts into `Document`s for one tokenizer and one context length.

    Args:
        tokenizer: with a mask token and a post-processor that adds the special tokens. Its
            truncation and padding are switched off: nothing is cut in silence.
        max_tokens: longest window in tokens, special tokens included; at least 8.
        overlap: tokens shared by neighbouring windows at the least; 0 <= overlap < half a window.

    Attributes:
        mask_token: the text of the mask token, `mask_id` its id.
        pad_id: id of the padding token.
        special_tokens: how many special tokens each window carries.

    Raises:
        ValueError: when a number is out of range, or the tokenizer has no mask or padding token.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int = 512, overlap: int = 32) -> None:
        if max_tokens < 8 or not 0 <= overlap < max_tokens // 2:
            raise ValueError(f"max_tokens {max_tokens} and overlap {overlap} do not fit together")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.overlap = overlap
        self.mask_token, self.mask_id = _special(tokenizer, "[MASK]", "<mask>")
        _, self.pad_id = _special(tokenizer, "[PAD]", "<pad>")
        self._prefix, self._suffix = _special_ends(tokenizer)
        self.special_tokens = len(self._prefix) + len(self._suffix)

    @classmethod
    def from_json(cls, tokenizer_json: str, *, max_tokens: int, overlap: int) -> TextEncoder:
        """Builds the encoder from the text of a `tokenizer.json`."""
        return cls(Tokenizer.from_str(tokenizer_json), max_tokens=max_tokens, overlap=overlap)

    def to_json(self) -> str:
        """Returns the `tokenizer.json` text, free of truncation and padding."""
        return str(self.tokenizer.to_str())

    def encode(self, text: str) -> Document:
        """Splits and encodes one text.

        The whole text is encoded at once, exactly as the classifier's own tokenizer would, and
        each piece is given to the word that holds its first non-blank character.

        Raises:
            ValueError: see `check_text`.
        """
        check_text(text)
        bounds = word_bounds(text)
        if len(text) < _QUICK_CHARS:
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
        else:  # does the same, and lets other threads run meanwhile: seconds, for a book
            (encoding,) = self.tokenizer.encode_batch([text], add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        pieces = _piece_words(bounds, offsets)
        return Document(text, bounds, tuple(self._windows(ids, pieces)))

    def masked_ids(self, window: Window, keep: BoolArray) -> IntArray:
        """Returns the window's ids with every piece of a dropped word replaced by the mask token.

        Args:
            window: a window of the document.
            keep: bool [words of the document], False drops the word.

        Returns:
            int64 [tokens].
        """
        kept = keep[window.word_index] | (window.word_index < 0)
        return np.where(kept, window.input_ids, self.mask_id)

    def _windows(self, ids: IntArray, pieces: IntArray) -> list[Window]:
        """Cuts pieces into windows of equal length that overlap by at least `self.overlap`."""
        body = self.max_tokens - self.special_tokens
        starts = np.zeros(1, dtype=np.int64)
        if len(ids) > body:
            count = -(-(len(ids) - self.overlap) // (body - self.overlap))
            starts = np.linspace(0, len(ids) - body, count).astype(np.int64)
        outside = np.array([-1], dtype=np.int64)
        return [
            Window(
                np.concatenate([self._prefix, ids[start : start + body], self._suffix]),
                np.concatenate(
                    [
                        outside.repeat(len(self._prefix)),
                        pieces[start : start + body],
                        outside.repeat(len(self._suffix)),
                    ]
                ),
            )
            for start in starts
        ]


def bucket_length(tokens: int) -> int:
    """Returns the padded length of a row: multiples of 8 to 64, of 16 to 128, then of 32.

    Reduced precision gives equal answers across batch sizes at one padded length but not across
    lengths, so a row is always padded to its own bucket, alone or in company.
    """
    step = 8 if tokens <= 64 else 16 if tokens <= 128 else 32
    return -(-tokens // step) * step


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups rows into batches of one bucket each.

    Args:
        lengths: tokens of each row.
        token_budget: most padded tokens in a batch; a longer row forms a batch of its own.

    Returns:
        Lists of row indices, each row in exactly one; shorter buckets first, input order inside.
    """
    buckets: dict[int, list[int]] = {}
    for row, tokens in enumerate(lengths):
        buckets.setdefault(bucket_length(tokens), []).append(row)
    batches = []
    for length in sorted(buckets):
        rows, size = buckets[length], max(1, token_budget // length)
        batches += [rows[first : first + size] for first in range(0, len(rows), size)]
    return batches


def pad_rows(rows: Sequence[IntArray], length: int, pad_id: int) -> tuple[IntArray, IntArray]:
    """Pads rows of ids at the right.

    Returns:
        input_ids and attention_mask, int64 [rows, length].
    """
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return ids, mask


def merge_pieces(document: Document, values: Sequence[npt.NDArray[np.floating]]) -> FloatArray:
    """Turns piece weights of all windows into word weights of the document.

    A word's weight in a window is the mean over its pieces there. The document's logits are the
    mean over windows, so additive contributions add up: the weight in the document is the sum
    over windows divided by their number. A word without pieces weighs 0.

    Args:
        document: with W windows.
        values: W arrays [tokens], aligned with the windows (padding may follow).

    Returns:
        float64 [words].
    """
    total, _ = _window_means(document, [of_pieces[:, np.newaxis] for of_pieces in values])
    return np.asarray(total[:, 0] / len(document.windows))


def merge_outputs(
    document: Document,
    weights: Sequence[npt.NDArray[np.floating]],
    label_probs: Sequence[npt.NDArray[np.floating]],
) -> tuple[FloatArray, FloatArray]:
    """Turns all that a model says of pieces into what it says of words.

    Weights become those of `merge_pieces`. Probabilities are no contributions: theirs is the plain
    mean over the windows that hold the word, zeros for a word without pieces.

    Args:
        document: with W windows.
        weights: W arrays [tokens], aligned with the windows (padding may follow).
        label_probs: W arrays [tokens, classes], likewise.

    Returns:
        Weights float64 [words] and probabilities float64 [words, classes].
    """
    pairs = zip(weights, label_probs, strict=True)
    both = [np.concatenate((one[:, np.newaxis], other), axis=1) for one, other in pairs]
    total, holders = _window_means(document, both)
    if len(document.windows) == 1:  # the same numbers, for most texts in four calls less
        return total[:, 0], total[:, 1:]
    means = total[:, 1:] / np.maximum(holders, 1)[:, np.newaxis]
    return total[:, 0] / len(document.windows), means


def _window_means(
    document: Document, values: Sequence[npt.NDArray[np.floating]]
) -> tuple[FloatArray, IntArray]:
    """Sums per-window piece means over windows; counts the windows that hold each word.

    Args:
        document: whose windows name their words in the order of the text.
        values: arrays [tokens, channels], aligned with the windows.

    Returns:
        Sums float64 [words, channels] and counts int64 [words].
    """
    total = np.zeros((len(document.bounds), values[0].shape[1]))
    holders = np.zeros(len(document.bounds), dtype=np.int64)
    for window, of_pieces in zip(document.windows, values, strict=True):
        inside = (window.word_index >= 0).nonzero()[0]
        if not len(inside):
            continue
        words = window.word_index[inside]
        edge = np.ones(len(words) + 1, dtype=bool)  # before the first piece of a word, and the end
        np.not_equal(words[1:], words[:-1], out=edge[1:-1])
        edges = edge.nonzero()[0]
        starts = edges[:-1]
        held = words[starts]
        sums = np.add.reduceat(of_pieces[inside], starts, axis=0, dtype=np.float64)
        total[held] += sums / (edges[1:] - starts)[:, np.newaxis]
        holders[held] += 1
    return total, holders


def _name_words(text: str, bounds: IntArray) -> list[Word]:
    return [Word(start, end, text[start:end]) for start, end in bounds.tolist()]


def _piece_words(bounds: IntArray, offsets: IntArray) -> IntArray:
    """Maps pieces [start, end) to words by overlap; -1 where a piece overlaps none."""
    if not len(bounds) or not len(offsets):
        return np.full(len(offsets), -1, dtype=np.int64)
    starts, ends = bounds.T
    first = np.searchsorted(ends, offsets[:, 0], side="right")  # first word ending after the start
    candidate = np.minimum(first, len(bounds) - 1)
    hit = (first < len(bounds)) & (starts[candidate] < offsets[:, 1])
    return np.where(hit, candidate, -1)


def _special(tokenizer: Tokenizer, *names: str) -> tuple[str, int]:
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return name, found
    raise ValueError(f"the tokenizer has none of the tokens {', '.join(names)}")


def _special_ends(tokenizer: Tokenizer) -> tuple[IntArray, IntArray]:
    """Finds the special tokens that the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    special = np.asarray(encoding.special_tokens_mask, dtype=bool)
    ids = np.asarray(encoding.ids, dtype=np.int64)
    inner = np.flatnonzero(~special)
    first, last = (inner[0], inner[-1]) if len(inner) else (len(ids), len(ids) - 1)
    return ids[:first], ids[last + 1 :]
