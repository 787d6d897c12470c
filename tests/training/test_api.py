"""`training.attribution.attribute`, the library's one call."""

import numpy as np
import pytest

from training.attribution import attribute
from training.attribution.teachers import TEACHERS, default_budget, teacher_named

TEXTS = ["a great film , not dull", "dull"]


def test_words_of_a_linear_black_box_get_what_they_add(linear_black_box):
    """`great` adds 1.5 to POS, `not` -0.25 and `dull` -0.75; each text explains its own label."""
    first, second = attribute(linear_black_box, TEXTS, teacher="occlusion")
    assert (first.id, first.target, second.id, second.target) == ("0", 1, "1", 0)
    np.testing.assert_allclose(first.weights, [0, 1.5, 0, 0, -0.25, -0.75], atol=1e-9)
    np.testing.assert_allclose(second.weights, [0.75], atol=1e-9)
    [other] = attribute(linear_black_box, TEXTS[:1], teacher="occlusion", target="NEG")
    np.testing.assert_allclose(other.weights, -first.weights, atol=1e-9)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_budget_that_nobody_names_is_the_teachers_own(teacher, lively_black_box):
    [found] = attribute(lively_black_box, TEXTS[:1], teacher=teacher)
    document = lively_black_box.encoder.encode(TEXTS[0])
    assert found.budget == teacher_named(teacher).spent(document, default_budget(teacher))
    if teacher == "integrated_gradients":
        assert found.budget == 22


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "tea"}, "no teacher 'tea'"),
        ({"target": "MAYBE"}, "no label 'MAYBE'; the black box knows NEG, POS"),
        ({"texts": [" "]}, "empty or blank"),
        ({"teacher": "lime", "budget": 1}, "budget"),
        ({"teacher": "lrp"}, "needs a torch black box"),
    ],
)
def test_what_cannot_be_explained_is_refused(changes, message, linear_black_box):
    settings = {"texts": TEXTS, **changes}
    with pytest.raises(ValueError, match=message):
        attribute(linear_black_box, **settings)
