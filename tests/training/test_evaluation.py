import json
import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from models import bundle as bundles
from models.explainer import Explainer
from training.attribution.record import text_rng
from training.attribution.teachers import teacher_named
from training.blackbox.graph import OnnxBlackBox
from training.data import Example
from training.evaluation.evaluate import Setting, evaluate
from training.evaluation.faithfulness import (
    AOPC_SHARES,
    MEASURES,
    RANDOM_DRAWS,
    measure_faithfulness,
    random_weights,
    top_words,
)
from training.export.graph import to_torch
from training.export.precision import derive

# Twelve words; the log-odds of POS are 1.5 + .75 - 1 + .5 - .25 and the bias of .125: 1.625.
TEXT = "a great film with moving music but boring plot , funny slow"
TRUTH = [0, 1.5, 0, 0, 0.75, 0, 0, -1, 0, 0, 0.5, -0.25]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def places(mask):
    return np.flatnonzero(mask).tolist()


# Which words are chosen


@pytest.mark.parametrize(
    ("words", "share", "count"),
    [
        (30, 0.1, 3),  # 3.0000000000000004 in binary
        (100, 0.29, 29),  # 28.999999999999996
        (10, 0.3, 3), (20, 0.3, 6), (11, 0.3, 4), (1, 0.3, 1), (12, 0.05, 1), (20, 0.05, 1),
        (21, 0.05, 2), (1, 0.01, 1), (100, 0.01, 1), (101, 0.01, 2), (7, 0.5, 4), (5, 1.0, 5),
        (60, 0.05, 3), (1000, 0.3, 300), (110, 0.1, 11),
    ],
)  # fmt: skip
def test_k_is_the_ceiling(words, share, count):
    assert top_words(np.arange(words, dtype=np.float64), share).sum() == count


@given(st.integers(1, 3000), st.sampled_from([1, 5, 10, 20, 30, 50]))
def test_k_is_the_ceiling_of_the_exact_product(words, percent):
    expected = -(-percent * words // 100)
    assert top_words(np.zeros(words), percent / 100).sum() == expected


def test_words_are_chosen_by_signed_weight():
    weights = np.array([0.1, -9.0, 0.5, 0.0, 0.3, -0.2])
    assert places(top_words(weights, 0.5)) == [0, 2, 4]
    assert places(top_words(weights, 0.6)) == [0, 2, 3, 4]


def test_ties_go_to_the_earlier_word():
    weights = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    assert places(top_words(weights, 0.3)) == [1, 3]
    assert places(top_words(weights, 0.6)) == [0, 1, 3, 4]
    assert places(top_words(np.full(50, -0.5), 0.1)) == [0, 1, 2, 3, 4]


# Faithfulness on a classifier whose answers are sums


def test_the_text_has_the_contributions_that_follow(linear_black_box):
    document = linear_black_box.encoder.encode(TEXT)
    assert linear_black_box.contributions(document).tolist() == TRUTH


def test_the_true_explanation_by_hand(linear_black_box):
    """k = 1, 1, 2, 3 and 6 of 12 words for AOPC, 4 for the rest.

    In order of weight: 1.5, .75, .5, then the zeros by their places.
    """
    document = linear_black_box.encoder.encode(TEXT)
    [found] = measure_faithfulness(linear_black_box, document, 1, [np.array(TRUTH)])
    full = sigmoid(1.625)
    without = [sigmoid(1.625 - gone) for gone in (1.5, 1.5, 2.25, 2.75, 2.75)]
    only = [sigmoid(0.125 + kept) for kept in (1.5, 1.5, 2.25, 2.75, 2.75)]
    assert AOPC_SHARES == (0.01, 0.05, 0.1, 0.2, 0.5)
    assert found.keys() == MEASURES.keys()
    assert found["aopc_comprehensiveness"] == pytest.approx(full - np.mean(without), abs=1e-12)
    assert found["aopc_sufficiency"] == pytest.approx(full - np.mean(only), abs=1e-12)
    assert found["aopc_sufficiency"] < 0  # what opposes is not among the words kept
    assert found["log_odds_drop"] == pytest.approx(2.75, abs=1e-12)
    assert found["agreement"] == 1.0


def test_the_opposite_explanation_by_hand(linear_black_box):
    """Its top words are -1, -.25 and zeros; with only these the label is NEG."""
    document = linear_black_box.encoder.encode(TEXT)
    [found] = measure_faithfulness(linear_black_box, document, 1, [-np.array(TRUTH)])
    full = sigmoid(1.625)
    # Its 6 best words are the 2 that oppose and 4 of the 7 zeros.
    without = [sigmoid(1.625 + gone) for gone in (1, 1, 1.25, 1.25, 1.25)]
    only = [sigmoid(0.125 - kept) for kept in (1, 1, 1.25, 1.25, 1.25)]
    assert found["aopc_comprehensiveness"] == pytest.approx(full - np.mean(without), abs=1e-12)
    assert found["aopc_sufficiency"] == pytest.approx(full - np.mean(only), abs=1e-12)
    assert found["log_odds_drop"] == pytest.approx(-1.25, abs=1e-12)
    assert found["agreement"] == 0.0


def test_explanations_of_a_negative_label(linear_black_box):
    """The words that support NEG, seen from NEG; log-odds of NEG are 0.75 - 0.125 + 1."""
    document = linear_black_box.encoder.encode("the boring dull plot")
    weights = np.array([0.0, 1.0, 0.75, 0.0])
    [found] = measure_faithfulness(linear_black_box, document, 0, [weights])
    assert found["log_odds_drop"] == pytest.approx(1.75, abs=1e-12)
    assert found["agreement"] == 1.0
    without = [sigmoid(1.625 - gone) for gone in (1, 1, 1, 1, 1.75)]
    expected = sigmoid(1.625) - np.mean(without)
    assert found["aopc_comprehensiveness"] == pytest.approx(expected, abs=1e-12)


def test_explanations_are_measured_apart_in_one_call(linear_black_box):
    document = linear_black_box.encoder.encode(TEXT)
    several = [np.array(TRUTH), -np.array(TRUTH), np.arange(12.0)]
    together = measure_faithfulness(linear_black_box, document, 1, several)
    assert linear_black_box.calls == [1 + 3 * 2 * 6]
    for weights, found in zip(several, together, strict=True):
        assert [found] == measure_faithfulness(linear_black_box, document, 1, [weights])


def test_a_text_of_one_word(linear_black_box):
    document = linear_black_box.encoder.encode("great")
    [found] = measure_faithfulness(linear_black_box, document, 1, [np.array([0.3])])
    assert found["aopc_comprehensiveness"] == pytest.approx(sigmoid(1.625) - sigmoid(0.125))
    assert found["aopc_sufficiency"] == pytest.approx(0.0, abs=1e-15)
    assert found["log_odds_drop"] == pytest.approx(1.5)


def test_random_explanations_are_five_different_ones():
    draws = random_weights(40, text_rng("a film", 1))
    assert len(draws) == RANDOM_DRAWS == 5
    chosen = {tuple(places(top_words(draw, 0.3))) for draw in draws}
    assert len(chosen) == 5
    assert all(len(words) == 12 for words in chosen)
    again = random_weights(40, text_rng("a film", 1))
    assert [draw.tolist() for draw in again] == [draw.tolist() for draw in draws]


def test_random_words_are_drawn_evenly():
    """Each of 20 words is among the top 30 % in 30 % of 2,000 draws; 4 standard errors."""
    rng = np.random.default_rng(0)
    draws = [draw for _ in range(400) for draw in random_weights(20, rng)]
    share = np.mean([top_words(draw, 0.3) for draw in draws], axis=0)
    np.testing.assert_allclose(share, 0.3, atol=4 * math.sqrt(0.21 / 2000))


# The whole evaluation, on a bundle made from torch modules

EXAMPLES = [
    Example(str(number), f"the {subject} was {word} and {word} .", label)
    for number, (subject, word, label) in enumerate(
        (subject, word, label)
        for subject in ("film", "plot", "music")
        for word, label in (("great", "POS"), ("dull", "NEG"), ("loved", "POS"))
    )
]
FAITHFULNESS = {"aopc_comprehensiveness", "aopc_sufficiency", "log_odds_drop", "agreement"}


@pytest.fixture(scope="module")
def explainer(torch_bundle):
    return Explainer.load(torch_bundle.path, device="cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def result(explainer, work):
    teachers = {"lime": 16, "occlusion": 0, "integrated_gradients": 6}
    return evaluate(explainer, EXAMPLES, Setting(teachers, limit=6, seed=2), work)


def test_the_json_has_the_agreed_keys(result):
    """And `setting`, which tells what the numbers are of, and more about the classifier."""
    assert set(result) == {
        "n", "n_explained", "accuracy", "labels", "explainer", "teachers", "random",
        "label_only_ms_per_text", "setting", "classification",
    }  # fmt: skip
    assert set(result["teachers"]) == {"lime", "occlusion", "integrated_gradients"}
    for row in (result["explainer"], *result["teachers"].values()):
        assert set(row) == FAITHFULNESS | {"ms_per_text"}
        assert row["ms_per_text"] > 0
    assert set(result["random"]) == FAITHFULNESS
    assert result["label_only_ms_per_text"] > 0
    assert result["classification"]["accuracy"] == result["accuracy"]
    assert sum(map(sum, result["classification"]["confusion"])) == result["n"]
    assert json.loads(json.dumps(result)) == result
    assert all(
        measure.low <= row[name] <= measure.high
        for row in (result["explainer"], result["random"])
        for name, measure in MEASURES.items()
    )


def test_counts_and_accuracy(result, explainer):
    right = [answer.label for answer in explainer.predict([part.text for part in EXAMPLES])]
    expected = np.mean([mine == part.label for mine, part in zip(right, EXAMPLES, strict=True)])
    assert (result["n"], result["n_explained"]) == (9, 6)
    assert result["accuracy"] == pytest.approx(expected)
    assert result["labels"] == ["NEG", "POS"]


def test_an_evaluation_is_the_mean_over_texts(explainer, tmp_path):
    """The student's, a teacher's and the random numbers, worked out from their parts."""
    texts = [part.text for part in EXAMPLES[:2]]
    setting = Setting({"occlusion": 0}, seed=5)
    result = evaluate(explainer, EXAMPLES[:2], setting, tmp_path)
    black_box, _ = to_torch(explainer.bundle)
    rows: dict[str, list] = {"explainer": [], "occlusion": [], "random": []}
    for text, answer in zip(texts, explainer.explain(texts), strict=True):
        document = explainer.encode(text)
        target = explainer.labels.index(answer.label)
        full = black_box.logits([document])[0]
        odds = full[target] - full[1 - target]
        occlusion = []
        for word in range(len(document.words)):
            keep = np.arange(len(document.words)) != word
            logits = black_box.logits([document], [keep])[0]
            occlusion.append(odds - (logits[target] - logits[1 - target]))
        student = np.array([word.weight for word in answer.words])
        draws = random_weights(len(document.words), text_rng(text, 6))
        first, second, *drawn = measure_faithfulness(
            black_box, document, target, [student, np.array(occlusion), *draws]
        )
        rows["explainer"].append(first)
        rows["occlusion"].append(second)
        rows["random"].append({name: np.mean([draw[name] for draw in drawn]) for name in MEASURES})
    found = {"explainer": result["explainer"], "random": result["random"], **result["teachers"]}
    for name, of_texts in rows.items():
        for measure in MEASURES:
            expected = np.mean([row[measure] for row in of_texts])
            assert found[name][measure] == pytest.approx(expected, abs=1e-5), (name, measure)


def test_a_second_evaluation_reads_the_first(result, explainer, work):
    """Milliseconds too, which nobody could measure twice alike; only those of nothing new."""
    teachers = {"lime": 16, "occlusion": 0, "integrated_gradients": 6}
    again = evaluate(explainer, EXAMPLES, Setting(teachers, limit=6, seed=2), work)
    assert again == result


def test_another_seed_explains_other_texts_in_other_ways(result, explainer, work):
    other = evaluate(explainer, EXAMPLES, Setting({"lime": 16}, limit=6, seed=3), work)
    assert other["accuracy"] == result["accuracy"]
    assert other["random"] != result["random"]
    assert other["teachers"]["lime"] != result["teachers"]["lime"]


def test_long_texts_are_explained_whole(explainer, tmp_path):
    example = Example("long", "the plot was great but the ending was dull . " * 8, "POS")
    assert len(explainer.encode(example.text).windows) > 1
    result = evaluate(explainer, [example], Setting({"occlusion": 0}), tmp_path)
    assert result["n_explained"] == 1
    assert all(math.isfinite(result["explainer"][name]) for name in MEASURES)


# A bundle as it is served

TEXTS = [part.text for part in EXAMPLES]


@pytest.fixture(scope="module")
def integer(torch_bundle, tmp_path_factory):
    """The bundle in int8."""
    path = tmp_path_factory.mktemp("integer") / "bundle"
    derive(
        torch_bundle, "int8", calibration=TEXTS, validation=TEXTS, path=path, least=(0.5, 0.5)
    )  # the weights are random, and rationales near to ties
    return Explainer.load(path, device="cpu")


def test_masked_copies_are_answered_by_the_graph_that_is_served(integer, tmp_path):
    """Occlusion is of its answers, too; what looks inside gets the torch classifier."""
    example = EXAMPLES[0]
    teachers = {"occlusion": 0, "gradient": 0}
    result = evaluate(integer, [example], Setting(teachers, precision="graph"), tmp_path)
    graph, (torch, _) = OnnxBlackBox(integer), to_torch(integer.bundle)
    document, [answer] = integer.encode(example.text), integer.explain([example.text])
    target = integer.labels.index(answer.label)
    found = {"explainer": np.array([word.weight for word in answer.words])}
    for name, black_box in (("occlusion", graph), ("gradient", torch)):
        [record] = teacher_named(name).attribute(
            black_box, [document], np.array([target]), budget=0, seed=0
        )
        found[name] = record.weights
    expected = measure_faithfulness(graph, document, target, [*found.values()])
    other = measure_faithfulness(torch, document, target, [*found.values()])
    assert expected != other  # in 8 bits answers are not those of the same weights in float32
    assert result["setting"]["precision"] == "graph"
    rows = {"explainer": result["explainer"], **result["teachers"]}
    for name, numbers in zip(found, expected, strict=True):
        for measure in MEASURES:
            assert rows[name][measure] == pytest.approx(numbers[measure], abs=1e-12)


def test_another_explainer_of_the_same_graph_finds_the_teachers_work(integer, tmp_path):
    setting = Setting({"occlusion": 0}, precision="graph")
    evaluate(integer, EXAMPLES[:1], setting, tmp_path)
    stores = {path.name for path in tmp_path.iterdir()}
    model = onnx.load_model_from_string(integer.bundle.model_bytes())
    [bias] = [t for t in model.graph.initializer if t.name == "explainer.regression.bias"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    changed = bundles.save_changed(
        integer.bundle, tmp_path / "other", model=model.SerializeToString()
    )
    other = Explainer.load(changed.path, device="cpu", check_golden=False)
    evaluate(other, EXAMPLES[:1], setting, tmp_path)
    assert len({path.name for path in tmp_path.iterdir()} - stores) == 2  # bundle, faithfulness
