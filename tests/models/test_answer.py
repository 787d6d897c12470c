from functools import partial

import numpy as np
import pytest

from models.answer import (
    PREDICTED,
    LabelSoFar,
    answer_documents,
    answer_flow,
    document_logits,
    make_golden,
    run_flows,
    run_rows,
)
from models.text import Document, bucket_length

DISAGREE = "terrible " * 40 + "wonderful " * 70  # POS, though it begins with NEG


def slow_answer(document: Document, values, target):
    """The tiny model over windows by plain loops: document logits and word weights."""
    table = list(values.values())
    totals = [sum(table[piece] for piece in window.input_ids) for window in document.windows]
    mean = sum(totals) / len(totals)
    sign = [-1, 1][mean > 0 if target == PREDICTED else target]
    weights = []
    for number in range(len(document.words)):
        total = 0.0
        for window in document.windows:
            mine = [
                table[piece]
                for piece, word in zip(window.input_ids, window.word_index, strict=True)
                if word == number
            ]
            total += 2 * sign * sum(mine) / len(mine) if mine else 0.0
        weights.append(total / len(document.windows))
    return [-mean, mean], weights


@pytest.mark.parametrize("target", [PREDICTED, 0, 1])
def test_windows_against_plain_loops(tiny_explainer, tiny_values, mixed_texts, target):
    session, encoder = tiny_explainer.session, tiny_explainer.encoder
    documents = [encoder.encode(text) for text in mixed_texts]
    answers = answer_documents(session, encoder, documents, [target] * len(documents))
    only_logits = document_logits(session, encoder, documents)
    for document, answer, found in zip(documents, answers, only_logits, strict=True):
        logits, weights = slow_answer(document, tiny_values, target)
        assert answer.logits.tolist() == found.tolist() == pytest.approx(logits, abs=1e-6)
        assert answer.weights.tolist() == pytest.approx(weights, abs=1e-6)
        assert answer.label_probs.shape == (len(document.words), 5)


def test_windows_that_disagree_are_asked_for_the_document_label(tiny_explainer, recorder):
    document = tiny_explainer.encode(DISAGREE)
    (answer,) = answer_documents(recorder, tiny_explainer.encoder, [document])
    assert len(document.windows) == 5
    assert answer.logits.argmax() == 1
    assert (answer.weights[:40] < 0).all()
    assert (answer.weights[40:] > 0).all()
    assert recorder.targets == [[PREDICTED] * 5, [1, 1]]  # the first two say NEG by themselves


def answered(session, encoder, document, windows, target=PREDICTED):
    """The answer when so many windows are run at a time."""
    longest = max(bucket_length(len(window.input_ids)) for window in document.windows)
    run = partial(run_rows, session, encoder.pad_id)
    (answer,) = run_flows([answer_flow(document, target)], run, windows * longest)
    return answer


def test_the_label_so_far_has_to_be_clear():
    label = LabelSoFar()
    assert label.target == PREDICTED
    for logits, target in (
        ([0.0, 2.0, 1.0], PREDICTED),
        ([0.0, 2.0, 1.5], PREDICTED),
        ([0.0, 2.0, 0.4], 1),  # 6 against 2.9
        ([0.0, -3.0, 0.4], PREDICTED),
        ([9.0, 0.0, 0.0], 0),
    ):
        label.add(np.array(logits, dtype=np.float32))
        assert label.target == target


def test_later_windows_are_asked_for_the_label_so_far(tiny_explainer, tiny_values, recorder):
    document = tiny_explainer.encode(DISAGREE)
    table = list(tiny_values.values())
    totals = [sum(table[piece] for piece in window.input_ids) for window in document.windows]
    so_far = [int(total > 0) for total in np.cumsum(totals)]
    answered(recorder, tiny_explainer.encoder, document, 1)
    assert so_far == [0, 0, 0, 1, 1]
    assert recorder.targets == [[PREDICTED], [0], [0], [0], [1], [1], [1], [1], [1]]


@pytest.mark.parametrize("windows", [1, 2, 3, 9])
def test_answers_do_not_depend_on_what_was_asked_first(tiny_explainer, windows):
    session, encoder = tiny_explainer.session, tiny_explainer.encoder
    for text in (DISAGREE, "wonderful " * 40 + "terrible " * 70):
        document, label = encoder.encode(text), int(text == DISAGREE)
        answer = answered(session, encoder, document, windows)
        expected = answered(session, encoder, document, 9, label)
        assert answer.logits.argmax() == label
        for name in ("logits", "weights", "label_probs"):
            assert np.array_equal(getattr(answer, name), getattr(expected, name))


def test_a_given_target_needs_one_run(tiny_explainer, recorder):
    document = tiny_explainer.encode(DISAGREE)
    answer_documents(recorder, tiny_explainer.encoder, [document], [0])
    assert recorder.targets == [[0] * 5]


def test_masked_words(tiny_explainer, recorder):
    document = tiny_explainer.encode(DISAGREE)
    keep = [np.arange(110) < 40, np.arange(110) >= 40, np.zeros(110, dtype=bool)]
    found = document_logits(recorder, tiny_explainer.encoder, [document] * 3, keep)
    assert [int(np.sign(logits[1])) for logits in found] == [-1, 1, 0]
    assert recorder.explained == {False}


def test_batches_are_bounded_and_of_one_bucket(tiny_explainer, recorder, mixed_texts):
    texts = [*mixed_texts * 40, "boring " * 40_000]
    documents = [tiny_explainer.encode(text) for text in texts]
    lengths = {len(window.input_ids) for document in documents for window in document.windows}
    answer_documents(recorder, tiny_explainer.encoder, documents)
    budget = recorder.batch_tokens
    assert max(rows * length for rows, length in recorder.shapes) <= budget
    assert {length for _, length in recorder.shapes} == {bucket_length(n) for n in lengths}
    # Full batches: no more runs than the budget asks for, and the rest of each bucket.
    total = sum(rows * length for rows, length in recorder.shapes)
    assert len(recorder.shapes) <= total / budget + 2 * len(lengths)


def test_no_answers_for_no_documents(tiny_explainer):
    assert answer_documents(tiny_explainer.session, tiny_explainer.encoder, []) == []


def test_golden_is_what_the_graph_says(tiny_explainer, tiny_golden):
    made = make_golden(
        tiny_explainer.session,
        tiny_explainer.encoder,
        tiny_explainer.labels,
        text=tiny_golden.text,
        target=tiny_golden.target,
        tolerance=tiny_golden.tolerance,
    )
    assert made == tiny_golden
