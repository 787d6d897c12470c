"""Functions from texts to probabilities as black boxes; how they are found: test_source.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from models.text import check_text
from training.attribution.record import PREDICTED, has_pieces, predicted
from training.attribution.teachers import TEACHERS, teacher_named
from training.blackbox.callable import (
    EPS,
    ROWS,
    CallableBlackBox,
    CallableError,
    FunctionError,
)
from training.blackbox.protocol import explained_value

any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
MASKING = {"occlusion": 0, "lime": 24, "kernel_shap": 24, "permutation_shap": 70}


def always(*row):
    return lambda texts: [list(row)] * len(texts)


@pytest.fixture
def listening():
    """A black box that keeps the texts of each call; the longer the text the more positive."""

    def make(**settings):
        def predict(texts):
            calls.append(list(texts))
            chance = np.array([1 / (2 + len(text)) for text in texts])
            return np.stack([chance, 1 - chance], axis=1)

        calls: list[list[str]] = []
        black_box = CallableBlackBox(predict, **settings)
        calls.clear()  # the first call asked how many classes there are
        return black_box, calls

    return make


# The texts that a function gets


@pytest.mark.parametrize(
    ("text", "dropped", "expected"),
    [
        ("A dull\tplot,  but I laughed!\n", [1, 3], "A [MASK]\tplot[MASK]  but I laughed!\n"),
        (" \n great ", [0], " \n [MASK] "),
        ("don't re-imagine it", [0, 1], "[MASK] [MASK] it"),
        ("👩‍👩‍👧 naïve ✨", [5, 6], "👩‍👩‍👧 [MASK] [MASK]"),
        ("e\u0301te\u0301 fin", [0], "[MASK] fin"),
        ("好电影", [1], "好[MASK]影"),
        ("a\r\n\u2028b", [1], "a\r\n\u2028[MASK]"),
        ("[MASK] it", [3], "[MASK] [MASK]"),
    ],
)
def test_a_dropped_word_is_the_mask_and_all_else_the_text(text, dropped, expected, listening):
    black_box, calls = listening()
    document = black_box.encoder.encode(text)
    keep = ~np.isin(np.arange(len(document.words)), dropped)
    black_box.logits([document], [keep])
    assert calls == [[expected]]


@given(any_text, st.randoms(use_true_random=False), st.sampled_from(["[MASK]", "", "…", "\\1"]))
def test_any_text_is_masked_word_by_word(text, chance, mask):
    try:
        check_text(text)
    except ValueError:
        assume(False)
    seen = []

    def predict(texts):
        seen.extend(texts)
        return [[0.5, 0.5]] * len(texts)

    black_box = CallableBlackBox(predict, mask_string=mask)
    document = black_box.encoder.encode(text)
    keep = np.array([chance.random() < 0.5 for _ in document.words])
    seen.clear()
    black_box.logits([document] * 3, [keep, np.ones_like(keep), np.zeros_like(keep)])
    # By hand, from the back, so that offsets in front stay good.
    expected, null = text, text
    for word, kept in reversed([*zip(document.words, keep, strict=True)]):
        if not kept:
            expected = expected[: word.start] + mask + expected[word.end :]
        null = null[: word.start] + mask + null[word.end :]
    assert seen == list(dict.fromkeys([expected, text, null]))
    black_box.logits([document])
    assert seen[-1] == text


def test_another_mask_string(listening):
    black_box, calls = listening(mask_string="<unk>")
    document = black_box.encoder.encode("a dull plot")
    black_box.logits([document], [np.array([True, False, True])])
    assert calls == [["a <unk> plot"]]
    assert black_box.encoder.mask_token == "<unk>"


def test_every_word_counts(listening):
    """There are no pieces that could be missing."""
    black_box, _ = listening()
    document = black_box.encoder.encode("great \x00 film")
    assert (len(document.words), document.windows) == (3, ())
    assert has_pieces(document).tolist() == [True] * 3


def test_equal_texts_are_asked_once(listening):
    black_box, calls = listening()
    documents = [black_box.encoder.encode(text) for text in ("great great", "dull", "dull")]
    keep = [np.array([True, False]), np.array([False]), np.array([False])]
    found = black_box.logits([documents[0], *documents], [np.array([False, True]), *keep])
    assert calls == [["[MASK] great", "great [MASK]", "[MASK]"]]
    assert found.shape == (4, 2)
    assert found[2].tolist() == found[3].tolist() != found[0].tolist()
    assert black_box.logits([]).shape == (0, 2)


def test_calls_are_bounded(listening):
    """Answers join without a seam."""
    black_box, calls = listening()
    documents = [black_box.encoder.encode("a" * (1 + number)) for number in range(600)]
    found = black_box.logits(documents)
    assert [len(call) for call in calls] == [ROWS, ROWS, 600 - 2 * ROWS]
    expected = [math.log(1 / (3 + number)) for number in range(600)]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)


# Probabilities and what is explained


@pytest.mark.parametrize("chance", [0.0, 1e-9, 1e-6, 0.2, 0.5, 0.999, 1 - 1e-6, 1.0])
def test_log_odds_of_two_classes(chance):
    black_box = CallableBlackBox(always(1 - chance, chance))
    logits = black_box.logits([black_box.encoder.encode("a")])
    p = min(max(chance, EPS), 1 - EPS)
    assert explained_value(black_box, logits, 1)[0] == pytest.approx(math.log(p / (1 - p)))
    assert explained_value(black_box, logits, 0)[0] == pytest.approx(-math.log(p / (1 - p)))
    assert black_box.eps == EPS == 1e-6


@pytest.mark.parametrize("row", [(0.2, 0.5, 0.3), (0.0, 0.0, 1.0), (1e-8, 1 - 2e-8, 1e-8)])
def test_log_odds_of_three_classes(row):
    """Of each class its own p against 1 - p, clipped; not against the others, which are clipped."""
    black_box = CallableBlackBox(always(*row))
    logits = black_box.logits([black_box.encoder.encode("a")] * 3)
    p = np.clip(row, 1e-6, 1 - 1e-6)
    expected = np.log(p / (1 - p))
    for target in range(3):
        found = explained_value(black_box, logits, target)
        np.testing.assert_allclose(found, expected[target], rtol=1e-9)
    np.testing.assert_allclose(explained_value(black_box, logits, np.arange(3)), expected)


def test_probabilities_of_several_labels_need_not_sum_to_one():
    black_box = CallableBlackBox(always(0.9, 0.8), ("FUN", "SAD"))
    logits = black_box.logits([black_box.encoder.encode("a")])
    assert explained_value(black_box, logits, 1)[0] == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((0.9999999, 0.99999995), 1),  # both are clipped to 1 - 1e-6
        ((0.99999995, 0.9999999), 0),
        ((1e-9, 3e-7, 2e-7), 1),  # all are clipped to 1e-6
        ((0.2, 1.0, 0.9999999), 1),
        ((0.2, 0.9999999, 1 + 1e-9), 2),
        ((1.0, 1.0), 0),  # the first of equal ones
        ((0.25, 0.375, 0.375), 1),
        ((0.3, np.nextafter(0.3, 1), 0.1), 1),  # their logarithms are one number
    ],
)
@pytest.mark.parametrize("teacher", ["occlusion", "lime", "ensemble:lime+kernel_shap"])
def test_the_predicted_class_is_that_before_clipping(row, expected, teacher):
    black_box = CallableBlackBox(always(*row))
    documents = [black_box.encoder.encode(text) for text in ("a great plot", "dull")]
    assert predicted(black_box, documents).tolist() == [expected] * 2
    targets = np.full(2, PREDICTED)
    records = teacher_named(teacher).attribute(black_box, documents, targets, budget=8, seed=0)
    assert [record.target for record in records] == [expected] * 2


def test_only_classes_that_look_alike_are_asked_for_again():
    asked = []

    def predict(texts):
        asked.append(list(texts))
        return [[0.9999999, 0.99999995] if "tie" in text else [0.25, 0.75] for text in texts]

    black_box = CallableBlackBox(predict)
    documents = [black_box.encoder.encode(text) for text in ("a film", "one tie", "two tie")]
    asked.clear()
    assert predicted(black_box, documents).tolist() == [1, 1, 1]
    assert asked == [["a film", "one tie", "two tie"], ["one tie", "two tie"]]


@pytest.mark.parametrize("teacher", MASKING)
def test_every_masking_teacher_explains_a_function(teacher):
    """Log-odds linear in the words: of three classes the second; exact but for LIME."""
    values = {"great": 1.5, "dull": -1.25, "plot": 0.25}

    def predict(texts):
        odds = [sum(values.get(word, 0) for word in text.split()) for text in texts]
        chance = 1 / (1 + np.exp(-np.array(odds)))
        return np.stack([(1 - chance) / 2, chance, (1 - chance) / 2], axis=1)

    black_box = CallableBlackBox(predict, ("A", "B", "C"))
    document = black_box.encoder.encode("a great plot , not dull but great")
    budget = 600 if teacher == "lime" else MASKING[teacher]
    [record] = teacher_named(teacher).attribute(
        black_box, [document], np.array([PREDICTED]), budget=budget, seed=0
    )
    expected = [0, 1.5, 0.25, 0, 0, -1.25, 0, 1.5]
    np.testing.assert_allclose(record.weights, expected, atol=0.05 if teacher == "lime" else 1e-9)
    assert (record.target, record.eps) == (1, 1e-6)
    assert (record.value, record.null_value) == pytest.approx((2.0, 0.0))


@pytest.mark.parametrize("teacher", sorted(set(TEACHERS) - set(MASKING)))
def test_the_others_need_a_network(teacher, listening):
    black_box, _ = listening()
    document = black_box.encoder.encode("great")
    with pytest.raises(ValueError, match=rf"^{teacher} needs a torch black box: a bundle or"):
        teacher_named(teacher).attribute(black_box, [document], np.array([1]), budget=9, seed=0)


# Labels


def test_labels_are_numbers_unless_they_are_named():
    assert CallableBlackBox(always(0.5, 0.5)).labels == ("0", "1")
    assert CallableBlackBox(always(0.2, 0.3, 0.5)).labels == ("0", "1", "2")
    assert CallableBlackBox(always(0.5, 0.5), ["NEG", "POS"]).labels == ("NEG", "POS")


@pytest.mark.parametrize("labels", [("A",), ("A", "B", "C")])
def test_other_labels_than_classes_are_refused(labels):
    with pytest.raises(CallableError) as caught:
        CallableBlackBox(always(0.5, 0.5), labels, name="m:f")
    assert "\n" not in str(caught.value)
    assert "m:f" in str(caught.value)


# What a function must not return


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda texts: [0.5] * len(texts), ["shape (1,)", "(1, classes)"]),
        (lambda texts: 0.5, ["shape ()"]),
        (lambda texts: None, ["m:f returned", "classes"]),
        (lambda texts: [[1.0]] * len(texts), ["shape (1, 1)", "two at least"]),
        (lambda texts: [[0.5, 0.5]] * (len(texts) + 1), ["shape (2, 2) for 1 texts"]),
        (lambda texts: [], ["shape (0,)"]),
        (lambda texts: [[[0.5, 0.5]]] * len(texts), ["shape (1, 1, 2)"]),
        (lambda texts: [[0.5, math.nan]] * len(texts), ["returned NaN"]),
        (lambda texts: [[0.5, math.inf]] * len(texts), ["outside 0 … 1"]),
        (lambda texts: [[-2.5, 3.5]] * len(texts), ["outside 0 … 1", "not logits"]),
        (lambda texts: [[-0.7, -0.6]] * len(texts), ["outside 0 … 1", "not logits"]),
        (lambda texts: ["POS"] * len(texts), ["returned list, not an array of numbers"]),
        (lambda texts: [["NEG", "POS"]] * len(texts), ["returned list, not an array"]),
        (lambda texts: [{"label": "POS", "score": 0.9}] * len(texts), ["returned list, not"]),
        (lambda texts: [[0.1, 0.9], [0.5]], ["returned list, not an array"]),
        (lambda texts: {"POS": 0.9}, ["returned dict, not an array"]),
    ],
)
def test_a_wrong_answer_is_one_line(answer, words):
    with pytest.raises(CallableError) as caught:
        CallableBlackBox(answer, name="m:f")
    message = str(caught.value)
    assert message.startswith("m:f returned ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_wrong_answer_later_on_is_found_too():
    """The number of classes is that of the first answer."""
    answers = iter([[[0.5, 0.5]], [[0.2, 0.3, 0.5]]])
    black_box = CallableBlackBox(lambda texts: next(answers), name="m:f")
    with pytest.raises(CallableError, match=r"shape \(1, 3\) for 1 texts, not \(1, 2\)"):
        black_box.logits([black_box.encoder.encode("b")])


def test_rounding_is_forgiven():
    black_box = CallableBlackBox(always(-1e-9, 1 + 1e-7))
    logits = black_box.logits([black_box.encoder.encode("a")])
    np.testing.assert_allclose(np.exp(logits), [[1e-6, 1 - 1e-6]], rtol=1e-9)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_arrays_of_any_float_are_taken(kind):
    black_box = CallableBlackBox(lambda texts: np.full((len(texts), 2), 0.5, dtype=kind))
    logits = black_box.logits([black_box.encoder.encode("a")])
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, math.log(0.5))


def test_tensors_are_taken():
    import torch

    black_box = CallableBlackBox(lambda texts: torch.full((len(texts), 2), 0.5))
    assert black_box.labels == ("0", "1")


def test_an_error_of_the_function_names_the_function():
    def fail(texts):
        raise KeyError("weights")

    with pytest.raises(FunctionError, match=r"my:fail failed on 1 texts .*KeyError: 'weights'"):
        CallableBlackBox(fail, name="my:fail")


def test_a_function_may_return_tensors_that_require_gradients():
    answer = torch.tensor([[0.25, 0.75]], dtype=torch.bfloat16, requires_grad=True)
    whole, rows = (
        lambda texts: answer.expand(len(texts), 2),
        lambda texts: [*answer] * len(texts),
    )
    for predict in (whole, rows):
        black_box = CallableBlackBox(predict)
        found = black_box.logits([black_box.encoder.encode("a film")])
        np.testing.assert_allclose(np.exp(found), [[0.25, 0.75]])


def test_a_function_may_fill_the_same_array_at_each_call():
    buffer = np.zeros((256, 2))

    def predict(texts):
        chance = [0.1 + 0.8 * (int(text) % 7) / 7 if text.isdecimal() else 0.5 for text in texts]
        buffer[: len(texts)] = np.stack([chance, 1 - np.array(chance)], axis=1)
        return buffer[: len(texts)]

    black_box = CallableBlackBox(predict)
    documents = [black_box.encoder.encode(str(number)) for number in range(300)]
    expected = [0.1 + 0.8 * (number % 7) / 7 for number in range(300)]
    np.testing.assert_allclose(np.exp(black_box.logits(documents))[:, 0], expected)


def test_the_function_may_change_its_argument():
    def predict(texts):
        found = [[0.5, 0.5]] * len(texts)
        texts.clear()
        return found

    black_box = CallableBlackBox(predict)
    assert black_box.logits([black_box.encoder.encode("a")] * 2).shape == (2, 2)
