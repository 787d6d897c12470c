"""Rounds of explanations while training: findings, what follows, and going on after a kill."""

import json

import numpy as np
import pytest
import torch

from training.blackbox.build import new_black_box
from training.blackbox.copies import Finding, LabelledDocument, draw_copy, mark
from training.blackbox.fit import encode_examples, fit, make_batches
from training.blackbox.huggingface import state_digest
from training.blackbox.rationale_fit import rationale_loss
from training.commands import run_recipe
from training.config import (
    BlackBox,
    Cnn,
    Copies,
    Feedback,
    Optimization,
    RationaleLayer,
    RecipeError,
    Vocabulary,
)
from training.data import Example
from training.feedback import Rounds, judge, strongest_words

TEXT = "the film was great and very moving but the music was dull , i think"
GREAT, MOVING, MUSIC, DULL = 3, 6, 9, 11


@pytest.fixture
def part(encoder):
    """Two marked spans: `great`, and `very moving`."""
    return LabelledDocument(encoder.encode(TEXT), 1, ((3, 4), (5, 7)))


def weigh(part, **weights):
    found = np.zeros(len(part.document.words))
    for row, word in enumerate(part.document.words):
        found[row] = weights.get(word.text, 0)
    return found


def test_an_explanation_is_judged_by_as_many_content_words_as_were_marked(part):
    window = part.document.windows[0]
    # `was` weighs most and is a stop word; two content words are marked, `great` and `moving`.
    weights = weigh(part, was=9, music=5, great=4, moving=3)
    strongest = strongest_words(part, window, weights)
    assert strongest == [MUSIC, GREAT]
    finding = judge(part, window, strongest)
    assert np.flatnonzero(finding.missed).tolist() == [MOVING]
    assert np.flatnonzero(finding.distracting).tolist() == [MUSIC]
    assert finding.hit == 0.5


def test_only_the_window_counts(encoder):
    text = " ".join([TEXT] * 4)
    document = encoder.encode(text)
    part = LabelledDocument(document, 1, ((GREAT, GREAT + 1),))
    last = document.windows[-1]
    assert min(strongest_words(part, last, weigh(part, great=1))) > GREAT


def finding(part, *distracting):
    words = len(part.document.words)
    return Finding(np.zeros(words, bool), mark([(w, w + 1) for w in distracting], words), 0.0)


def test_distractors_cannot_stand_for_the_rationale(part):
    rng = np.random.default_rng(0)
    window = part.document.windows[0]
    found = finding(part, MUSIC, DULL)
    kept = []
    for _ in range(400):
        copy = draw_copy(part, window, Copies(graded=1), 2, rng, found)
        assert copy is not None
        share = copy.keep[mark(part.rationale, len(copy.keep))].mean()
        assert copy.target == pytest.approx([(1 - share) / 2, (1 + share) / 2])
        kept.append((share, copy.keep[[MUSIC, DULL]].mean()))
    assert all(distractors == 1 for share, distractors in kept if share == 0)
    assert all(distractors == 0 for share, distractors in kept if share == 1)
    assert np.corrcoef(np.array(kept).T)[0, 1] < -0.5


def test_distractors_are_what_is_masked_elsewhere(part):
    copy = draw_copy(
        part, part.document.windows[0], Copies(random_spans=1), 2, np.random.default_rng(0),
        finding(part, MUSIC),
    )  # fmt: skip
    assert copy is not None
    assert np.flatnonzero(~copy.keep).tolist() == [MUSIC]
    assert copy.target.tolist() == [0, 1]


# Training.


EXAMPLES = [
    Example(
        str(row),
        f"film number {row} was {'great' if row % 2 else 'awful'} and so was music {row % 3}",
        ("NEG", "POS")[row % 2],
        ((text_start := len(f"film number {row} was "), text_start + 5),) if row < 20 else None,
    )
    for row in range(24)
]


@pytest.fixture
def new(tmp_path):
    """Makes the same untrained CNN each time."""
    path = tmp_path / "vectors.txt"
    words = sorted({word for example in EXAMPLES for word in example.text.split()})
    rng = np.random.default_rng(0)
    path.write_text("".join(f"{w} {' '.join(map(str, rng.normal(size=4)))}\n" for w in words))

    def make(**cnn):
        settings = BlackBox(
            architecture="cnn", max_tokens=16, overlap=4, vocabulary=Vocabulary(least=1),
            cnn=Cnn(channels=(6, 8), kernels=(3, 3), vectors=str(path), vector_size=4, **cnn),
        )  # fmt: skip
        torch.manual_seed(0)
        texts = [example.text for example in EXAMPLES]
        return new_black_box(settings, ("NEG", "POS"), texts)

    return make


SETTINGS = Optimization(epochs=4, batch_rows=8, patience=4, learning_rate=1e-2, precision="fp32")


GRADED = Copies(graded=0.5)


def train(black_box, feedback, folder, copies=GRADED, settings=SETTINGS):
    documents = encode_examples(black_box, EXAMPLES)
    rounds = Rounds(black_box, documents, feedback, settings, 3, folder)
    state = fit(
        black_box, documents, {"all": documents}, settings, mask_share=0, copies=copies,
        feedback=rounds, rationale=RationaleLayer() if feedback.use == "marks" else None, seed=3,
        folder=folder,
    )  # fmt: skip
    return rounds, state


def test_rounds_come_as_often_as_asked_and_explain_different_texts(new, tmp_path):
    rounds, _ = train(new(), Feedback(every=2, first=1, texts=5, budget=16), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("feedback-*")) == [
        "feedback-1.json",
        "feedback-3.json",
    ]
    first, second = rounds.findings(2), rounds.findings(3)
    assert len(first) == 5
    assert 5 <= len(second) <= 10
    judged = {example.text for example in EXAMPLES if example.rationale}
    assert set(second) <= judged
    assert rounds.seconds() > 0
    assert rounds.findings(0) == {}


def test_mistakes_count_more_where_marks_are_learnt(black_box, part, tmp_path):
    feedback = Feedback(every=1, use="marks", scale=3)
    rounds = Rounds(black_box, [part], feedback, SETTINGS, 3, tmp_path)
    assert rounds.emphasis == 3
    finding = judge(part, part.document.windows[0], [MUSIC, GREAT])
    every = {part.document.text: finding}
    windows, seen = part.document.windows, set()
    for epoch in range(20):  # each draws one of the windows
        [batch] = make_batches(
            black_box, [part], SETTINGS, 0, 3, epoch, findings=every, marks=True, emphasis=3
        )
        assert batch.emphasis is not None
        ids = batch.input_ids[0, : int(batch.attention_mask.sum())].tolist()
        places = {tuple(one.input_ids): one.word_index.tolist() for one in windows}[tuple(ids)]
        expected = [3 if place in (MOVING, MUSIC) else 1 for place in places]
        assert batch.emphasis[0, : len(ids)].tolist() == expected
        seen.add(tuple(ids))
    assert len(seen) == len(windows) > 1
    [other] = make_batches(black_box, [part], SETTINGS, 0, 3, 0, marks=True, emphasis=3)
    assert other.emphasis is not None
    assert set(other.emphasis[other.attention_mask > 0].tolist()) == {1}


def test_mistakes_counted_more_lead_to_other_weights(new, tmp_path):
    found = []
    for scale in (1.0, 3.0):
        black_box = new(pooling="evidence")
        feedback = Feedback(every=1, first=0, texts=9, budget=16, use="marks", scale=scale)
        train(black_box, feedback, tmp_path / str(scale), copies=Copies())
        found.append(state_digest(black_box))
    assert found[0] != found[1]


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3)])
def test_what_counts_twice_counts_as_if_it_were_there_twice(shape):
    torch.manual_seed(0)
    logits, targets = torch.randn(shape), torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, np.nan]])
    labels, emphasis = torch.tensor([1, 0]), torch.tensor([[2.0, 1, 2, 1], [1, 1, 1, 1]])
    found = rationale_loss(logits, targets, labels, 3.0, emphasis)
    twice = [0, 2]
    places = [[0, 1, 2, 3, *twice], [0, 1, 2, 3, 3, 3]]  # of the last one nothing is known
    first, second = (
        torch.stack([values[row][place] for row, place in enumerate(places)])
        for values in (logits, targets)
    )
    torch.testing.assert_close(found, rationale_loss(first, second, labels, 3.0))


@pytest.mark.parametrize("use", ["copies", "marks", "scaled"])
def test_a_killed_run_ends_with_the_same_weights(use, new, tmp_path):
    feedback = Feedback(every=2, first=1, texts=6, budget=16, use=use, below=1)
    cnn = {"attention_heads": 2, "attention": "feedback"}
    if use == "marks":
        cnn = {"pooling": "evidence"}
    whole = new(**cnn)
    train(whole, feedback, tmp_path / "whole")

    def kill(*_):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt

    for at in (2, 8, 12):  # in training batches, by step
        calls: list[int] = []
        folder = tmp_path / f"killed-{at}"
        black_box = new(**cnn)
        black_box.model.classifier.register_forward_hook(
            lambda module, *_: kill() if module.training else None
        )
        saving = Optimization(**{**vars(SETTINGS), "save_seconds": 0.0})
        with pytest.raises(KeyboardInterrupt):
            train(black_box, feedback, folder, settings=saving)
        again = new(**cnn)
        train(again, feedback, folder, settings=saving)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), (at, name)


def test_the_published_step_scales_the_words_that_were_missed(new, tmp_path):
    black_box = new(attention_heads=2, attention="feedback")
    documents = encode_examples(black_box, EXAMPLES)
    feedback = Feedback(every=1, first=0, texts=50, budget=16, use="scaled", scale=3, below=1)
    rounds = Rounds(black_box, documents, feedback, SETTINGS, 0, tmp_path)
    assert rounds.findings(0) == {}
    batches = rounds.steps(0)
    assert sorted(len(batch.targets) for batch in batches) == [4, 8, 8]  # rows of the training
    known = json.loads(black_box.encoder.to_json())["model"]["vocab"]
    for batch in batches:
        assert batch.feature_scale is not None
        assert set(batch.feature_scale.unique().tolist()) <= {1, 3}
        words = set(batch.input_ids[batch.feature_scale == 3].tolist())
        assert words <= {known["great"], known["awful"]}
    nothing = Feedback(every=1, first=0, texts=50, budget=16, use="scaled", below=-1)
    assert Rounds(black_box, documents, nothing, SETTINGS, 0, tmp_path).steps(0) == []


def test_attention_of_feedback_is_active_in_its_steps_only(new):
    model = new(attention_heads=2, attention="feedback").model
    ids = torch.arange(3, 9)[None]
    scale = torch.ones(1, 6)
    plain, stepped = model(input_ids=ids).logits, model(input_ids=ids, feature_scale=scale).logits
    assert not torch.allclose(plain, stepped)
    with torch.no_grad():
        for name in model.unread_parameters():
            model.get_parameter(name).zero_()
    assert torch.equal(model(input_ids=ids).logits, plain)
    model.revive_attention()  # as after a bundle, which lacks what no answer depends on
    assert not torch.equal(model(input_ids=ids, feature_scale=scale).logits, plain)
    assert new(attention_heads=2).model.unread_parameters() == set()


# Recipes.


def test_a_recipe_without_rationales_cannot_ask_for_feedback(recipe_path, tmp_path):
    asked = ["blackbox.feedback.every=1", "blackbox.copies.graded=0.5"]
    with pytest.raises(RecipeError, match="needs human rationales"):
        run_recipe(recipe_path, asked, tmp_path, "train")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["blackbox.feedback.every=-1"], "every and first of at least 0"),
        (["blackbox.feedback.every=1"], "needs shares of random_spans or graded"),
        (
            ["blackbox.feedback.every=1", "blackbox.copies.only_rationale=1"],
            "needs shares of random_spans or graded",
        ),
        (
            ["blackbox.feedback.every=1", "blackbox.copies.graded=1", "blackbox.feedback.first=99"],
            "first of less than the epochs",
        ),
        (["blackbox.feedback.below=2"], "below in"),
        (["blackbox.cnn.attention=feedback"], "needs attention_heads and scaled feedback"),
        (["blackbox.cnn.pooling=evidence"], "is for architecture cnn"),
        (["blackbox.feedback={ every = 1, use = 'marks' }"], "marks needs a rationale layer"),
        (["blackbox.feedback={ use = 'marks', scale = 1.0 }"], "for marks of more than 1"),
        (
            ["blackbox.feedback.every=1", "blackbox.copies.graded=1", "blackbox.feedback.budget=2"],
            "budget of at least 3",
        ),
    ],
)
def test_what_feedback_cannot_do_is_said_at_once(asked, message, recipe_path, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe_path, asked, tmp_path, "train")
    assert not (tmp_path / "tiny" / "blackbox").exists()
