"""The bundles that come with l2e: whole, a pair, and of one mind."""

import numpy as np
import onnxruntime as ort
import pytest

from models import SHIPPED, SHIPPED_INT8
from models.device import integer_options, processor_flags, shipped_bundle
from models.explainer import Explainer

TEXTS = [
    "The plot is thin, but the two leads are wonderful.",
    "Two hours of my life that nobody gives back.",
    "I laughed more than I expected to, and left early all the same.",
]


@pytest.fixture(scope="module")
def shipped():
    """Loaded, so that their golden answers have been asked for."""
    return [Explainer.load(path, device="cpu") for path in (SHIPPED, SHIPPED_INT8)]


def test_one_is_made_from_the_other(shipped):
    whole, small = (one.bundle.manifest for one in shipped)
    assert (whole.precision, small.precision) == ("fp32", "int8")
    found = small.card["precision"]
    assert found["derived_from"] == shipped[0].bundle.digest
    assert found["label_agreement"] >= 0.99
    assert found["rationale_f1"] >= 0.97
    assert found["batch_equal"] == 1.0
    # What compared the other's graph with torch says nothing of this one.
    assert not {"largest_difference_from_torch", "label_agreement_with_unrounded"} & {*small.card}
    assert (small.labels, small.temperature) == (whole.labels, whole.temperature)


def test_they_answer_alike(shipped):
    for whole, small in zip(*(one.explain(TEXTS) for one in shipped), strict=True):
        assert small.label == whole.label
        assert small.score == pytest.approx(whole.score, abs=0.05)
        assert [word.text for word in small.words] == [word.text for word in whole.words]


def test_a_text_is_answered_the_same_in_any_company(shipped):
    for explainer in shipped:
        alone = [explainer.explain([text])[0] for text in TEXTS]
        assert explainer.explain([*TEXTS, *reversed(TEXTS)]) == [*alone, *reversed(alone)]


def test_another_class_needs_no_second_run(shipped):
    """The session answers as the file does, and explains another class to the last bit."""
    names, outputs = ("input_ids", "attention_mask", "target"), ("weights", "label_probs")
    ids = np.random.default_rng(0).integers(1_000, 8_000, (3, 40))
    mask = np.ones_like(ids)
    mask[1, 25:] = 0
    for explainer in shipped:
        session = explainer.session
        assert session.retargets
        options = ort.SessionOptions()
        options.log_severity_level = 3
        for name, value in integer_options(processor_flags()).items():
            options.add_session_config_entry(name, value)
        graph = ort.InferenceSession(explainer.bundle.model_path, options, ["CPUExecutionProvider"])
        kept = session.run(ids, mask, np.full(3, -1), explain=True, keep=True)
        for target in (0, 1):
            feed = dict(zip(names, (ids, mask, np.full(3, target)), strict=True))
            expected = graph.run([*outputs], {**feed, "explain": np.array(True)})
            for row in range(3):
                states = {name: values[row : row + 1] for name, values in kept.states.items()}
                found = session.retarget(states, np.array([target]))
                for one, other in zip(found, expected, strict=True):
                    assert one[0].tobytes() == other[row].tobytes()


def test_without_a_path_it_is_the_one_for_the_device():
    explainer = Explainer.load(device="cpu")
    assert explainer.bundle.path == shipped_bundle("cpu")
