"""Explanations of the gold label against human rationales."""

import numpy as np
import pytest

from models.text import TextEncoder
from training.blackbox.callable import CallableBlackBox
from training.data import Example
from training.evaluation.alignment import first_chunk, measure_alignment, rationale_share

VALUES = {"great": 2.0, "moving": 1.0, "dull": -2.0, "weak": -1.0, "film": 0.5}


def predict(texts):
    """Probabilities of NEG and POS, from a sum over words."""
    logits = np.array([sum(VALUES.get(word, 0) for word in text.split()) for text in texts])
    positive = 1 / (1 + np.exp(-logits))
    return np.stack([1 - positive, positive], axis=1)


def example(name, text, label, *words):
    spans = tuple((text.index(word), text.index(word) + len(word)) for word in words)
    return Example(name, text, label, spans or None)


EXAMPLES = [
    example("a", "the film was great and the music dull", "POS", "great"),
    example("b", "the film was great and the music dull", "NEG", "music dull"),
    example("c", "a moving film , weak in its music", "POS", "weak"),
]


@pytest.fixture
def black_box():
    return CallableBlackBox(predict, ("NEG", "POS"))


def test_the_gold_label_is_explained(black_box, tmp_path):
    """One text with both labels: what speaks for a label leads its explanation."""
    found = measure_alignment(
        black_box, EXAMPLES, {"occlusion": 0, "kernel_shap": 60}, share=0.1, seed=0, work=tmp_path
    )
    assert set(found["metrics"]) == {"occlusion", "kernel_shap", "random", "oracle"}
    assert [row["id"] for row in found["documents"]] == ["a", "b", "c"]
    for row in found["documents"][:2]:  # great leads for POS, dull for NEG
        assert row["occlusion"]["ap@gold"] == row["kernel_shap"]["ap@gold"] == 1
    last = found["documents"][2]
    assert last["occlusion"]["ap@gold"] == 0  # the label speaks of moving, people of weak
    assert last["occlusion"]["mr@gold"] == 1
    assert last["oracle"]["ap@gold"] == 1
    means = found["metrics"]["occlusion"]
    assert means["ap@gold"] == pytest.approx(2 / 3)
    assert found["setting"] == {
        "texts": 3, "share": 0.1, "seed": 0, "budgets": pytest.approx(
            {"occlusion": 10, "kernel_shap": 60}, abs=6
        ),
    }  # fmt: skip


def test_it_resumes_and_repeats(black_box, tmp_path):
    def run(work):
        return measure_alignment(black_box, EXAMPLES, {"lime": 40}, share=0.2, seed=3, work=work)

    first = run(tmp_path / "a")
    assert run(tmp_path / "a") == first
    assert run(tmp_path / "b") == first


def test_the_share_is_a_mean_over_texts_with_a_rationale(black_box):
    examples = [*EXAMPLES, Example("d", "no rationale here", "POS")]
    assert rationale_share(black_box, examples) == pytest.approx((1 / 8 + 2 / 8 + 1 / 8) / 3)
    with pytest.raises(ValueError, match="no text has a human rationale"):
        rationale_share(black_box, examples[-1:])


def test_a_first_chunk_keeps_what_lies_in_it(tiny_tokenizer_json):
    encoder = TextEncoder.from_json(tiny_tokenizer_json, max_tokens=64, overlap=4)
    text = "  the film was great and moving . " + "the music was dull . " * 5
    spans = [(text.index("great"), text.index(" .")), (text.index("dull"), len(text))]
    part = first_chunk(Example("a", text, "POS", tuple(spans)), encoder, 12)
    assert part is not None
    assert part.rationale is not None
    assert text.strip().startswith(part.text)
    assert len(part.text) < 40
    assert [part.text[first:end] for first, end in part.rationale] == ["great and moving"]
    assert first_chunk(Example("a", text, "POS", (spans[1],)), encoder, 12) is None
    assert first_chunk(Example("a", text, "POS"), encoder, 12) is None
    whole = Example("a", "great film", "POS", ((0, 5),))
    assert first_chunk(whole, encoder, 12) == whole
