"""Words, pieces and windows, on any Unicode."""

import json
import threading
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from models.text import (
    Document,
    TextEncoder,
    Window,
    bucket_length,
    check_text,
    merge_outputs,
    merge_pieces,
    pad_rows,
    plan_batches,
    split_words,
    word_bounds,
)

# Any code point but surrogates, and often those that a split or a tokenizer trips over.
TRICKY = (
    "aéZ9 \t\n\r'’-_.,!?[]#<&\x00\x1b\x1c\x85\xa0\xad\u0301\u0327\u064b\u200b\u200d\u2028\u3000"
    "\ufe0f\ufeff\U0001f600\U0001f468漢字ひらカターกำไทยحبאбßﬀİͅ\U000e0041\U0010ffff"
)
CHARACTERS = st.one_of(st.sampled_from(TRICKY), st.characters(exclude_categories=["Cs"]))
TEXTS = st.text(CHARACTERS, max_size=60)
EXPLAINABLE = TEXTS.filter(lambda text: bool(text) and not text.isspace())
PHRASES = st.lists(
    st.sampled_from(["great", "film", "zyxomma", "don't", ".", "漢", "\x00", "re-imagining", "a"]),
    min_size=1,
    max_size=60,
).map(" ".join)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer_json):
    """Windows of 16 tokens, 14 of them pieces, that overlap by 4."""
    return TextEncoder.from_json(tiny_tokenizer_json, max_tokens=16, overlap=4)


@pytest.fixture(scope="module")
def wide(tiny_tokenizer_json):
    """Windows that hold any text of these tests but the longest."""
    return TextEncoder.from_json(tiny_tokenizer_json, max_tokens=512, overlap=32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A great film, but dull.", ["A", "great", "film", ",", "but", "dull", "."]),
        ("I don't re-imagine it", ["I", "don't", "re-imagine", "it"]),
        ("it’s a well-made 3-D film", ["it’s", "a", "well-made", "3-D", "film"]),
        ("'quoted' -- 'tis", ["'", "quoted", "'", "-", "-", "'", "tis"]),
        ("rock-'n'-roll", ["rock", "-", "'", "n", "'", "-", "roll"]),
        ("wow!!! (10/10)", ["wow", "!", "!", "!", "(", "10", "/", "10", ")"]),
        ("cafe\u0301 na\u0308ive", ["cafe\u0301", "na\u0308ive"]),
        ("good\U0001f600\U0001f600bad", ["good", "\U0001f600", "\U0001f600", "bad"]),
        ("漢字とカナ", ["漢", "字", "と", "カ", "ナ"]),
        ("abc漢def", ["abc", "漢", "def"]),
        ("漢-字", ["漢", "-", "字"]),
        ("ที่ดี", ["ที่", "ดี"]),
        ("が\u3099", ["が\u3099"]),
        ("snake_case", ["snake", "_", "case"]),
        ("a\x00b", ["a", "\x00", "b"]),
        ("a\u200bb", ["a", "\u200b", "b"]),
        ("a\x1cb\x85c\xa0d\u2028e\u3000f", ["a", "b", "c", "d", "e", "f"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert [word.text for word in split_words(text)] == words


@settings(max_examples=400)
@given(TEXTS)
def test_words_cover_every_character_that_is_not_blank_once_and_in_order(text):
    words = split_words(text)
    assert all(text[word.start : word.end] == word.text != "" for word in words)
    covered = [place for word in words for place in range(word.start, word.end)]
    assert covered == [place for place, letter in enumerate(text) if not letter.isspace()]


@settings(max_examples=400)
@given(st.text(st.characters(max_codepoint=127)))
@example("don't 're-do - it' a--b 'c' \x1c\x1f\x7f_A1")
def test_words_of_ascii_are_those_of_any_text(text):
    """The quicker expression for ASCII finds what the other one does."""
    both = split_words(f"{text} \u4e00")
    assert both.pop().text == "\u4e00"
    assert split_words(text) == both


@settings(max_examples=400)
@given(TEXTS)
def test_letters_marks_and_digits_are_only_parted_by_other_characters(text):
    for left, right in zip(split_words(text), split_words(text)[1:], strict=False):
        if left.end == right.start and not regex.search(
            r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]", text[left.start : right.end]
        ):
            edges = (text[left.end - 1], text[right.start])
            assert not all(unicodedata.category(edge)[0] in "LMN" for edge in edges)


@pytest.mark.parametrize(
    ("unit", "words"), [("a", 1), ("e\u0301", 1), ("a-", 2), ("a'", 2), ("\x00", 1_000_000)]
)
def test_a_megabyte_is_encoded_in_seconds(wide, unit, words):
    started = time.monotonic()
    text = unit * (1_000_000 // len(unit))
    document = wide.encode(text)
    assert len(document.words) == words
    assert document.words[-1].end == len(text)
    assert time.monotonic() - started < 30  # on a slow and busy machine


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\x1c\x1f\x85\xa0\u2028\u3000"])
def test_blank_text_is_refused(encoder, text):
    for refuse in (check_text, encoder.encode):
        with pytest.raises(ValueError, match="empty or blank"):
            refuse(text)


@pytest.mark.parametrize("text", ["fine \ud800", "\udfff", "\ud83d and \ude00"])
def test_a_lone_surrogate_is_refused_by_its_place_and_without_the_text(encoder, text):
    place = next(place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    with pytest.raises(ValueError, match=f"lone surrogate at character {place}:") as caught:
        encoder.encode(text)
    message = str(caught.value)
    assert "fine" not in message
    assert message.encode("utf-8")  # it can be printed anywhere
    assert "\n" not in message


@settings(max_examples=200)
@given(EXPLAINABLE)
@example("\u200b")
@example("\x00")
@example("[MASK] [SEP] [PAD]")
def test_a_piece_belongs_to_the_first_word_that_it_overlaps(tiny_tokenizer_json, wide, text):
    document = wide.encode(text)
    assert document.text == text
    assert list(document.words) == split_words(text)
    encoding = Tokenizer.from_str(tiny_tokenizer_json).encode(text, add_special_tokens=False)
    owners = [
        next(
            (
                place
                for place, word in enumerate(document.words)
                if word.start < end and start < word.end
            ),
            -1,
        )
        for start, end in encoding.offsets
    ]
    [window] = document.windows
    assert window.input_ids[1:-1].tolist() == encoding.ids
    assert window.word_index.tolist() == [-1, *owners, -1]


def numbered_encoder(max_tokens: int, overlap: int) -> TextEncoder:
    """An encoder for which the word `7` is the piece of id 7, so that pieces tell their place."""
    vocabulary = {str(number): number for number in range(3000)}
    vocabulary |= {"[PAD]": 3000, "[UNK]": 3001, "[CLS]": 3002, "[SEP]": 3003, "[MASK]": 3004}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    record = json.loads(tokenizer.to_str())
    record["pre_tokenizer"] = {"type": "Whitespace"}
    record["post_processor"] = {
        "type": "BertProcessing",
        "sep": ["[SEP]", 3003],
        "cls": ["[CLS]", 3002],
    }
    return TextEncoder.from_json(json.dumps(record), max_tokens=max_tokens, overlap=overlap)


@settings(max_examples=150)
@given(st.data())
def test_windows_cover_all_pieces_and_overlap_at_least_as_asked(data):
    max_tokens = data.draw(st.integers(8, 60))
    overlap = data.draw(st.integers(0, max_tokens // 2 - 1))
    count = data.draw(st.integers(1, 700))
    encoder = numbered_encoder(max_tokens, overlap)
    document = encoder.encode(" ".join(map(str, range(count))))
    body = max_tokens - encoder.special_tokens
    parts = [window.input_ids[1:-1] for window in document.windows]
    assert {len(part) for part in parts} == {min(count, body)}
    starts = [int(part[0]) for part in parts]
    assert starts[0] == 0
    assert parts[-1][-1] == count - 1
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= body - overlap).all()
    fewest = 1 if count <= body else -(-(count - overlap) // (body - overlap))
    assert len(parts) == fewest
    for part, window in zip(parts, document.windows, strict=True):
        np.testing.assert_array_equal(part, np.arange(part[0], part[0] + len(part)))
        np.testing.assert_array_equal(window.word_index, [-1, *part, -1])
        assert (window.input_ids[0], window.input_ids[-1]) == (3002, 3003)


def test_windows_overlap_in_a_very_long_document():
    encoder = numbered_encoder(256, 32)
    windows = encoder.encode(" ".join(str(n % 3000) for n in range(200_003))).windows
    starts = np.array([window.word_index[1] for window in windows])
    assert np.diff(starts).max() <= 254 - 32
    assert windows[-1].word_index[-2] == 200_002


@given(PHRASES, st.data())
def test_all_pieces_of_a_dropped_word_become_the_mask_and_nothing_else_changes(encoder, text, data):
    document = encoder.encode(text)
    count = len(document.words)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    for window in document.windows:
        before = window.input_ids.copy()
        masked = encoder.masked_ids(window, keep)
        assert masked.dtype == np.int64
        for place, word in enumerate(window.word_index):
            dropped = word >= 0 and not keep[word]
            assert masked[place] == (encoder.mask_id if dropped else before[place])
        np.testing.assert_array_equal(window.input_ids, before)


def window_of(*word_index: int) -> Window:
    index = np.array(word_index, dtype=np.int64)
    return Window(np.zeros(len(index), dtype=np.int64), index)


def document_of(words: int, *windows: Window) -> Document:
    return Document("x " * words, word_bounds("x " * words), windows)


def test_piece_weights_are_averaged_in_a_word_and_summed_over_windows():
    # Word 1 has two pieces in each window, word 2 one in the second, word 3 none at all.
    document = document_of(4, window_of(-1, 0, 1, 1, -1), window_of(-1, 1, 1, 2, -1))
    values = [np.array([9.0, 4.0, 1.0, 3.0, 9.0]), np.array([9.0, 5.0, 7.0, 8.0, 9.0])]
    assert merge_pieces(document, values).tolist() == [2.0, (2.0 + 6.0) / 2, 4.0, 0.0]
    weights, means = merge_outputs(document, values, [of[:, np.newaxis] for of in values])
    assert weights.tolist() == [2.0, (2.0 + 6.0) / 2, 4.0, 0.0]
    assert means.tolist() == [[4.0], [4.0], [8.0], [0.0]]  # over the windows that hold the word


def test_channels_and_padding_are_allowed():
    document = document_of(2, window_of(-1, 0, 0, -1))
    values = np.array([[9, 9], [1, 10], [3, 30], [9, 9], [7, 7], [7, 7]], dtype=np.float32)
    weights, means = merge_outputs(document, [values[:, 1]], [values])
    assert weights.dtype == means.dtype == np.float64
    assert weights.tolist() == [20.0, 0.0]
    assert means.tolist() == [[2.0, 20.0], [0.0, 0.0]]


@given(PHRASES, st.integers(0, 2**32 - 1))
def test_contributions_that_add_up_to_the_logits_still_do_so_for_words(encoder, text, seed):
    """Each word has one value in all of its pieces; the document's value is the windows' mean."""
    document = encoder.encode(text)
    of_words = np.random.default_rng(seed).integers(-8, 8, len(document.words)) / 8
    values = [np.append(of_words, 100.0)[window.word_index] for window in document.windows]
    merged = merge_pieces(document, values)
    expected = np.mean(
        [
            of_words[np.unique(window.word_index[window.word_index >= 0])].sum()
            for window in document.windows
        ]
    )
    assert merged.sum() == pytest.approx(expected)
    present = {int(word) for window in document.windows for word in window.word_index}
    silent = [place for place in range(len(document.words)) if place not in present]
    assert merged[silent].tolist() == [0.0] * len(silent)
    again, averaged = merge_outputs(document, values, [of[:, np.newaxis] for of in values])
    assert again.tolist() == merged.tolist()
    np.testing.assert_allclose(
        averaged[:, 0], np.where(np.isin(range(len(merged)), [*present]), of_words, 0)
    )


def test_one_array_per_window_is_demanded():
    document = document_of(1, window_of(-1, 0, -1), window_of(-1, 0, -1))
    with pytest.raises(ValueError, match="zip"):
        merge_pieces(document, [np.zeros(3)])


@pytest.mark.parametrize(
    ("tokens", "padded"),
    [(1, 8), (8, 8), (9, 16), (64, 64), (65, 80), (128, 128), (129, 160), (161, 192), (512, 512)],
)
def test_buckets(tokens, padded):
    assert bucket_length(tokens) == padded


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 5000))
def test_batches_hold_each_row_once_and_one_bucket(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = {bucket_length(lengths[row]) for row in batch}
        assert len(padded) == 1
        assert batch == sorted(batch)
        assert len(batch) == 1 or len(batch) * padded.pop() <= budget


def test_rows_are_padded_at_the_right():
    rows = [np.array([5, 6, 7]), np.array([8])]
    ids, mask = pad_rows(rows, 4, pad_id=9)
    assert ids.tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_a_tokenizers_own_truncation_and_padding_are_switched_off(tiny_tokenizer_json):
    tokenizer = Tokenizer.from_str(tiny_tokenizer_json)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    encoder = TextEncoder.from_json(tokenizer.to_str(), max_tokens=512, overlap=32)
    [window] = encoder.encode("great film " * 100).windows
    assert len(window.input_ids) == 202
    stored = json.loads(encoder.to_json())
    assert stored["truncation"] is None
    assert stored["padding"] is None


def test_to_json_and_back_encodes_alike(encoder):
    again = TextEncoder.from_json(encoder.to_json(), max_tokens=16, overlap=4)
    text = "a really great story, never dull; zyxomma " * 3
    for mine, theirs in zip(encoder.encode(text).windows, again.encode(text).windows, strict=True):
        np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
    assert (again.mask_id, again.pad_id) == (encoder.mask_id, encoder.pad_id)
    assert (again.mask_token, again.special_tokens) == ("[MASK]", 2)


@pytest.mark.parametrize(("max_tokens", "overlap"), [(7, 0), (16, 8), (16, -1), (0, 0)])
def test_sizes_that_do_not_fit_are_refused(tiny_tokenizer_json, max_tokens, overlap):
    with pytest.raises(ValueError, match="do not fit together"):
        TextEncoder.from_json(tiny_tokenizer_json, max_tokens=max_tokens, overlap=overlap)


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = Tokenizer(WordLevel({"a": 0, "[UNK]": 1, "[PAD]": 2}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="MASK"):
        TextEncoder(tokenizer)


def test_other_threads_run_while_a_book_is_tokenised():
    """The tokenizer's `encode` of one text holds Python's lock to its end; a server would stop."""
    shipped = Path(__file__).resolve().parents[2] / "models/pretrained/reviews/tokenizer.json"
    reader = TextEncoder.from_json(shipped.read_text(encoding="utf-8"), max_tokens=256, overlap=32)
    text = "great story, but wholly unbelievable " * 13_000
    # Something else may hold the processor for a moment, but not three times.
    assert min(longest_silence(lambda: reader.encode(text)) for _ in range(3)) < 1 / 3


def longest_silence(work):
    """The longest time that another thread gets no turn, as a share of the work's own."""
    done, gaps = threading.Event(), []

    def tick():
        last = time.monotonic()
        while not done.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    begun = time.monotonic()
    work()
    spent = time.monotonic() - begun
    done.set()
    ticking.join()
    return max(gaps) / spent
