import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lime.lime_text import LimeTextExplainer

from training.attribution import lime
from training.attribution.lime import draw, estimate
from training.attribution.record import text_rng

TEXT = "A great film , but the ending was dull and the plot was great ."


def explain(black_box, text, *, target=1, budget, seed=0):
    document = black_box.encoder.encode(text)
    [record] = lime.TEACHER.attribute(
        black_box, [document], np.array([target]), budget=budget, seed=seed
    )
    return record


def test_lime_finds_the_contributions(linear_black_box, placed_black_box):
    """The values are linear in the masks, so the ridge penalty is the only error.

    With S the weighted scatter of the masks it is (S + 1)^-1 w: at most |w| / (1 + least
    eigenvalue of S), which falls as one over the budget.
    """
    for black_box in (linear_black_box, placed_black_box):
        document = black_box.encoder.encode(TEXT)
        truth = black_box.contributions(document)
        errors = []
        for budget in (250, 2000):
            record = explain(black_box, TEXT, budget=budget)
            masks = draw(len(truth), budget, text_rng(TEXT, 0)).astype(np.float64)
            distance = 100 * (1 - np.sqrt(masks.mean(1)))
            kernel = np.exp(-(distance**2) / (2 * 25**2))
            centred = masks - np.average(masks, axis=0, weights=kernel)
            least = np.linalg.eigvalsh((centred * kernel[:, None]).T @ centred)[0]
            errors.append(np.linalg.norm(record.weights - truth))
            assert errors[-1] <= np.linalg.norm(truth) / (1 + least) + 1e-9
        assert errors[0] < 0.15 * np.linalg.norm(truth)
        assert errors[1] < 0.02 * np.linalg.norm(truth)


def test_lime_keeps_repeated_words_apart(placed_black_box):
    record = explain(placed_black_box, "great great great great", budget=2000)
    np.testing.assert_allclose(record.weights, [1.0, -0.5, 0.25, 1.0], atol=0.02)


def test_lime_spends_its_budget(linear_black_box):
    record = explain(linear_black_box, TEXT, budget=37)
    assert linear_black_box.calls == [37]
    assert record.budget == 37
    with pytest.raises(ValueError, match="at least 3"):
        explain(linear_black_box, TEXT, budget=2)


def test_lime_draws_anew_for_another_seed(placed_black_box):
    first, again, other = (
        explain(placed_black_box, TEXT, budget=30, seed=seed) for seed in (5, 5, 6)
    )
    assert first.weights.tolist() == again.weights.tolist()
    assert np.abs(first.weights - other.weights).max() > 1e-6
    assert (first.seed, other.seed) == (5, 6)


def test_a_single_word_can_be_explained(linear_black_box):
    """By hand: one copy of weight 1, 99 null texts of weight e^-8 at cosine distance 1.

    Their scatter is 0.0321, against which LIME's ridge penalty of 1 leaves 3 % of the 0.75: LIME's
    weights of very short texts keep their sign and lose their size.
    """
    record = explain(linear_black_box, "dull", target=0, budget=100)
    null = 99 * math.exp(-8)
    scatter = null / (1 + null)
    assert record.weights == pytest.approx([0.75 * scatter / (1 + scatter)])


@given(st.integers(1, 40), st.integers(2, 60), st.integers(2, 60), st.integers(0, 99))
def test_fewer_draws_are_the_first_of_more(words, one, other, seed):
    small, large = sorted((one, other))
    first, more = (draw(words, copies, np.random.default_rng(seed)) for copies in (small, large))
    assert (more[:small] == first).all()


def test_the_neighbourhood_is_that_of_lime():
    """Sizes uniform in 1 … n, places equally likely; 4 standard errors."""
    draws, words = 20_000, 5
    masks = draw(words, draws + 2, np.random.default_rng(0))
    assert masks[0].all()
    assert not masks[1].any()
    removed = (~masks[2:]).sum(1)
    share = np.bincount(removed, minlength=words + 1) / draws
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 1 / words, atol=4 * math.sqrt(0.2 * 0.8 / draws))
    for size in range(1, words):
        rows = ~masks[2:][removed == size]
        rate = size / words
        error = 4 * math.sqrt(rate * (1 - rate) / len(rows))
        np.testing.assert_allclose(rows.mean(0), rate, atol=error)


@pytest.fixture
def lime_package():
    """LIME as published: masks that it drew and what it made of values that we choose."""

    def run(words, samples, value_of):
        seen: list[np.ndarray] = []

        def classify(texts):
            seen.extend(np.array([w != "x" for w in text.split()]) for text in texts)
            values = np.array([value_of(mask) for mask in seen])
            return np.stack([-values, values], axis=1)

        explainer = LimeTextExplainer(
            bow=False, mask_string="x", split_expression=r"\s+", random_state=7,
            feature_selection="none",
        )  # fmt: skip
        text = " ".join(f"w{number}" for number in range(words))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own
            found = explainer.explain_instance(
                text, classify, labels=(1,), num_features=words, num_samples=samples
            )
        return np.array(seen), dict(found.local_exp[1])

    return run


@pytest.mark.parametrize(("words", "samples"), [(2, 10), (7, 64), (12, 200)])
def test_the_local_model_is_that_of_the_package(words, samples, lime_package):
    """Same masks and values: distances, kernel, ridge and intercept all agree."""
    weights = np.random.default_rng(1).normal(size=words)

    def value_of(mask):
        return np.tanh(mask @ weights) + 0.3 * mask[0] * mask[-1]  # not linear

    masks, expected = lime_package(words, samples, value_of)
    assert masks.shape == (samples, words)
    values = np.array([value_of(mask) for mask in masks])
    found = estimate(masks, values)
    np.testing.assert_allclose(found, [expected[word] for word in range(words)], atol=1e-10)


def test_the_null_text_is_as_far_as_the_package_says():
    """Its cosine is undefined; scikit-learn, and so LIME, takes the distance for 1."""
    from sklearn.metrics import pairwise_distances

    masks = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=np.float64)
    expected = 100 * pairwise_distances(masks, masks[:1], metric="cosine").ravel()
    np.testing.assert_allclose(lime._cosine_distances(masks), expected, atol=1e-12)
    kernel = LimeTextExplainer(random_state=0).base.kernel_fn
    np.testing.assert_allclose(lime._kernel(expected), kernel(expected), rtol=1e-15)
