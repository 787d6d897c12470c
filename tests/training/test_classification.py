import json

import numpy as np
import pytest

from training.evaluation.classification import measure_classification

# Gold 0 0 0 1 1; found 0 1 0 1 0. Scores of class 1: -2, 1, -1, 3, -1.5.
LOGITS = np.array([[2.0, 0], [0, 1], [1, 0], [0, 3], [1.5, 0]])
GOLD = np.array([0, 0, 0, 1, 1])


def test_two_classes_worked_by_hand():
    found = measure_classification(LOGITS, GOLD, ("NEG", "POS"))
    assert found["accuracy"] == 0.6
    assert found["confusion"] == [[2, 1], [1, 1]]
    assert found["labels"] == {
        "NEG": pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3}),
        "POS": pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2}),
    }
    assert found["macro_f1"] == pytest.approx(7 / 12)
    assert found["roc_auc"] == pytest.approx(4 / 6)  # of six pairs, -1.5 beats only -2
    json.dumps(found)


def test_three_classes_and_one_that_never_occurs():
    logits = np.eye(3)[[0, 1, 2, 2]] * 4
    found = measure_classification(logits, np.array([0, 1, 2, 2]), ("A", "B", "C"))
    assert (found["accuracy"], found["roc_auc"], found["macro_f1"]) == (1, 1, 1)
    found = measure_classification(logits[:2], np.array([0, 1]), ("A", "B", "C"))
    assert (found["roc_auc"], found["macro_f1"]) == (1, 1)
    assert found["labels"]["C"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_the_area_sees_logits_that_round_to_certain():
    """As probabilities both would be 1.0, a tie."""
    logits = np.array([[0.0, 90.0], [0, 91], [0, -1]])
    assert measure_classification(logits, np.array([0, 1, 0]), ("A", "B"))["roc_auc"] == 1


def test_a_class_that_is_no_gold_label_does_not_lower_the_means():
    """As NEUTRAL, which no text of a validation set has."""
    third = np.column_stack([LOGITS, np.full(len(LOGITS), -9.0)])
    two = measure_classification(LOGITS, GOLD, ("NEG", "POS"))
    three = measure_classification(third, GOLD, ("NEG", "POS", "NEUTRAL"))
    assert three["macro_f1"] == two["macro_f1"]
    assert three["roc_auc"] == two["roc_auc"]
