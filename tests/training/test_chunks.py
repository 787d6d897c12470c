"""Chunks hold every word once and in order, and none has too many tokens unless it is one word."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from models.text import TextEncoder, split_words
from training.data.chunks import cut

WORDS = ["great", "film", "the", "zyxomma", "don't", "re-imagining", ".", "!", "漢", "カ", "ส", "ี"]
TEXTS = st.one_of(
    st.lists(
        st.sampled_from([*WORDS, "x" * 40, "\x00", "\U0001f600", " ", "  ", "\n"]),
        min_size=1,
        max_size=120,
    ).map("".join),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=120).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
).filter(lambda text: not text.isspace())


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer_json):
    """Windows of 64 tokens."""
    return TextEncoder.from_json(tiny_tokenizer_json, max_tokens=64, overlap=8)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_json):
    """Counts tokens without the encoder's help."""
    return Tokenizer.from_str(tiny_tokenizer_json)


@settings(max_examples=300)
@given(TEXTS, st.integers(8, 70))
@example(
    "ส" * 99 + "。" + "ส" * 99, 8
)  # one run for the tokenizer, too long to be known as a whole
@example("great film " * 60, 64)
@example("x" * 90, 8)
def test_chunks_hold_every_word_once_and_few_tokens(encoder, tokenizer, text, tokens):
    chunks = cut(text, encoder, tokens)
    words = [word.text for chunk in chunks for word in split_words(chunk)]
    assert words == [word.text for word in split_words(text)]
    position = 0
    for chunk in chunks:
        start = text.index(chunk, position)
        assert not text[position:start].strip()
        position = start + len(chunk)
        assert len(tokenizer.encode(chunk)) <= tokens or len(split_words(chunk)) == 1
    assert not text[position:].strip()


def test_a_chunk_is_counted_by_its_own_pieces(tiny_tokenizer_json):
    """Two characters are one piece inside a run and not at its start, so cutting makes more."""
    record = json.loads(tiny_tokenizer_json)
    vocabulary = record["model"]["vocab"]
    vocabulary |= {piece: len(vocabulary) + n for n, piece in enumerate(["カ", "##カ", "##カカ"])}
    encoder = TextEncoder.from_json(json.dumps(record), max_tokens=64, overlap=8)
    text = "カ" * 99
    assert len(encoder.tokenizer.encode(text, add_special_tokens=False)) == 50
    chunks = cut(text, encoder, 12)
    assert "".join(chunks) == text
    assert max(len(encoder.tokenizer.encode(chunk)) for chunk in chunks) <= 12


def test_a_text_that_fits_stays_as_it_is(encoder):
    text = "  The great film .\n"
    assert cut(text, encoder, 8) == [text]


def test_a_chunk_ends_after_a_sentence_in_its_second_half(encoder):
    """Ten pieces fit beside the special tokens; the sixth word ends a sentence."""
    text = "the great film was fine . the story was not great and too slow"
    assert cut(text, encoder, 12) == [
        "the great film was fine .",
        "the story was not great and too slow",
    ]


def test_a_sentence_that_ends_early_does_not_end_a_chunk(encoder):
    text = "the film . it was great and the story was fine and my script too"
    first, *_ = cut(text, encoder, 12)
    assert first == "the film . it was great and the story was"


def test_a_long_word_stays_whole(encoder):
    word = "x" * 50
    assert cut(f"the film {word} was great", encoder, 16) == ["the film", word, "was great"]


def test_a_chunk_may_be_longer_than_a_window(encoder):
    text = "great film " * 100
    first, *_ = cut(text, encoder, 128)
    assert len(split_words(first)) == 126


@pytest.mark.parametrize("tokens", [7, 0, -1])
def test_too_small_a_chunk_is_refused(encoder, tokens):
    with pytest.raises(ValueError, match="at least 8"):
        cut("great film", encoder, tokens)


@pytest.mark.parametrize("text", ["", " \n", "\ud800"])
def test_what_cannot_be_encoded_cannot_be_cut(encoder, text):
    with pytest.raises(ValueError, match=r"blank|surrogate"):
        cut(text, encoder, 8)
