"""Do the words that weigh most lie where people put their evidence?"""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text import Document, split_words, word_bounds
from training.attribution.record import text_rng
from training.data.rationale import content_words, gold_words
from training.evaluation.faithfulness import RANDOM_DRAWS, random_weights
from training.evaluation.plausibility import (
    BUDGETS,
    PLAUSIBILITY,
    measure_plausibility,
    oracle_weights,
    random_plausibility,
    summarize_plausibility,
)

# Content words: acting, superb, plot, film, moves, drags.
TEXT = "The acting is superb , but the plot of this film never moves and drags ."
WEIGHTS = [
    -1.0, 0.9, 5.0, 0.8, 4.0, -1.1, -1.2, 0.1, -1.3, -1.4, 0.2, -1.5, -0.5, -1.6, 0.7, -1.7,
]  # fmt: skip
VOCABULARY = (
    *TEXT.split(),
    "don't",
    "it’s",
    "n't",
    "s",
    "été",
    "ß9",
    "不",
    "ไทย",
    "👍🏽",
    "e\u0301",
)


def read(text):
    return Document(text, word_bounds(text), ())


def over(document, *ranges):
    """Code-point spans over ranges of words."""
    words = document.words
    return [(words[first].start, words[end - 1].end) for first, end in ranges]


def places(mask):
    return np.flatnonzero(mask).tolist()


@st.composite
def documents(draw):
    texts = st.text(min_size=1, max_size=60) | st.lists(
        st.sampled_from(VOCABULARY), min_size=1, max_size=45
    ).map(" ".join)
    document = read(draw(texts.filter(split_words)))
    place = st.integers(0, len(document.words) - 1)
    spans = []
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted((draw(place), draw(place)))
        # An end may cut a word in two.
        start = draw(st.integers(document.words[first].start, document.words[first].end - 1))
        lowest = max(start, document.words[last].start) + 1
        spans.append((start, draw(st.integers(lowest, document.words[last].end))))
    return document, spans


@st.composite
def explained(draw, *, distinct=True):
    document, spans = draw(documents())
    numbers = st.integers(-1000, 1000) if distinct else st.integers(-1, 1)
    size = len(document.words)
    weights = draw(st.lists(numbers, min_size=size, max_size=size, unique=distinct))
    return document, spans, np.array(weights, dtype=np.float64)


# By hand


def test_alignment_by_hand():
    """Content words by weight: acting, superb, drags, film, plot, moves; two spans, three gold."""
    document = read(TEXT)
    spans = over(document, (3, 4), (11, 15))
    found = measure_plausibility(document, np.array(WEIGHTS), spans, 0.3)
    assert {name: found[name] for name in found if "@" in name} == pytest.approx(
        {
            "ap@5": 1.0,
            "mr@5": 3 / 5,
            "ap@10": 1.0,  # there are six
            "mr@10": 3 / 6,
            "ap@5%": 0.0,  # one word of sixteen: acting
            "mr@5%": 1.0,
            "ap@gold": 1.0,
            "mr@gold": 1 / 3,
        }
    )
    without_drags = np.where(np.arange(16) == 14, -9.0, WEIGHTS)
    found = measure_plausibility(document, without_drags, spans, 0.3)
    assert (found["ap@5"], found["mr@5"]) == (1.0, 3 / 5)  # moves hits the same span
    assert (found["ap@gold"], found["mr@gold"]) == (1 / 2, 2 / 3)


def test_the_sign_of_a_weight_counts():
    """What speaks against the label is not evidence for it, however strongly."""
    document = read("superb acting , dreadful plot")
    found = measure_plausibility(
        document, np.array([1, 0.5, 0, -9, 0.25]), over(document, (3, 4)), 0.2
    )
    assert (found["ap@gold"], found["mr@gold"], found["token_f1"]) == (0.0, 1.0, 0.0)


def test_places_count_and_not_strings():
    """The published code found `great` anywhere, and `he` in `the`."""
    document = read("great cast , he helps the theme , great")
    weights = np.array([9.0, 0, 0, 0, 0, 0, 8, 0, -1])
    found = measure_plausibility(document, weights, over(document, (8, 9)), 0.1)
    assert (found["ap@5%"], found["mr@5%"]) == (0.0, 1.0)
    found = measure_plausibility(document, weights, over(document, (3, 4)), 0.1)
    assert (found["ap@10"], found["mr@10"]) == (0.0, 1.0)


def test_the_area_by_hand():
    """Gold, other, gold, other: precision 1, 1/2, 2/3, 1/2 at recall 1/2, 1/2, 1, 1."""
    document = read("one two three four")
    spans = over(document, (0, 1), (2, 3))
    found = measure_plausibility(document, np.array([4.0, 3, 2, 1]), spans, 0.5)
    assert found["auprc"] == pytest.approx(1 / 2 * 1 + 1 / 2 * (1 / 2 + 2 / 3) / 2)
    assert (found["token_precision"], found["token_recall"], found["token_f1"]) == (0.5, 0.5, 0.5)


def test_spans_as_eraser_counts_them():
    """Two documents with the numbers that eraserbenchmark's partial_match_score gives for them.

    Predicted 2-4 and 5-9 against 1-4, 6-8 and 9-10: IOU 2/3 and 1/2. Then 3-4 against 0-2: none.
    """
    one, other = read("a b c d e f g h i j k l"), read("a b c d e f g h")
    chosen = np.isin(np.arange(12), [2, 3, 5, 6, 7, 8])
    first = measure_plausibility(
        one, chosen - np.arange(12) / 99, over(one, (1, 4), (6, 8), (9, 10)), 0.5
    )
    second = measure_plausibility(other, np.eye(8)[3], over(other, (0, 2)), 0.125)
    assert (first["iou_precision"], first["iou_recall"]) == (1.0, 2 / 3)
    assert first["iou_f1"] == pytest.approx(0.8)
    assert (second["iou_precision"], second["iou_recall"], second["iou_f1"]) == (0.0, 0.0, 0.0)
    means = summarize_plausibility([first, second])
    assert means["iou_f1_eraser"] == pytest.approx(0.4)
    assert means["iou_f1"] == pytest.approx(0.4)
    again = summarize_plausibility([first, first, second])
    assert again["iou_f1"] == pytest.approx(2 * 0.8 / 3)
    assert again["iou_f1_eraser"] == pytest.approx(2 * (2 / 3) * (4 / 9) / (2 / 3 + 4 / 9))


@pytest.mark.parametrize(
    ("predicted", "human", "matched"),
    [
        ((0, 2), (0, 4), 1),  # exactly one half
        ((0, 2), (0, 5), 0),
        ((0, 4), (0, 2), 1),
        ((2, 6), (3, 7), 1),
        ((2, 6), (4, 8), 0),
        ((0, 1), (1, 2), 0),
    ],
)
def test_the_threshold_of_overlap(predicted, human, matched):
    document = read("a b c d e f g h i j")
    weights = np.where((np.arange(10) >= predicted[0]) & (np.arange(10) < predicted[1]), 1.0, -1.0)
    share = (predicted[1] - predicted[0]) / 10
    found = measure_plausibility(document, weights, over(document, human), share)
    assert (found["iou_precision"], found["iou_recall"], found["iou_f1"]) == (matched,) * 3


# Spans and words


def test_a_word_is_gold_where_a_span_touches_it():
    document = read("ab cd, ef")
    assert places(gold_words(document, [(1, 4)])) == [0, 1]
    assert places(gold_words(document, [(2, 3), (5, 6)])) == [2]
    assert places(gold_words(document, [(7, 9), (0, 2)])) == [0, 3]


@pytest.mark.parametrize(
    ("spans", "human"),
    [
        ([(0, 5), (0, 5)], 1),  # twice the same
        ([(0, 8), (3, 5)], 1),  # one in the other
        ([(3, 8), (0, 5)], 1),  # share bb
        ([(0, 4), (4, 8)], 1),  # meet inside bb
        ([(0, 5), (5, 8)], 2),
        ([(0, 6), (5, 8)], 2),  # share a blank
        ([(0, 2), (2, 3), (6, 8)], 2),  # a span over a blank is none
    ],
)
def test_which_spans_count_as_one(spans, human):
    found = measure_plausibility(read("aa bb cc dd"), np.array([4.0, 1, 2, 3]), spans, 0.25)
    assert found["iou_recall"] * human == pytest.approx(found["iou_precision"])
    assert found["ap@5%"] == pytest.approx(1 / human)  # one word, in the first span


@pytest.mark.parametrize("word", ["plot", "B", "9", "été", "不", "ไ", "½", "1990s", "movie's"])
def test_content_words(word):
    assert content_words(read(word)).tolist() == [True]


@pytest.mark.parametrize(
    "word",
    [
        *("the", "THE", "never", "!", "👍", "…", "_"),
        *("don't", "Don’t", "doesn't", "won't", "can't", "it's", "I'll", "they’re", "we've"),
        *("n't", "s", "ve", "does", "ca"),
    ],
)  # fmt: skip
def test_words_without_content(word):
    assert content_words(read(word)).tolist() == [False]


@pytest.mark.parametrize("text", ["I don't say it's dull", "I do n't say it 's dull"])
def test_both_ways_to_write_a_contraction_leave_the_same_words(text):
    document = read(text)
    kept = [document.words[place].text for place in places(content_words(document))]
    assert kept == ["say", "dull"]


def test_stop_words_of_another_language():
    document = read("Der Film the")
    german = frozenset({"der"})
    assert content_words(document, german).tolist() == [False, True, True]
    weights, spans = np.array([3.0, 2, 1]), over(document, (2, 3))
    assert measure_plausibility(document, weights, spans, 0.3)["ap@10"] == 0.0
    found = measure_plausibility(document, weights, spans, 0.3, stop_words=german)
    assert (found["ap@10"], found["mr@10"], found["mr@gold"]) == (1.0, 0.5, 1.0)
    assert oracle_weights(document, spans, stop_words=german).argmax() == 2
    row = random_plausibility(document, spans, 0.3, text_rng("a", 1), stop_words=german)
    assert row["mr@10"] == 0.5


# Small documents


def test_a_document_of_one_word():
    document = read("superb")
    found = measure_plausibility(document, np.array([-3.0]), [(0, 6)], 0.01)
    assert found == {
        name: float(measure.higher_is_better) for name, measure in PLAUSIBILITY.items()
    }


@pytest.mark.parametrize("text", ["...", "it is ."])
def test_without_content_words_no_one_finds_anything(text):
    document = read(text)
    spans = over(document, (0, 2))
    found = measure_plausibility(document, oracle_weights(document, spans), spans, 0.6)
    assert {found[f"ap@{budget}"] for budget in BUDGETS} == {0.0}
    assert {found[f"mr@{budget}"] for budget in BUDGETS} == {1.0}
    assert (found["auprc"], found["token_f1"], found["iou_f1"]) == (1.0, 1.0, 1.0)


def test_a_span_without_content_words_is_out_of_reach():
    document = read("superb film and not this one .")
    spans = over(document, (0, 1), (3, 5))
    found = measure_plausibility(document, oracle_weights(document, spans), spans, 0.5)
    assert [found[f"ap@{budget}"] for budget in BUDGETS] == [0.5] * 4
    assert (found["mr@gold"], found["mr@5"]) == (0.0, 0.5)


def test_gold_without_content_words():
    document = read("superb film , is it not ?")
    spans = over(document, (3, 6))
    found = measure_plausibility(document, oracle_weights(document, spans), spans, 0.5)
    assert (found["ap@gold"], found["mr@gold"], found["mr@5"]) == (0.0, 1.0, 1.0)


def test_all_words_are_gold():
    document = read(TEXT)
    found = measure_plausibility(document, np.array(WEIGHTS), [(0, len(TEXT))], 1.0)
    assert (found["auprc"], found["token_f1"], found["iou_f1"]) == (1.0, 1.0, 1.0)
    assert {found[f"mr@{budget}"] for budget in BUDGETS} == {0.0}


def test_a_share_too_small_takes_one_word():
    found = measure_plausibility(read("a b"), np.array([1.0, 2]), [(2, 3)], 1e-12)
    assert (found["token_precision"], found["token_recall"]) == (1.0, 1.0)


# What is refused


@pytest.mark.parametrize("spans", [None, (), [(3, 4)]])
def test_a_document_without_evidence(spans):
    document = read("the plot")
    for call in (
        lambda: measure_plausibility(document, np.zeros(2), spans, 0.5),
        lambda: random_plausibility(document, spans, 0.5, text_rng("a", 1)),
        lambda: oracle_weights(document, spans),
        lambda: gold_words(document, spans),
    ):
        with pytest.raises(ValueError, match="no human span over a word; leave it out"):
            call()


@pytest.mark.parametrize("span", [(-1, 2), (0, 9), (3, 3), (4, 2)])
def test_a_span_that_leaves_the_text(span):
    with pytest.raises(ValueError, match="leaves its text of 8 characters"):
        gold_words(read("the plot"), [(0, 2), span])


@pytest.mark.parametrize("weights", [[1.0, np.nan], [np.inf, 0.0], [1.0], [[1.0, 2.0]]])
def test_weights_that_cannot_be_ranked(weights):
    with pytest.raises(ValueError, match="2 words needs as many finite weights"):
        measure_plausibility(read("the plot"), np.array(weights), [(0, 3)], 0.5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        measure_plausibility(read("the plot"), np.zeros(2), [(0, 3)], share)


# Ties


def test_an_explanation_that_says_nothing_is_as_good_as_chance():
    """Evidence comes first in each text; by place, zeros would find all of it.

    A tenth of the words is gold. With ties left in, the trapezoid under the curve would be .55.
    """
    rows = []
    for number in range(500):
        document = read(" ".join(f"w{place}x{number}" for place in range(40)))
        rows.append(measure_plausibility(document, np.zeros(40), over(document, (0, 4)), 0.1))
    found = summarize_plausibility(rows)
    assert found["ap@5"] == pytest.approx(1 - comb(36, 5) / comb(40, 5), abs=0.07)  # 3 sigma
    for name in ("mr@5", "mr@10", "mr@gold"):
        assert found[name] == pytest.approx(0.9, abs=0.02)
    assert found["token_f1"] == pytest.approx(0.1, abs=0.02)
    assert 0.1 < found["auprc"] < 0.2


@given(explained(distinct=False))
def test_ties_fall_alike_for_all_explanations_of_a_text(case):
    document, spans, weights = case
    found = measure_plausibility(document, weights, spans, 0.3)
    assert found == measure_plausibility(document, weights * 3 - 7, spans, 0.3)
    assert found == measure_plausibility(
        document, np.where(weights == 0, -0.0, weights), spans, 0.3
    )


# For any text


@given(explained(distinct=False), st.floats(0.001, 1))
def test_ranges(case, share):
    document, spans, weights = case
    found = measure_plausibility(document, weights, spans, share)
    assert found.keys() == PLAUSIBILITY.keys()
    for name, value in found.items():
        assert PLAUSIBILITY[name].low <= value <= PLAUSIBILITY[name].high
        assert type(value) is float


@given(explained(), st.floats(0.001, 1))
def test_only_the_order_of_the_weights_counts(case, share):
    document, spans, weights = case
    found = measure_plausibility(document, weights, spans, share)
    assert found == measure_plausibility(document, weights**3 / 2 + weights, spans, share)


@given(explained(distinct=False), st.floats(0.001, 1))
def test_no_one_beats_the_oracle(case, share):
    document, spans, weights = case
    found = measure_plausibility(document, weights, spans, share)
    best = measure_plausibility(document, oracle_weights(document, spans), spans, share)
    for name, measure in PLAUSIBILITY.items():
        if not name.startswith("iou"):
            better = best[name] - found[name]
            assert (better if measure.higher_is_better else -better) >= -1e-12
    assert best["auprc"] == pytest.approx(1.0)
    assert (oracle_weights(document, spans) > 0).tolist() == gold_words(document, spans).tolist()


def test_the_oracle_begins_with_each_span_and_grows_around_them():
    document = read("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11")
    spans = over(document, (1, 2), (5, 9))
    weights = oracle_weights(document, spans)
    ranked = np.argsort(-weights, kind="stable").tolist()
    assert ranked[:5] == [1, 5, 6, 7, 8]
    assert set(ranked[5:7]) == {4, 9}  # a quarter of the length of 5-9 away; w0 a whole from 1-2
    assert (weights[4], weights[9], weights[0]) == (-0.25, -0.25, -1.0)
    for share in (5 / 12, 7 / 12):
        assert measure_plausibility(document, weights, spans, share)["iou_f1"] == 1.0


@given(explained(), st.integers(1, 100))
def test_as_a_slow_straightforward_implementation(case, percent):
    document, spans, weights = case
    found = measure_plausibility(document, weights, spans, percent / 100)
    assert found == pytest.approx(slow(document, spans, weights, percent))


def slow(document, spans, weights, percent):
    """The same with sets of places and loops."""
    covered: list[set[int]] = []  # sets of words, united while two of them meet
    for start, end in spans:
        new = {
            place
            for place, word in enumerate(document.words)
            if set(range(word.start, word.end)) & set(range(start, end))
        }
        for old in [old for old in covered if old & new]:
            covered.remove(old)
            new |= old
        covered.append(new)
    gold = set().union(*covered)
    ranked = sorted(range(len(weights)), key=lambda place: -weights[place])
    content = [place for place in ranked if content_words(document)[place]]
    words = len(ranked)
    counts = {"5": 5, "10": 10, "5%": (5 * words + 99) // 100, "gold": len(gold & set(content))}
    result = {}
    for budget, count in counts.items():
        top = set(content[:count])
        result[f"ap@{budget}"] = sum(bool(span & top) for span in covered) / len(covered)
        result[f"mr@{budget}"] = len(top - gold) / len(top) if top else 1.0
    area, before = 0.0, (0.0, 1.0)
    for count in range(1, words + 1):
        hits = len(gold & set(ranked[:count]))
        now = (hits / len(gold), hits / count)
        area += (now[0] - before[0]) * (now[1] + before[1]) / 2
        before = now
    chosen = set(ranked[: (percent * words + 99) // 100])
    runs: list[set[int]] = []
    for place in sorted(chosen):
        if place - 1 in chosen:
            runs[-1].add(place)
        else:
            runs.append({place})
    found = sum(any(2 * len(run & span) >= len(run | span) for span in covered) for run in runs)
    hits = len(chosen & gold)
    return {
        **result,
        "auprc": area,
        **by_two("token", hits / len(chosen), hits / len(gold)),
        **by_two("iou", found / len(runs), found / len(covered)),
    }


def by_two(kind, precision, recall):
    mean = 2 / (1 / precision + 1 / recall) if precision and recall else 0.0
    return {f"{kind}_precision": precision, f"{kind}_recall": recall, f"{kind}_f1": mean}


# The random row


def test_the_random_row_is_the_mean_of_five_draws():
    document = read(TEXT)
    spans = over(document, (3, 4), (11, 15))
    draws = random_weights(16, text_rng(TEXT, 3))
    rows = [measure_plausibility(document, draw, spans, 0.3) for draw in draws]
    found = random_plausibility(document, spans, 0.3, text_rng(TEXT, 3))
    assert len(rows) == RANDOM_DRAWS == 5
    assert found == {name: np.mean([row[name] for row in rows]) for name in PLAUSIBILITY}
