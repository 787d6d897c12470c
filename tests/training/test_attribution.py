"""What holds for every teacher, and occlusion; the others have files of their own."""

import copy
import math

import numpy as np
import pytest
import torch

from training.attribution import occlusion
from training.attribution.perturbation import evaluate_copies
from training.attribution.record import OTHER_SHARE, PREDICTED, text_rng, training_targets
from training.attribution.teachers import BUDGETED, TEACHERS, takes_budget, teacher_named
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.protocol import log_odds

TEXT = "A great film , but the ending was dull and the plot was great ."
LONG = "the ending was dull and i hated it , but the music was moving . " * 3
TEXTS = [TEXT, "dull", LONG, "we loved the clever script", "weak and boring !"]
MASKING = {"occlusion": 0, "lime": 24, "kernel_shap": 24, "permutation_shap": 70}
NETWORK = {"gradient": 0, "integrated_gradients": 6, "lrp": 0, "deep_shap": 0}
ENSEMBLE = "ensemble:occlusion+kernel_shap"
BUDGETS = {**MASKING, **NETWORK, ENSEMBLE: 24}


def explain(black_box, texts, teacher="lime", *, targets=None, budget=None, seed=0):
    documents = [black_box.encoder.encode(text) for text in texts]
    targets = np.full(len(texts), PREDICTED) if targets is None else np.array(targets)
    budget = BUDGETS[teacher] if budget is None else budget
    found = teacher_named(teacher)
    return found.attribute(black_box, documents, targets, budget=budget, seed=seed)


def sign(target):
    return 1 if target == 1 else -1


def test_every_teacher_is_tested_here():
    assert {*MASKING, *NETWORK} == set(TEACHERS)
    assert {*BUDGETED} == {name for name in TEACHERS if BUDGETS[name] > 0}


# The value that is explained


def test_log_odds_of_two_classes_is_a_difference():
    logits = np.array([[1.0, 3.5], [-2.0, 0.25]])
    np.testing.assert_allclose(log_odds(logits, 1), [2.5, 2.25], rtol=1e-15)
    np.testing.assert_allclose(log_odds(logits, 0), [-2.5, -2.25], rtol=1e-15)


def test_log_odds_of_three_classes_is_that_of_the_probability():
    logits = np.random.default_rng(0).normal(size=(6, 3)) * 3
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([0, 1, 2, 2, 1, 0])
    p = chance[np.arange(6), targets]
    np.testing.assert_allclose(log_odds(logits, targets), np.log(p / (1 - p)), rtol=1e-10)


def test_log_odds_of_huge_logits_are_not_clipped():
    logits = np.array([[1e4, 0.0, 0.0], [-1e4, 1e4, 0.0], [800.0, 0.0, -800.0]])
    np.testing.assert_allclose(log_odds(logits, 0), [1e4 - math.log(2), -2e4, 800.0], rtol=1e-14)


def test_log_odds_leave_their_input_alone():
    logits = np.array([[1.0, 3.5]])
    log_odds(logits, 1)
    assert logits.tolist() == [[1.0, 3.5]]


# Every teacher


@pytest.mark.parametrize("teacher", MASKING)
def test_value_and_null_value(teacher, linear_black_box):
    """0.125 for the empty text, plus 1.5 - 0.75 + 1.5 for the words."""
    [record] = explain(linear_black_box, [TEXT], teacher)
    assert (record.target, record.teacher, record.id) == (1, teacher, "")
    assert record.value == pytest.approx(2.375, abs=1e-12)
    assert record.null_value == pytest.approx(0.125, abs=1e-12)
    assert record.weights.dtype == np.float64
    assert record.weights.shape == (15,)


@pytest.mark.parametrize("teacher", MASKING)
def test_the_other_class_turns_every_sign(teacher, linear_black_box):
    [pos], [neg] = (
        explain(linear_black_box, [TEXT], teacher, targets=[target]) for target in (1, 0)
    )
    np.testing.assert_allclose(neg.weights, -pos.weights, atol=1e-12)
    assert (neg.value, neg.null_value) == pytest.approx((-pos.value, -pos.null_value))
    assert np.abs(pos.weights).max() > 0.5


@pytest.mark.parametrize("teacher", MASKING)
def test_a_text_gets_its_result_in_any_company(teacher, linear_black_box):
    """To the bit: the neighbourhood is drawn from the text and the seed, nothing else."""
    together = explain(linear_black_box, TEXTS, teacher)
    backwards = explain(linear_black_box, TEXTS[::-1], teacher)[::-1]
    for text, mine, other in zip(TEXTS, together, backwards, strict=True):
        [alone] = explain(linear_black_box, [text], teacher)
        for record in (mine, other):
            assert record.weights.tolist() == alone.weights.tolist()
            assert (record.value, record.null_value) == (alone.value, alone.null_value)


@pytest.mark.parametrize("teacher", BUDGETS)
def test_a_text_gets_its_result_in_any_company_from_a_network(teacher, lively_black_box):
    texts = TEXTS[:3]
    together = explain(lively_black_box, texts, teacher)
    backwards = explain(lively_black_box, texts[::-1], teacher)[::-1]
    assert np.abs(together[0].weights).max() > 5e-3
    for text, mine, other in zip(texts, together, backwards, strict=True):
        [alone] = explain(lively_black_box, [text], teacher)
        for record in (mine, other):
            np.testing.assert_allclose(record.weights, alone.weights, atol=1e-5, rtol=0)
            assert record.target == alone.target


@pytest.mark.parametrize("teacher", BUDGETS)
def test_the_target_is_the_one_asked_for(teacher, lively_black_box):
    [pos], [neg] = (
        explain(lively_black_box, [TEXT], teacher, targets=[target]) for target in (1, 0)
    )
    assert (pos.target, neg.target) == (1, 0)
    np.testing.assert_allclose(neg.weights, -pos.weights, atol=1e-5, rtol=0)


def test_all_copies_share_the_calls(linear_black_box):
    """Full and null text of every text too, and they tell which class is predicted."""
    explain(linear_black_box, TEXTS, "lime")
    assert linear_black_box.calls == [5 * 24]


def test_many_copies_of_long_texts_are_sent_in_parts(linear_black_box):
    """A million tokens at a time; the parts join without a seam."""
    text = "great plot dull " * 300
    [record] = explain(linear_black_box, [text], "occlusion", targets=[1])
    assert len(linear_black_box.calls) > 1
    assert sum(linear_black_box.calls) == 902
    np.testing.assert_allclose(record.weights, [1.5, 0.0, -0.75] * 300, atol=1e-9)


def test_copies_are_answered_in_order(linear_black_box):
    documents = [linear_black_box.encoder.encode(text) for text in ("great dull", "dull")]
    masks = [np.array([[True, True], [False, True], [True, False]]), np.array([[False], [True]])]
    first, second = evaluate_copies(linear_black_box, documents, masks)
    np.testing.assert_allclose(log_odds(first, 1), [0.875, -0.625, 1.625], atol=1e-12)
    np.testing.assert_allclose(log_odds(second, 0), [-0.125, 0.625], atol=1e-12)
    assert first.shape == (3, 2)


def test_the_generator_depends_on_text_and_seed():
    def draw(text, seed):
        return text_rng(text, seed).integers(2**60)

    assert draw("a film", 0) == draw("a film", 0)
    assert len({draw("a film", 0), draw("a film", 1), draw("a film.", 0)}) == 3


@pytest.mark.parametrize("name", ["oracle", "", "LIME", "lime+occlusion", "ensemble"])
def test_an_unknown_teacher_is_answered_with_those_that_exist(name):
    with pytest.raises(ValueError, match=r"choose one of occlusion, .*deep_shap or ensemble:NAME"):
        teacher_named(name)


def test_which_teachers_take_a_budget():
    assert [name for name in TEACHERS if takes_budget(name)] == [
        "integrated_gradients", "lime", "kernel_shap", "permutation_shap",
    ]  # fmt: skip
    assert takes_budget("ensemble:occlusion+lime")
    assert not takes_budget("ensemble:occlusion+gradient")


@pytest.fixture
def three_classes(lively_black_box, enliven):
    """A lively BERT with labels A, B and C."""
    config = copy.deepcopy(lively_black_box.model.config)
    config.num_labels = 3
    torch.manual_seed(2)
    model = type(lively_black_box.model)(config)
    enliven(model)
    return HuggingFaceBlackBox(model, lively_black_box.encoder, ("A", "B", "C"))


def test_students_of_two_classes_are_taught_the_predicted_one(lively_black_box):
    documents = [lively_black_box.encoder.encode(text) for text in TEXTS]
    assert training_targets(lively_black_box, documents, seed=0).tolist() == [PREDICTED] * 5


def test_students_of_three_classes_are_taught_the_others_too(three_classes):
    """A share of texts, each other class as often; decided by the text and the seed alone."""
    texts = [f"film number {number}" for number in range(400)]
    documents = [three_classes.encoder.encode(text) for text in texts]
    labels = three_classes.logits(documents).argmax(1)
    found = training_targets(three_classes, documents, seed=0)
    turned = (found - labels) % 3
    assert abs((turned > 0).mean() - OTHER_SHARE) < 4 * math.sqrt(0.25 * 0.75 / 400)
    assert abs((turned == 1).sum() - (turned == 2).sum()) < 4 * math.sqrt((turned > 0).sum())
    backwards = training_targets(three_classes, documents[::-1], seed=0)[::-1]
    assert backwards.tolist() == found.tolist()
    assert training_targets(three_classes, documents, seed=1).tolist() != found.tolist()


# Occlusion


def test_occlusion_finds_the_contributions(linear_black_box, placed_black_box):
    for black_box in (linear_black_box, placed_black_box):
        for record, text in zip(explain(black_box, TEXTS, "occlusion"), TEXTS, strict=True):
            document = black_box.encoder.encode(text)
            expected = sign(record.target) * black_box.contributions(document)
            np.testing.assert_allclose(record.weights, expected, atol=1e-12)
            assert record.budget == len(document.words) + 2


def test_repeated_words_are_separate(placed_black_box):
    [record] = explain(placed_black_box, ["great great great great"], "occlusion", targets=[1])
    np.testing.assert_allclose(record.weights, [1.0, -0.5, 0.25, 1.0], atol=1e-12)


@pytest.mark.parametrize("teacher", BUDGETS)
def test_a_word_without_pieces_weighs_nothing(teacher, lively_black_box):
    [record] = explain(lively_black_box, ["great \x00 film"], teacher)
    assert record.weights[[0, 2]].all()
    assert record.weights[1] == 0


def test_masks_of_occlusion_leave_the_document_alone(linear_black_box):
    [document] = [linear_black_box.encoder.encode(TEXT)]
    before = document.windows[0].input_ids.copy()
    occlusion.TEACHER.attribute(linear_black_box, [document], np.array([1]), budget=0, seed=0)
    np.testing.assert_array_equal(document.windows[0].input_ids, before)
