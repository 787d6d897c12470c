"""Classifiers whose answer is the sum of what each word says for each class."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from training.attribution.record import PREDICTED
from training.attribution.teachers import TEACHERS
from training.blackbox.build import new_black_box
from training.blackbox.evidence import Evidence
from training.blackbox.fit import encode_examples, fit, make_batches
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.rationale_fit import measure_rationale, word_scores
from training.commands import run_recipe
from training.config import (
    NEUTRAL,
    BlackBox,
    Cnn,
    Copies,
    Optimization,
    RationaleLayer,
    RecipeError,
    Student,
    Vocabulary,
)
from training.data import Example
from training.explainer.distill import network_config
from training.explainer.network import ExplainerNetwork
from training.export.release import export_checked

LABELS = ("NEG", "POS")
TEXTS = [
    "A great film , but the ending was dull .",
    "dull",
    "the ending was dull and i hated it , but the music was moving . " * 3,
]
KINDS = ("cnn", "transformer")


@pytest.fixture
def new(tiny_checkpoint, tmp_path_factory):
    """Makes the same untrained black box of a kind each time."""
    vectors = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    words = sorted({word for text in TEXTS for word in text.lower().split()})
    numbers = np.random.default_rng(0).normal(size=(len(words), 8))
    lines = [
        " ".join([word, *map(str, row)]) for word, row in zip(words, numbers.tolist(), strict=True)
    ]
    vectors.write_text("\n".join(lines), encoding="utf-8")

    def make(kind, **changes):
        settings = BlackBox(
            architecture="cnn" if kind == "cnn" else "rationale", checkpoint=str(tiny_checkpoint),
            vocabulary=Vocabulary(least=1), max_tokens=32, overlap=4,
            cnn=Cnn((8, 12), (3, 5), pooling="evidence", vectors=str(vectors), vector_size=8),
            rationale=RationaleLayer(pooling="evidence"),
        )  # fmt: skip
        if kind != "cnn":
            settings = dataclasses.replace(settings, cnn=Cnn())
        torch.manual_seed(0)
        return new_black_box(dataclasses.replace(settings, **changes), LABELS, TEXTS)

    return make


@pytest.fixture
def lively(new):
    """One of a kind whose every word has something to say."""

    def make(kind, power=2.0):
        layer = RationaleLayer(pooling="softmax" if kind == "cnn" else "evidence", power=power)
        black_box = new(kind, rationale=layer)
        torch.manual_seed(1)
        nn.init.normal_(black_box.model.classifier.weight)
        nn.init.normal_(black_box.model.classifier.bias)
        nn.init.normal_(black_box.model.evidence.prior)
        return black_box

    return make


def encode(black_box, texts=TEXTS):
    return [black_box.encoder.encode(text) for text in texts]


def test_votes_are_counted():
    layer = Evidence(2)
    with torch.no_grad():
        layer.log_worth.fill_(math.log(3))
        layer.prior.copy_(torch.tensor([0.5, -1]))
    third = math.log(1 / 2)  # whose sigmoid is a third
    votes = torch.tensor([[[0.0, third], [99.0, -99.0], [99.0, 99.0]]])
    allowed = torch.tensor([[True, True, False]])
    [found] = layer(votes, allowed).tolist()
    assert found == pytest.approx([0.5 + 3 * 1.5, -1 + 3 / 3])
    layer.add_class()
    assert layer.prior.tolist() == [0.5, -1, 0]


@pytest.mark.parametrize("name", ["lrp", "deep_shap", "gradient"])
def test_votes_that_count_next_to_nothing_are_explained(name, lively):
    black_box = lively("cnn", 1.5)
    nn.init.constant_(black_box.model.classifier.bias, -20)
    documents = encode(black_box)
    records = TEACHERS[name].attribute(
        black_box, documents, np.zeros(len(documents), dtype=np.int64), budget=0, seed=0
    )
    for record in records:
        assert np.isfinite(record.weights).all()
        assert np.isfinite(record.value)


def test_answers_are_known_by_the_power_too(lively):
    assert state_digest(lively("cnn", 1.0)) != state_digest(lively("cnn", 2.0))


def test_sure_votes_outweigh_doubtful_ones():
    votes = torch.tensor([[[0.9, 0.3], [0.0, 0.3], [0.0, 0.3]]]).logit(eps=1e-9)
    for power, expected in ((1, [0.9, 0.9]), (2, [0.81, 0.27]), (3, [0.729, 0.081])):
        layer = Evidence(2, power)
        with torch.no_grad():
            layer.log_worth.zero_()
        [found] = layer(votes, torch.ones(1, 3, dtype=torch.bool)).tolist()
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [1, 2.0])
def test_the_answer_is_the_sum_of_what_each_word_says(kind, power, lively):
    """Special tokens have no vote, masked words have."""
    black_box = lively(kind, power)
    window = encode(black_box)[2].windows[0]
    ids = window.input_ids.copy()
    ids[3] = black_box.encoder.mask_id
    output = black_box.model(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True)
    model = black_box.model
    says = output.hidden_states[-1][0] @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(output.rationale_logits[0], says)
    words = says[torch.from_numpy(window.word_index >= 0)]
    assert (len(words) < len(says)) == (kind != "cnn")
    expected = model.evidence.prior + 0.2 * words.sigmoid().pow(power).sum(0)
    torch.testing.assert_close(output.logits[0], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_document_alone_or_in_company_gets_the_same_answer(kind, precision, lively):
    black_box = lively(kind)
    black_box.precision = precision
    documents = encode(black_box)
    together = black_box.logits(documents)
    alone = [black_box.logits([document])[0] for document in documents]
    np.testing.assert_allclose(together, alone, atol=1e-5 if precision == "fp32" else 2e-2)
    assert np.ptp(together[:, 1]) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_vote(kind, lively):
    black_box = lively(kind)
    ids = torch.from_numpy(encode(black_box)[0].windows[0].input_ids)[None]
    longer = nn.functional.pad(ids, (0, 5), value=7)  # no matter what stands there
    mask = (torch.arange(longer.shape[1]) < ids.shape[1]).long()[None]
    long = black_box.model(input_ids=longer, attention_mask=mask)
    torch.testing.assert_close(
        long.logits, black_box.model(input_ids=ids).logits, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_goes_on(kind, lively, tmp_path):
    black_box = lively(kind)
    black_box.save(tmp_path)
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), LABELS, new_head=False)
    assert state_digest(again) == state_digest(black_box)
    settings = BlackBox(architecture="trained", checkpoint=str(tmp_path), max_tokens=32, overlap=4)
    wider = new_black_box(settings, (*LABELS, NEUTRAL), [])
    documents = encode(black_box)
    found = wider.logits(documents)
    np.testing.assert_allclose(found[:, :2], black_box.logits(documents), atol=1e-6)
    assert np.abs(found[:, 2]).max() < 0.01  # no word does vote for it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_teacher_explains_it(kind, teacher, lively):
    """Those that are complete sum to the value of the text minus that of the masked one."""
    black_box = lively(kind)
    documents = encode(black_box)
    budget = 302 if teacher == "integrated_gradients" else 64
    found = TEACHERS[teacher].attribute(
        black_box, documents, np.full(len(documents), PREDICTED), budget=budget, seed=0
    )
    for record, document in zip(found, documents, strict=True):
        assert record.weights.shape == (len(document.words),)
        assert np.isfinite(record.weights).all()
        assert record.weights.any()
        gap = record.value - record.null_value
        if teacher in ("integrated_gradients", "deep_shap"):
            tolerance = 0.02 if teacher == "integrated_gradients" else 1e-3
            assert record.weights.sum() == pytest.approx(gap, rel=tolerance, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_the_modules_compute(kind, lively, quiet_exporter):
    black_box = lively(kind)
    torch.manual_seed(1)
    student = Student(reads="all", width=16, heads=2)
    network = ExplainerNetwork(network_config(black_box, student, 1.0)).eval()
    assert export_checked(black_box, network, TEXTS).difference <= 1e-4


# What it learns from human rationales.

FITTING = Optimization(batch_rows=40, batch_tokens=4096, precision="fp32")


def marked_texts(count, seed):
    """Reviews that praise the music or blame the plot; only the word of praise is marked.

    `film` stands in every good one, as a second sign of the label that nobody marked.
    """
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        good = row % 2
        words = [
            *rng.choice(["the", "was", "and", "it", "i", "but"], 6).tolist(),
            ("film", "ending")[1 - good], ("dull", "great")[good],
        ]  # fmt: skip
        rng.shuffle(words)
        word = ("dull", "great")[good]
        start = " ".join([*words[: words.index(word)], ""])
        span = (len(start), len(start) + len(word))
        found.append(Example(str(row), " ".join(words), LABELS[good], (span,)))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [RationaleLayer(weight=0.5), RationaleLayer(pos_weight=1.25)])
def test_a_marked_piece_is_evidence_for_the_label_and_nothing_else_is(kind, layer, new, tmp_path):
    black_box = new(kind)
    for module in black_box.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0
    examples = marked_texts(6, 0)
    examples[5] = dataclasses.replace(examples[5], rationale=None)
    documents = encode_examples(black_box, examples)
    copies = Copies(without_rationale=0.3)  # whose targets are soft
    [batch] = make_batches(black_box, documents, FITTING, 0.5, 3, 0, copies, marks=True)
    assert batch.labels is not None
    assert batch.rationale is not None
    weight = min(layer.pos_weight, 7.0)  # one word of eight is marked
    black_box.model.train()  # a batch norm takes the statistics of the batch
    with torch.no_grad():
        output = black_box.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        of_labels = -(output.logits.log_softmax(-1) * batch.targets).sum(-1).mean().item()
    pieces = []
    for row, label in enumerate(batch.labels.tolist()):
        for column, marked in enumerate(batch.rationale[row].tolist()):
            for of_class in range(2) if not math.isnan(marked) else ():
                chance = 1 / (1 + math.exp(-output.rationale_logits[row, column, of_class].item()))
                says = marked == 1 and of_class == label
                pieces.append(-weight * math.log(chance) if says else -math.log(1 - chance))
    state = fit(
        black_box, documents, {"all": documents}, dataclasses.replace(FITTING, epochs=1),
        mask_share=0.5, copies=copies, rationale=layer, seed=3, folder=tmp_path,
    )  # fmt: skip
    expected = of_labels + layer.weight * sum(pieces) / len(pieces)
    assert state.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_votes_are_those_that_people_marked(kind, new, tmp_path):
    """Without that, the word that nobody marked does as well."""

    def train(layer):
        black_box = new(kind)
        documents = encode_examples(black_box, marked_texts(64, 0)) * 4
        settings = Optimization(
            epochs=3, learning_rate=1e-2 if kind == "cnn" else 3e-3, batch_rows=16, patience=3,
            precision="fp32",
        )  # fmt: skip
        fit(
            black_box, documents, {"all": documents[:16]}, settings, mask_share=0.25,
            rationale=layer, seed=2, folder=tmp_path / str(layer is None),
        )  # fmt: skip
        others = encode_examples(black_box, marked_texts(16, 1))
        return black_box, measure_rationale(black_box, others)["auprc"]

    black_box, told = train(RationaleLayer(weight=4.0))
    assert told > 0.95
    assert train(None)[1] < 0.9
    [document] = encode(black_box, ["the film was great and it was"])
    scores = word_scores(black_box, document)
    assert document.words[int(scores.argmax())].text == "great"


def test_to_be_neutral_is_no_evidence(lively, tmp_path):
    lively("cnn").save(tmp_path)
    settings = BlackBox(architecture="trained", checkpoint=str(tmp_path), max_tokens=32, overlap=4)
    black_box = new_black_box(settings, (*LABELS, NEUTRAL), [])
    [document] = encode(black_box, TEXTS[:1])
    before = word_scores(black_box, document)
    with torch.no_grad():
        black_box.model.classifier.bias[2] = 50
    np.testing.assert_array_equal(word_scores(black_box, document), before)


def test_only_what_has_words_to_sum_can_sum(recipe_path, tmp_path):
    asked = ["blackbox.architecture=mlp", "blackbox.cnn.pooling=evidence"]
    with pytest.raises(RecipeError, match="evidence is for architecture cnn") as refused:
        run_recipe(recipe_path, asked, tmp_path, "train")
    assert "\n" not in str(refused.value)
    asked = ["blackbox.architecture=cnn", "blackbox.cnn.pooling=evidence"]
    with pytest.raises(RecipeError, match="needs human rationales"):
        run_recipe(recipe_path, asked, tmp_path, "train")
