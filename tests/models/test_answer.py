from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from models.answer import answer_documents, answer_flow, document_logits, make_golden
from models.flows import run_flows
from models.rows import PREDICTED, LabelSoFar, run_rows
from models.session import OnnxSession
from models.text import Document, bucket_length
from tests.conftest import RecordingSession, WithoutStates

DISAGREE = "terrible " * 40 + "wonderful " * 70  # POS, though it begins with NEG
TURNS_LATE = "terrible " * 500 + "wonderful " * 600  # likewise, in many windows


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


@pytest.fixture(params=["states", "no states"])
def session(request, tiny_model_bytes):
    """One that can explain another class without a second run, and one that cannot."""
    return {"states": RecordingSession, "no states": WithoutStates}[request.param](tiny_model_bytes)


def test_windows_that_disagree_explain_the_document_label(tiny_explainer, session):
    document = tiny_explainer.encode(DISAGREE)
    (answer,) = answer_documents(session, tiny_explainer.encoder, [document])
    assert len(document.windows) == 5
    assert answer.logits.argmax() == 1
    assert (answer.weights[:40] < 0).all()
    assert (answer.weights[40:] > 0).all()
    again = session.targets[1:] + session.retargeted
    assert session.targets[0] == [PREDICTED] * 5
    assert again == ([[1], [1]] if session.retargets else [[1, 1]])


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


def test_later_windows_are_explained_for_the_label_so_far(tiny_explainer, tiny_values, session):
    document = tiny_explainer.encode(TURNS_LATE)
    table = list(tiny_values.values())
    sums = np.cumsum([sum(table[piece] for piece in one.input_ids) for one in document.windows])
    so_far = [PREDICTED, *(int(total > 0) if abs(total) > 1.5 else PREDICTED for total in sums)]
    kept, count = 16 if session.retargets else 1, len(sums)
    assert so_far[kept] == 0
    answered(session, tiny_explainer.encoder, document, 1)
    asked = [PREDICTED] * kept + so_far[kept:count]
    assert [target for (target,) in session.targets[:count]] == asked
    # Windows that are about neither class explain what the last of them says by itself: POS.
    wrong = [place for place, target in enumerate(asked) if target == 0 or place < kept]
    assert session.targets[count:] == [[1]] * (len(wrong) - (kept if session.retargets else 0))
    assert session.retargeted == ([[1]] * kept if session.retargets else [])


@pytest.mark.parametrize("windows", [1, 2, 7, 60])
def test_no_window_of_a_document_with_one_opinion_is_run_again(tiny_explainer, session, windows):
    """However many begin together, before anything is known."""
    document = tiny_explainer.encode("wonderful " * 1100)
    assert len(document.windows) > 3 * 16
    answered(session, tiny_explainer.encoder, document, windows)
    assert sum(rows for rows, _ in session.shapes) == len(document.windows)
    assert session.retargeted == []


def test_only_the_first_windows_of_several_keep_what_another_class_takes(tiny_explainer):
    encoder, session = tiny_explainer.encoder, tiny_explainer.session

    def outputs(text, target=PREDICTED):
        rows = next(answer_flow(encoder.encode(text), target))
        return [one for row in rows for one in run_rows(session, encoder.pad_id, [row])]

    long = outputs("wonderful " * 1100)
    assert [one.retarget is not None for one in long] == [True] * 16 + [False] * (len(long) - 16)
    assert [one.retarget for one in outputs("great")] == [None]
    assert [one.retarget for one in outputs(DISAGREE, 0)] == [None] * 5


def test_what_is_kept_of_a_row_does_not_keep_its_batch(tiny_explainer):
    rows = next(answer_flow(tiny_explainer.encode(DISAGREE)))
    for outputs in run_rows(tiny_explainer.session, tiny_explainer.encoder.pad_id, rows):
        assert isinstance(outputs.retarget, partial)
        [states] = [part for part in outputs.retarget.args if isinstance(part, dict)]
        assert {len(values) for values in states.values()} == {1}
        assert [values.base for values in states.values()] == [None] * len(states)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_answers_do_not_depend_on_the_threads(
    tiny_model_bytes, tiny_explainer, mixed_texts, threads
):
    encoder = tiny_explainer.encoder
    documents = [encoder.encode(text) for text in [*mixed_texts, DISAGREE, TURNS_LATE] * 3]
    session = OnnxSession(tiny_model_bytes, device="cpu", threads=threads)
    found = answer_documents(session, encoder, documents)
    expected = [answer_documents(tiny_explainer.session, encoder, [one])[0] for one in documents]
    for one, other in zip(found, expected, strict=True):
        for name in ("logits", "weights", "label_probs"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_several_threads_add_to_a_label():
    so_far = LabelSoFar()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: so_far.add(np.array([0, 0.001], np.float32)), range(4000)):
            pass
    assert so_far.target == 1
    so_far.add(np.array([0.999, 0], np.float32))
    assert so_far.target == 1, "4 against 1 leads by 3"
    so_far.add(np.array([0.01, 0], np.float32))
    assert so_far.target == PREDICTED


@pytest.mark.parametrize("windows", [1, 2, 3, 9, 60])
@pytest.mark.parametrize("text", [DISAGREE, "wonderful " * 40 + "terrible " * 70, TURNS_LATE])
def test_answers_do_not_depend_on_what_was_asked_first(tiny_explainer, session, text, windows):
    encoder = tiny_explainer.encoder
    document, label = encoder.encode(text), int(text.startswith("t"))
    answer = answered(session, encoder, document, windows)
    expected = answered(tiny_explainer.session, encoder, document, 9, label)
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
