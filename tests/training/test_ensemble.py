"""Several teachers at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.explainer import Explainer
from training.attribution.ensemble import EnsembleTeacher, mean_ranks
from training.attribution.record import PREDICTED
from training.attribution.reliability import split_half
from training.attribution.run import attribute_texts
from training.attribution.store import AttributionStore
from training.attribution.teachers import TEACHERS, teacher_named
from training.data import Example
from training.evaluation.evaluate import Setting, evaluate

TEXT = "A great film , but the ending was dull and the plot was great ."
TEXTS = {"a": TEXT, "b": "dull", "c": "we loved the clever script"}
NAME = "ensemble:occlusion+lime+kernel_shap"

weights = arrays(np.float64, 6, elements=st.sampled_from([-2.5, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0]))


def explain(black_box, text, name, *, target=PREDICTED, budget=30, known=None):
    document = black_box.encoder.encode(text)
    [record] = teacher_named(name).attribute(
        black_box, [document], np.array([target]), budget=budget, seed=0, known=known
    )
    return record


def test_ranks_by_hand():
    """|w| ranked 1 … 4 over 4, the sign kept; equal ones share the mean rank."""
    np.testing.assert_allclose(mean_ranks([np.array([3.0, -1, 0.5, -9])]), [0.75, -0.5, 0.25, -1])
    np.testing.assert_allclose(mean_ranks([np.array([2.0, -2, 0, 1])]), [0.875, -0.875, 0, 0.5])
    both = mean_ranks([np.array([3.0, -1, 0.5, -9]), np.array([2.0, -2, 0, 1])])
    np.testing.assert_allclose(both, [0.8125, -0.6875, 0.125, -0.25])
    rounding = mean_ranks([np.array([5.0, 5e-12, 5.0 + 1e-12, -1e-12])])
    np.testing.assert_allclose(rounding, [0.875, 0, 0.875, 0])
    assert mean_ranks([np.zeros(0), np.zeros(0)]).shape == (0,)
    assert mean_ranks([np.array([-7.0])]).tolist() == [-1]


@given(weights)
def test_of_one_teacher_order_and_sign_are_kept(found):
    ranks = mean_ranks([found])
    assert (np.sign(ranks) == np.sign(found)).all()
    assert np.abs(ranks).max() <= 1
    for one in range(6):
        for other in range(6):
            if found[one] > found[other]:
                assert ranks[one] > ranks[other]
            elif found[one] == found[other]:
                assert ranks[one] == ranks[other]


@given(weights, weights, st.floats(0.1, 10), st.floats(0.1, 10))
def test_scales_do_not_matter_and_order_of_members_neither(one, other, first, second):
    expected = mean_ranks([one, other])
    np.testing.assert_allclose(mean_ranks([one * first, other * second]), expected, atol=1e-12)
    np.testing.assert_allclose(mean_ranks([other, one]), expected, atol=1e-12)
    np.testing.assert_allclose(mean_ranks([-one, -other]), -expected, atol=1e-12)
    assert (expected[(one == 0) & (other == 0)] == 0).all()


def test_it_is_the_mean_of_its_members(linear_black_box):
    record = explain(linear_black_box, TEXT, NAME)
    members = [
        explain(linear_black_box, TEXT, name) for name in ("occlusion", "lime", "kernel_shap")
    ]
    assert [part.teacher for part in record.members] == ["occlusion", "lime", "kernel_shap"]
    for mine, theirs in zip(record.members, members, strict=True):
        assert mine.weights.tolist() == theirs.weights.tolist()
    expected = mean_ranks([part.weights for part in members])
    assert record.weights.tolist() == expected.tolist()
    assert (record.teacher, record.target, record.budget) == (NAME, 1, 17 + 30 + 30)
    assert (record.value, record.null_value) == (members[0].value, members[0].null_value)
    document = linear_black_box.encoder.encode(TEXT)
    assert teacher_named(NAME).spent(document, 30) == record.budget


def test_all_members_explain_the_same_class(linear_black_box):
    for target in (0, 1, PREDICTED):
        record = explain(linear_black_box, "dull", NAME, target=target)
        assert {part.target for part in record.members} == {0 if target == PREDICTED else target}
        assert record.target == record.members[0].target


def test_members_go_on_from_what_they_know(linear_black_box):
    first = explain(linear_black_box, TEXT, NAME, budget=30)
    linear_black_box.calls.clear()
    more = explain(linear_black_box, TEXT, NAME, target=1, budget=50, known=[first])
    assert sum(linear_black_box.calls) == 20 + 20
    assert (
        more.weights.tolist() == explain(linear_black_box, TEXT, NAME, budget=50).weights.tolist()
    )


def test_members_are_stored_under_their_own_names(linear_black_box, tmp_path):
    store = AttributionStore(tmp_path, {})
    found = attribute_texts(linear_black_box, TEXTS, teacher=NAME, budget=20, seed=0, store=store)
    assert [(record.id, record.teacher) for record in found] == [(name, NAME) for name in TEXTS]
    assert found[1].weights.tolist() == [1.0]  # `dull` alone, for NEG
    linear_black_box.calls.clear()
    for name in ("lime", "occlusion", "ensemble:kernel_shap+occlusion"):
        attribute_texts(linear_black_box, TEXTS, teacher=name, budget=20, seed=0, store=store)
    assert linear_black_box.calls == []
    assert store.seconds_per_text(TEXTS, found) > 0


def test_it_is_compared_like_any_teacher(torch_bundle, tmp_path):
    explainer = Explainer.load(torch_bundle.path, device="cpu")
    name = "ensemble:occlusion+integrated_gradients"
    example = Example("a", "the film was great .", "POS")
    result = evaluate(explainer, [example], Setting({name: 6}), tmp_path)
    assert set(result["teachers"]) == {name}


@pytest.mark.parametrize(
    "names",
    ["", "lime", "lime+lime", "lime+", "+", "lime+occlusion+lime", "ensemble:lime+occlusion+lrp"],
)
def test_names_that_are_no_ensemble(names):
    with pytest.raises(ValueError, match=r"^ensemble:.*: name two or more different|^no teacher"):
        teacher_named(f"ensemble:{names}")


def test_an_unknown_member_is_named():
    with pytest.raises(ValueError, match="no teacher 'tarot'"):
        teacher_named("ensemble:lime+tarot")


def test_any_teachers_may_be_members():
    found = teacher_named("ensemble:" + "+".join(TEACHERS))
    assert isinstance(found, EnsembleTeacher)
    assert [member.name for member in found.members] == [*TEACHERS]
    assert teacher_named(found.name) == found


def test_where_a_member_tells_nothing_the_ensemble_tells_nothing(paired_black_box):
    """Fifteen words, fifteen pairs: Kernel SHAP's halves are undefined there."""
    document = paired_black_box.encoder.encode(" ".join(["film"] * 15))
    for name in ("kernel_shap", "ensemble:occlusion+kernel_shap", "ensemble:lime+kernel_shap"):
        teacher = teacher_named(name)
        records = teacher.attribute(paired_black_box, [document], np.array([1]), budget=32, seed=0)
        found = split_half(teacher, [document], records)
        assert np.isnan(found.reliability), name
        assert found.undefined == 1
