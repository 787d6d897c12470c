import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rationale import EFFECTS, STRENGTHS, Span, WordScores, rationale_spans, to_html
from models.text import split_words, word_bounds

OPPOSES_HIGH, OPPOSES_LOW, NEUTRAL, SUPPORTS_LOW, SUPPORTS_HIGH = range(5)


def scores_of(text, weights, probs):
    return WordScores.of(text, word_bounds(text), np.array(weights), np.array(probs))


def words_of(text, weights, classes):
    """The words with the given weights and, as one-hot probabilities, classes."""
    return scores_of(text, weights, np.eye(5)[classes])


def test_words_take_the_most_probable_class():
    probs = np.eye(5, dtype=np.float32)
    found = scores_of("a b c d e", [-2.0, -0.5, 0.1, 0.5, 2.0], probs).spans()
    assert [(span.effect, span.strength) for span in found] == [
        ("opposes", "high"),
        ("opposes", "low"),
        ("neutral", "neutral"),
        ("supports", "low"),
        ("supports", "high"),
    ]
    assert found[3] == Span(6, 7, "d", 0.5, "supports", "low")
    assert set(EFFECTS) == {span.effect for span in found}
    assert set(STRENGTHS) == {span.strength for span in found}


def test_word_without_pieces_is_neutral():
    (found,) = scores_of("\0", np.zeros(1), np.zeros((1, 5))).spans()
    assert (found.weight, found.effect, found.strength) == (0.0, "neutral", "neutral")


def test_equal_probabilities_take_the_milder_class():
    probs = np.array([[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0.5, 0, 0, 0, 0.5]])
    found = scores_of("a b c", np.zeros(3), probs).spans()
    assert [(span.effect, span.strength) for span in found] == [
        ("opposes", "low"),
        ("neutral", "neutral"),
        ("opposes", "high"),
    ]


def test_weights_are_plain_numbers_without_minus_zero():
    (found,) = scores_of("a", np.array([-0.0], dtype=np.float32), np.eye(5)[[2]]).spans()
    assert type(found.weight) is float
    assert str(found.weight) == "0.0"
    assert list(found.to_dict()) == ["start", "end", "text", "weight", "effect", "strength"]


@pytest.mark.parametrize(("weights", "probs"), [((2,), (1, 5)), ((1,), (1, 4)), ((1,), (2, 5))])
def test_shapes_must_fit(weights, probs):
    with pytest.raises(ValueError, match="do not fit together"):
        scores_of("a", np.zeros(weights), np.zeros(probs))


def test_scores_are_equal_to_the_last_bit_or_not_at_all():
    text, weights, classes = "a b", [1.0, -2.0], [SUPPORTS_HIGH, OPPOSES_LOW]
    words = words_of(text, weights, classes)
    assert words == words_of(text, weights, classes)
    others = [
        words_of("a c", weights, classes),
        words_of(text, [1.0, np.nextafter(-2.0, 0)], classes),
        words_of(text, weights, [SUPPORTS_HIGH, NEUTRAL]),
        words_of("a", weights[:1], classes[:1]),
        words.spans(),
    ]
    assert all(words != other for other in others)


def test_covered_counts_the_words_that_start_in_spans():
    words = words_of("one two  three four", [0] * 4, [NEUTRAL] * 4)
    assert words.covered(()) == 0
    assert words.covered([words.spans()[1], words.spans()[3]]) == 2
    assert words.covered([Span(4, 19, "two  three four", 0.0, "neutral", "neutral")]) == 3
    assert words.covered([Span(5, 9, "wo  ", 0.0, "neutral", "neutral")]) == 0


def test_rationale_joins_adjacent_words_of_one_effect():
    text = "A  really great , moving story but dull end"
    classes = [NEUTRAL, SUPPORTS_LOW, SUPPORTS_HIGH, NEUTRAL, SUPPORTS_HIGH, NEUTRAL, NEUTRAL]
    words = words_of(
        text, [0, 0.5, 2, 0, 1, 0, 0, -1.5, -0.25], [*classes, OPPOSES_HIGH, OPPOSES_LOW]
    )
    assert rationale_spans(words, max_words=9) == (
        Span(3, 15, "really great", 2.5, "supports", "high"),
        Span(18, 24, "moving", 1.0, "supports", "high"),
        Span(35, 43, "dull end", -1.75, "opposes", "high"),
    )


def test_neighbours_of_opposite_effect_are_two_spans():
    text = "great mess"
    words = words_of(text, [2, -2], [SUPPORTS_HIGH, OPPOSES_HIGH])
    found = rationale_spans(words, max_words=2)
    assert [(span.text, span.effect) for span in found] == [
        ("great", "supports"),
        ("mess", "opposes"),
    ]


def test_a_run_needs_a_high_word():
    text = "good good . great good"
    classes = [SUPPORTS_LOW, SUPPORTS_LOW, NEUTRAL, SUPPORTS_HIGH, SUPPORTS_LOW]
    words = words_of(text, [1, 1, 0, 1, 1], classes)
    assert [span.text for span in rationale_spans(words, max_words=5)] == ["great good"]


def test_words_are_kept_before_runs_are_formed():
    text = "very very great film"
    classes = [SUPPORTS_LOW, SUPPORTS_LOW, SUPPORTS_HIGH, SUPPORTS_LOW]
    words = words_of(text, [0.75, 0.5, 2, 1], classes)
    # The two heaviest words are neighbours; the third heaviest, the first word, is not.
    assert [span.text for span in rationale_spans(words, 2)] == ["great film"]
    assert [span.text for span in rationale_spans(words, 3)] == ["great film"]
    assert [span.text for span in rationale_spans(words, 4)] == [text]


def test_ties_go_to_the_earlier_word():
    text = "a b c d"
    words = words_of(text, [1, -1, 1, -1], [SUPPORTS_HIGH, OPPOSES_HIGH] * 2)
    found = rationale_spans(words, max_words=3)
    assert [span.text for span in found] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 1), (3, 1), (4, 2), (10, 3), (11, 4), (20, 6), (21, 7), (90, 27)]
)
def test_thirty_percent_rounded_up(count, expected):
    text = " ".join(["x"] * count)
    words = words_of(text, [1] * count, [SUPPORTS_HIGH] * count)
    (found,) = rationale_spans(words)
    assert len(split_words(found.text)) == expected


def test_more_words_than_there_are():
    words = words_of("a b", [1, 1], [SUPPORTS_HIGH] * 2)
    assert [span.text for span in rationale_spans(words, 1000)] == ["a b"]


def test_no_words_no_rationale():
    assert rationale_spans(WordScores.none("")) == ()
    assert WordScores.none("a b").spans() == ()


@pytest.mark.parametrize("max_words", [0, -1])
def test_max_words_below_one(max_words):
    with pytest.raises(ValueError, match="at least 1"):
        rationale_spans(words_of("a", [1], [SUPPORTS_HIGH]), max_words)


def test_html_of_a_rationale():
    text = 'A <b>"great"</b> film'
    spans = [
        Span(2, 5, "<b>", 1.25, "supports", "high"),
        Span(6, 11, "great", -2, "opposes", "low"),
    ]
    assert to_html(text, spans) == (
        'A <mark class="supports high" data-weight="1.250">&lt;b&gt;</mark>&quot;'
        '<mark class="opposes low" data-weight="-2.000">great</mark>&quot;&lt;/b&gt; film'
    )


def test_html_of_nothing():
    assert to_html("a & b", []) == "a &amp; b"
    assert to_html("", []) == ""


@pytest.mark.parametrize(
    "edges", [[(0, 2), (1, 3)], [(2, 3), (0, 1)], [(0, 9)], [(-1, 1)], [(2, 1)]]
)
def test_html_refuses_spans_that_overlap_or_leave_the_text(edges):
    spans = [Span(start, end, "", 0.0, "neutral", "neutral") for start, end in edges]
    with pytest.raises(ValueError, match="overlaps another or leaves"):
        to_html("text", spans)


class Reader(HTMLParser):
    """Reads as a browser does: what is text and which elements there are."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.elements = set()

    def handle_starttag(self, tag, attrs):
        self.elements.add((tag, *(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(data)


def markup():
    """Any text, with plenty of what could be taken for HTML."""
    risky = st.sampled_from(["<", ">", "&", "&amp;", "&#0;", "<mark>", "</mark>", '"', "'", "\r"])
    return st.lists(st.one_of(st.text(max_size=5), risky)).map("".join)


@given(markup(), st.data())
def test_html_round_trip(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans = [
        Span(start, end, text[start:end], data.draw(st.floats()), effect, strength)
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
        for effect in [data.draw(st.sampled_from(EFFECTS))]
        for strength in [data.draw(st.sampled_from(STRENGTHS))]
    ]
    page = to_html(text, spans)
    assert html.unescape(re.sub(r"</?mark[^>]*>", "", page)) == text
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.text == text
    assert reader.elements <= {("mark", "class", "data-weight")}


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 4)), max_size=30),
    st.none() | st.integers(1, 40),
)
def test_rationale_invariants(scores, max_words):
    text = "  ".join("word" for _ in scores)
    weights = [weight for weight, _ in scores]
    words = words_of(text, weights, np.array([number for _, number in scores], dtype=int))
    found = rationale_spans(words, max_words)
    limit = -(-3 * len(words) // 10) if max_words is None else max_words
    assert words.covered(found) == sum(len(split_words(span.text)) for span in found)
    assert sum(len(split_words(span.text)) for span in found) <= limit
    assert list(found) == sorted(found, key=lambda span: span.start)
    for span in found:
        inside = [
            word for word in words.spans() if span.start <= word.start and word.end <= span.end
        ]
        assert span.text == text[span.start : span.end]
        assert {word.effect for word in inside} == {span.effect} != {"neutral"}
        assert "high" in {word.strength for word in inside}
        assert span.weight == sum(word.weight for word in inside)
