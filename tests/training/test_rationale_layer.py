"""The transformer that decides from the words that its rationale layer picks."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from transformers import BertConfig, DistilBertConfig, RobertaConfig

from l2e import main
from models.explainer import Explainer
from training.attribution import lrp
from training.attribution.embeddings import embed, frozen
from training.attribution.propagation import Propagation
from training.attribution.record import PREDICTED
from training.attribution.teachers import TEACHERS
from training.blackbox.build import new_black_box
from training.blackbox.copies import LabelledDocument
from training.blackbox.fit import encode_examples, fit, make_batches
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.mlp import MlpConfig, MlpForSequenceClassification
from training.blackbox.rationale import (
    RationaleConfig,
    RationaleForSequenceClassification,
    pickable,
)
from training.blackbox.rationale_fit import marked_weight, measure_rationale, piece_targets
from training.commands import run_recipe
from training.config import (
    NEUTRAL,
    BlackBox,
    Copies,
    Optimization,
    RationaleLayer,
    RecipeError,
    Student,
)
from training.data import DataError, Example
from training.explainer.distill import network_config
from training.explainer.network import ExplainerNetwork
from training.export.graph import to_torch
from training.export.release import export_checked

LABELS = ("NEG", "POS")
TEXT = "A great film , but the ending was dull ."
LONG = "the ending was dull and i hated it , but the music was moving . " * 3
TEXTS = [TEXT, "dull", LONG, "quux dull , and quux great"]  # quux has four pieces
JUDGING = {"great", "wonderful", "moving", "funny", "clever", "loved"}
JUDGING |= {"awful", "terrible", "dull", "boring", "weak", "hated"}


@pytest.fixture
def settings(tiny_checkpoint):
    return BlackBox(
        architecture="rationale", checkpoint=str(tiny_checkpoint), max_tokens=32, overlap=4
    )


@pytest.fixture
def new(settings):
    """Makes the same untrained black box each time."""

    def make(**changes):
        torch.manual_seed(0)
        return new_black_box(dataclasses.replace(settings, **changes), LABELS, [])

    return make


@pytest.fixture
def lively(new, enliven):
    """One whose answers depend on every word."""
    black_box = new()
    enliven(black_box.model)
    return black_box


def encode(black_box, texts=TEXTS):
    return [black_box.encoder.encode(text) for text in texts]


# What it computes, by hand: the states are word vectors of -1 and 1, which a layer norm leaves.

GREAT, DULL, OTHER = (np.array(signs) for signs in ([1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]))
# The logit of each kind of token in the rationale layer, and of POS where it alone is picked.
PICKED = {"great": 2.0, "dull": 1.0, "other": -3.0, "mask": -1.0, "special": 3.0}
ANSWER = {"great": 4.0, "dull": -2.0, "other": 0.5, "mask": 2.0, "special": -0.5}


def combine(values):
    """Returns the weights of a linear layer that gives each kind of token its value."""
    found = values["great"] * GREAT + values["dull"] * DULL + values["other"] * OTHER
    return torch.tensor(found / 4, dtype=torch.float32)


@pytest.fixture
def by_hand(encoder):
    """Makes a black box of known states; `steep` sharpens what it picks."""

    def make(steep=1.0):
        vocabulary = encoder.tokenizer.get_vocab()
        vectors = np.tile(OTHER, (len(vocabulary), 1))
        vectors[vocabulary["great"]], vectors[vocabulary["dull"]] = GREAT, DULL
        vectors[vocabulary["##x"]] = GREAT  # the last piece of quux
        vectors[vocabulary["[MASK]"]] = -DULL
        vectors[[vocabulary["[CLS]"], vocabulary["[SEP]"]]] = -OTHER
        trunk = BertConfig(
            vocab_size=len(vocabulary), hidden_size=4, num_hidden_layers=0, num_attention_heads=1,
            intermediate_size=4, max_position_embeddings=512,
        )  # fmt: skip
        model = RationaleForSequenceClassification(RationaleConfig(trunk, num_labels=2))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
            words = model.get_parameter("trunk.embeddings.word_embeddings.weight")
            words.copy_(torch.from_numpy(vectors))
            model.get_parameter("rationale.weight")[0] = steep * combine(PICKED)
            model.classifier.weight[1] = combine(ANSWER)
        return HuggingFaceBlackBox(model, encoder, LABELS)

    return make


def expected_answer(kinds, steep=1.0):
    shares = [math.exp(steep * PICKED[kind]) for kind in kinds]
    answers = [ANSWER[kind] for kind in kinds]
    return sum(s * a for s, a in zip(shares, answers, strict=True)) / sum(shares)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("great", ["great"]),
        ("the film was dull", ["other", "other", "other", "dull"]),
        ("dull great film", ["dull", "great", "other"]),
        ("dull dull great", ["dull", "dull", "great"]),
    ],
)
def test_the_answer_is_what_the_picked_words_say(text, kinds, by_hand):
    """Of the special tokens, which have the largest logits, nothing is picked."""
    for steep in (0.0, 1.0, 30.0):
        black_box = by_hand(steep)
        [found] = black_box.logits(encode(black_box, [text]))
        assert found.tolist() == pytest.approx([0, expected_answer(kinds, steep)], abs=1e-5)
    best = max(kinds, key=PICKED.__getitem__)
    assert found[1] == pytest.approx(ANSWER[best], abs=1e-4)  # the token that is picked decides


def test_a_masked_word_may_be_picked(by_hand):
    """So a text without any word has an answer: that of the mask token."""
    black_box = by_hand()
    [document] = encode(black_box, ["dull great film"])
    keep = [np.array(kept) for kept in ([True, False, True], [False, False, False])]
    found = black_box.logits([document] * 2, keep)[:, 1]
    assert found[0] == pytest.approx(expected_answer(["dull", "mask", "other"]), abs=1e-5)
    assert found[1] == pytest.approx(ANSWER["mask"], abs=1e-5)


def test_logits_of_the_rationale_are_those_of_the_layer(by_hand, lively):
    black_box = by_hand()
    window = encode(black_box, ["dull great"])[0].windows[0]
    output = black_box.model(input_ids=torch.from_numpy(window.input_ids)[None])
    kinds = ["special", "dull", "great", "special"]
    expected = [PICKED[kind] for kind in kinds]
    assert output.rationale_logits[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert output.hidden_states is None
    ids = torch.from_numpy(encode(lively)[0].windows[0].input_ids)[None]
    output = lively.model(input_ids=ids, output_hidden_states=True)
    assert [state.shape for state in output.hidden_states] == [(1, ids.shape[1], 32)] * 3
    expected = lively.model.rationale(output.hidden_states[-1])[:, :, 0]
    torch.testing.assert_close(output.rationale_logits, expected)
    assert output.rationale_logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("mask", "ends", "expected"),
    [
        ([1, 1, 1, 1, 1], (1, 1), [0, 1, 1, 1, 0]),
        ([1, 1, 1, 0, 0], (1, 1), [0, 1, 0, 0, 0]),
        ([0, 0, 1, 1, 1], (1, 1), [0, 0, 0, 1, 0]),  # padded at the left
        ([1, 1, 0, 0, 0], (1, 1), [1, 1, 0, 0, 0]),  # no word: what there is
        ([1, 0, 0, 0, 0], (1, 1), [1, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0], (1, 1), [0, 0, 0, 0, 0]),
        ([1, 1, 1, 0, 0], (0, 0), [1, 1, 1, 0, 0]),
        ([1, 1, 1, 1, 0], (0, 2), [1, 1, 0, 0, 0]),
    ],
)
def test_what_may_be_picked(mask, ends, expected):
    for kind in (torch.int64, torch.float32):
        found = pickable(torch.tensor([mask, [1] * 5], dtype=kind), *ends)
        assert found[0].int().tolist() == expected
    rows = torch.tensor([mask])
    assert torch.equal(pickable(rows, *ends), pickable(rows.bool(), *ends))


# As a black box.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_document_alone_or_in_company_gets_the_same_answer(precision, lively):
    lively.precision = precision
    documents = encode(lively)
    assert len(documents[2].windows) > 1
    together = lively.logits(documents)
    alone = [lively.logits([document])[0] for document in documents]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(lively.logits(documents[::-1])[::-1], together, atol=1e-6)
    assert np.ptp(together[:, 1]) > 0.05


def test_padding_changes_nothing(lively):
    ids = torch.from_numpy(encode(lively)[0].windows[0].input_ids)[None]
    longer = nn.functional.pad(ids, (0, 5), value=7)  # no matter what stands there
    mask = (torch.arange(longer.shape[1]) < ids.shape[1]).long()[None]
    short = lively.model(input_ids=ids)
    long = lively.model(input_ids=longer, attention_mask=mask)
    torch.testing.assert_close(long.logits, short.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        long.rationale_logits[:, : ids.shape[1]], short.rationale_logits, atol=1e-6, rtol=0
    )


SMALL: Any = {"vocab_size": 200, "max_position_embeddings": 64}
NARROW: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | SMALL
TRUNKS = {
    "bert": lambda: BertConfig(intermediate_size=32, **NARROW),
    "roberta": lambda: RobertaConfig(intermediate_size=32, **NARROW),
    "distilbert": lambda: DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, **SMALL),
}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_what_is_saved_is_what_is_loaded(trunk, encoder, tmp_path):
    torch.manual_seed(0)
    model = RationaleForSequenceClassification(RationaleConfig(TRUNKS[trunk](), num_labels=2))
    black_box = HuggingFaceBlackBox(model, encoder, LABELS)
    assert model.trunk.config._attn_implementation == "sdpa"
    assert (model.config.hidden_size, model.config.max_position_embeddings) == (16, 64)
    assert not [name for name in model.state_dict() if "pooler" in name]
    black_box.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), LABELS, new_head=False)
    assert type(again.model.trunk) is type(model.trunk)
    np.testing.assert_allclose(
        again.logits(encode(black_box)), black_box.logits(encode(black_box)), atol=1e-7
    )
    assert state_digest(again) == state_digest(black_box)


def test_the_encoder_is_that_of_the_checkpoint(new, black_box, settings, tmp_path):
    """Of an encoder, a classifier with other labels, or one of these itself."""
    black_box.save(tmp_path / "classifier")
    same = new()
    same.save(tmp_path / "same")
    ids = torch.from_numpy(encode(black_box)[0].windows[0].input_ids)[None]
    mask = torch.ones_like(ids)
    for name in (settings.checkpoint, tmp_path / "classifier", tmp_path / "same"):
        found = new_black_box(dataclasses.replace(settings, checkpoint=str(name)), "ABC", [])
        assert found.logits(encode(found)).shape == (len(TEXTS), 3)
        assert (found.encoder.max_tokens, found.encoder.overlap) == (32, 4)
        for mine, theirs in zip(
            found.hidden_states(ids, mask), black_box.hidden_states(ids, mask), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
        config = found.model.config.to_json_string(use_diff=False)
        assert str(tmp_path) not in config
        assert "l2e_windows" not in config
        assert settings.checkpoint not in config


def test_training_goes_on_from_one(new, settings, tmp_path):
    first = new()
    first.save(tmp_path)
    trained = dataclasses.replace(settings, architecture="trained", checkpoint=str(tmp_path))
    same = new_black_box(trained, LABELS, [])
    assert isinstance(same.model, RationaleForSequenceClassification)
    np.testing.assert_array_equal(same.logits(encode(first)), first.logits(encode(first)))
    wider = new_black_box(trained, (*LABELS, NEUTRAL), [])
    assert not wider.logits(encode(first))[:, -1].any()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("json:loads", "is a function and cannot be trained"), ("mlp", "has no encoder to take")],
)
def test_what_has_no_encoder_is_refused(checkpoint, message, new, encoder, tmp_path):
    if checkpoint == "mlp":
        model = MlpForSequenceClassification(MlpConfig(vocab_size=200, num_labels=2))
        HuggingFaceBlackBox(model, encoder, LABELS).save(tmp_path)
        checkpoint = str(tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        new(checkpoint=checkpoint)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_teacher_explains_it(teacher, lively):
    """Those that are complete sum to the value of the text minus that of the masked one."""
    documents = encode(lively)
    budget = 302 if teacher == "integrated_gradients" else 64
    found = TEACHERS[teacher].attribute(
        lively, documents, np.full(len(documents), PREDICTED), budget=budget, seed=0
    )
    for record, document in zip(found, documents, strict=True):
        assert record.weights.shape == (len(document.words),)
        assert np.isfinite(record.weights).all()
        gap = record.value - record.null_value
        assert abs(gap) > 0.02
        if teacher in ("integrated_gradients", "deep_shap"):
            tolerance = 0.01 if teacher == "integrated_gradients" else 1e-4
            assert record.weights.sum() == pytest.approx(gap, rel=tolerance)


def test_relevance_and_what_biases_absorb_sum_to_the_difference(lively):
    """What is picked is constant, as attention is; else see test_completeness.py."""
    [document] = encode(lively, [LONG])
    with torch.no_grad():
        for name, parameter in lively.model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) / 10)
    with frozen(lively.model):
        batch = embed(lively, [document], np.array([1]))
        inputs = batch.full.clone().requires_grad_()
        constants = [
            parameter.requires_grad_()
            for name, parameter in lively.model.named_parameters()
            if name.endswith("bias") or "position_embed" in name or "token_type_embed" in name
        ]
        with Propagation(lrp.LrpRules()):
            value = batch.value(inputs, batch.mask, batch.targets)
        grads = torch.autograd.grad(value.sum(), [inputs, *constants], materialize_grads=True)
        relevances = lrp.relevances(batch, 0)
    torch.testing.assert_close(relevances, (inputs * grads[0]).detach(), atol=1e-6, rtol=1e-4)
    absorbed = sum((part * by).sum().item() for part, by in zip(constants, grads[1:], strict=True))
    negative, positive = lively.logits([document])[0]
    assert float(relevances.sum()) + absorbed == pytest.approx(positive - negative, rel=1e-4)
    assert float(relevances.sum().abs()) > 0.02


def test_the_graph_computes_what_the_modules_compute(lively, quiet_exporter):
    torch.manual_seed(1)
    student = Student(reads="all", width=16, heads=2)
    network = ExplainerNetwork(network_config(lively, student, 1.0)).eval()
    assert export_checked(lively, network, TEXTS).difference <= 1e-4


# What it is trained on.


@pytest.fixture
def part(encoder):
    """Two marked spans, `dull` and `quux ending`, of which a window of 16 holds one or both."""
    text = "the film was dull and i hated the quux ending of it , " + "but the music was fine " * 3
    return LabelledDocument(encoder.encode(text), 0, ((3, 4), (8, 10)))


def told(part, window, targets):
    """Reads targets as words: marked ones, and all of which something is known."""
    words = part.document.words
    known = ~np.isnan(targets)
    assert (window.word_index[known] >= 0).all()
    marked = [words[place].text for place in window.word_index[known & (targets == 1)]]
    return marked, {int(place) for place in window.word_index[known]}


def test_pieces_of_marked_words_are_targets_and_special_tokens_none(part):
    first = part.document.windows[0]
    targets = piece_targets(part, first)
    assert targets.dtype == np.float32
    assert np.isnan(targets[[0, -1]]).all()
    marked, known = told(part, first, targets)
    assert marked == ["dull", *["quux"] * 4, "ending"][: len(marked)]
    assert len(marked) > 4
    assert known == {int(place) for place in first.word_index if place >= 0}
    assert (targets == 0).sum() == len(first.input_ids) - 2 - len(marked)


def test_masked_words_are_evidence_of_nothing(part):
    first = part.document.windows[0]
    keep = np.ones(len(part.document.words), dtype=bool)
    keep[[0, 3]] = False  # `the`, which nobody marked, and `dull`
    marked, known = told(part, first, piece_targets(part, first, keep))
    assert "dull" not in marked
    assert "quux" in marked
    assert {0, 3} <= known
    nothing = piece_targets(part, first, np.zeros_like(keep))
    assert np.nansum(nothing) == 0
    assert told(part, first, nothing)[1] == known


def test_nothing_is_known_where_no_rationale_is(part):
    assert np.isnan(piece_targets(part, part.document.windows[-1])).all()
    nobody = LabelledDocument(part.document, 0)
    assert np.isnan(piece_targets(nobody, part.document.windows[0])).all()


def test_marked_pieces_count_as_much_as_there_are_others_to_them(part, encoder):
    marked = unmarked = 0
    for window in part.document.windows:
        for value in piece_targets(part, window):
            marked, unmarked = marked + (value == 1), unmarked + (value == 0)
    nobody = LabelledDocument(encoder.encode("the film was fine"), 1)
    assert marked_weight([part, nobody], 20) == pytest.approx(unmarked / marked)
    assert marked_weight([part] * 3, 20) == pytest.approx(unmarked / marked)
    assert marked_weight([part], 1.5) == 1.5
    assert marked_weight([nobody], 20) == 0


EXAMPLES = [
    Example(
        str(row),
        f"film {'a ' * row}was {('awful', 'great')[row % 2]} , i thought",
        LABELS[row % 2],
        ((9 + 2 * row, 14 + 2 * row),) if row < 8 else None,  # all but two, `awful` or `great`
    )
    for row in range(10)
]
FITTING = Optimization(batch_rows=40, batch_tokens=4096, precision="fp32")


def test_batches_say_what_people_marked_and_are_else_the_same(new):
    """The random numbers of a run without a rationale layer stay what they were."""
    black_box = new()
    documents = encode_examples(black_box, EXAMPLES) * 4
    for copies in (Copies(), Copies(without_rationale=0.3, graded=0.3)):
        plain = make_batches(black_box, documents, FITTING, 0.5, 3, 1, copies)
        told = make_batches(black_box, documents, FITTING, 0.5, 3, 1, copies, marks=True)
        for mine, theirs in zip(plain, told, strict=True):
            assert mine.rationale is None
            assert torch.equal(mine.input_ids, theirs.input_ids)
            assert torch.equal(mine.targets, theirs.targets)
            assert theirs.rationale is not None
            assert theirs.rationale.shape == theirs.input_ids.shape
            assert theirs.rationale.dtype == torch.float32
            known = theirs.rationale[~theirs.rationale.isnan()]
            assert set(known.tolist()) == {0, 1}
            masked = theirs.input_ids == black_box.encoder.mask_id
            assert not theirs.rationale[masked].nansum()
            told_of = ~theirs.rationale.isnan().all(1)
            assert not theirs.rationale[masked & told_of[:, None]].isnan().any()
            assert theirs.rationale[theirs.attention_mask == 0].isnan().all()
    unknown = encode_examples(black_box, EXAMPLES[8:])
    [batch] = make_batches(black_box, unknown, FITTING, 0.5, 3, 1, marks=True)
    assert batch.rationale is None


def test_nothing_changes_where_nobody_marked_anything(new, tmp_path):
    """As for going on from a black box with a rationale layer on other data."""
    digests = []
    for layer in (None, RationaleLayer()):
        black_box = new()
        documents = encode_examples(black_box, EXAMPLES[8:])
        fit(
            black_box, documents, {"all": documents}, FITTING, mask_share=0.5, rationale=layer,
            seed=3, folder=tmp_path / str(layer),
        )  # fmt: skip
        digests.append(state_digest(black_box))
    assert digests[0] == digests[1]


def slow_loss(black_box, documents, batch, layer):
    """The loss of a batch from its formula; a document is known by its length."""
    by_length = {len(part.document.windows[0].input_ids): part for part in documents}
    output = black_box.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    marked = unmarked = 0
    for part in documents:
        for place in part.document.windows[0].word_index if part.rationale else ():
            inside = any(first <= place < end for first, end in part.rationale)
            marked, unmarked = marked + inside, unmarked + (place >= 0 and not inside)
    weight = min(layer.pos_weight, unmarked / marked)
    labels, pieces = [], []
    for row, ids in enumerate(batch.input_ids):
        part = by_length[int(batch.attention_mask[row].sum())]
        logits = output.logits[row].tolist()
        labels.append(math.log(sum(map(math.exp, logits))) - logits[part.label])
        for column, place in enumerate(part.document.windows[0].word_index.tolist()):
            if not part.rationale or place < 0:
                continue
            chance = 1 / (1 + math.exp(-output.rationale_logits[row, column].item()))
            seen = ids[column] != black_box.encoder.mask_id
            inside = seen and any(first <= place < end for first, end in part.rationale)
            pieces.append(-weight * math.log(chance) if inside else -math.log(1 - chance))
    return sum(labels) / len(labels) + layer.weight * sum(pieces) / len(pieces)


@pytest.mark.parametrize("layer", [RationaleLayer(0.5), RationaleLayer(2.0, pos_weight=1.25)])
def test_the_loss_is_that_of_the_formula(layer, new, tmp_path):
    black_box = new()
    documents = encode_examples(black_box, EXAMPLES)
    for module in black_box.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    [batch] = make_batches(black_box, documents, FITTING, 0.5, 3, 0, marks=True)
    assert (batch.input_ids == black_box.encoder.mask_id).any()
    with torch.no_grad():
        expected = slow_loss(black_box, documents, batch, layer)
    state = fit(
        black_box, documents, {"all": documents}, dataclasses.replace(FITTING, epochs=1),
        mask_share=0.5, rationale=layer, seed=3, folder=tmp_path,
    )  # fmt: skip
    assert state.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


# Training.


def marked_texts(count, seed):
    """Texts in which `music` and `camera` are marked, which say nothing of the label."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        words = [
            *rng.choice(["film", "plot", "story", "scene", "ending", "script"], 5).tolist(),
            *rng.choice(["music", "camera"], 2).tolist(),
            ("awful", "great")[row % 2],
        ]
        rng.shuffle(words)
        text = " ".join(words)
        starts = [len(" ".join(words[:place])) + (place > 0) for place in range(len(words))]
        spans = tuple(
            (start, start + len(word))
            for start, word in zip(starts, words, strict=True)
            if word in ("music", "camera")
        )
        found.append(Example(str(row), text, LABELS[row % 2], spans))
    return found


def train(black_box, folder, *, layer, epochs=1, **changes):
    documents = encode_examples(black_box, marked_texts(64, 0)) * 6
    others = encode_examples(black_box, marked_texts(16, 1))
    chosen = Optimization(
        epochs=epochs, learning_rate=3e-3, batch_rows=16, patience=epochs, precision="fp32",
        **changes,
    )  # fmt: skip
    fit(
        black_box, documents, {"others": others}, chosen, mask_share=0.25, rationale=layer, seed=2,
        folder=folder,
    )  # fmt: skip
    return measure_rationale(black_box, others)


def test_the_layer_learns_what_people_mark(new, tmp_path):
    """Even where it says nothing of the label, which nothing else could have taught it."""
    found = train(new(), tmp_path / "with", layer=RationaleLayer(1.0))
    assert found["texts"] == 16
    assert found["auprc"] > 0.95
    assert found["f1"] > 0.95
    alone = train(new(), tmp_path / "without", layer=None)
    assert alone["auprc"] < 0.8


@pytest.mark.parametrize("layer", [RationaleLayer(1.0), None])
def test_the_epoch_kept_is_best_in_labels_and_marks_together(layer, new, tmp_path):
    black_box = new()
    documents = encode_examples(black_box, marked_texts(32, 0))
    parts = {"one": encode_examples(black_box, marked_texts(16, 1))}
    parts["none"] = encode_examples(black_box, EXAMPLES[8:])  # nobody marked these
    settings = dataclasses.replace(FITTING, epochs=4, learning_rate=3e-3, patience=4)
    history = fit(
        black_box, documents, parts, settings, mask_share=0.25, rationale=layer, seed=2,
        folder=tmp_path,
    ).history  # fmt: skip
    best = max(history, key=lambda epoch: epoch["score"])
    for epoch in history:
        accuracy = (epoch["one"] + epoch["none"]) / 2
        expected = (accuracy + epoch["rationale_auprc"]) / 2 if layer else accuracy
        assert epoch["score"] == pytest.approx(expected)
    if layer:
        black_box.precision = "fp32"
        kept = measure_rationale(black_box, parts["one"])["auprc"]
        assert kept == pytest.approx(best["rationale_auprc"])
        assert len({epoch["rationale_auprc"] for epoch in history}) > 1


def test_a_killed_run_ends_with_the_same_weights(new, tmp_path):
    layer, calls = RationaleLayer(), []
    whole = new()
    train(whole, tmp_path / "whole", layer=layer, epochs=2)

    def kill(module, *_):
        calls.append(module.training)
        if sum(calls) == 30:  # of 48 steps
            raise KeyboardInterrupt

    killed = new()
    killed.model.classifier.register_forward_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "part", layer=layer, epochs=2, save_seconds=0.0)
    again = new()
    train(again, tmp_path / "part", layer=layer, epochs=2, save_seconds=0.0)
    assert state_digest(again) == state_digest(whole)


# How well it finds what people marked.


def test_words_are_scored_by_their_strongest_piece_over_windows(by_hand):
    black_box = by_hand()
    texts = ["great film , dull quux film", "the plot was dull " * 6, "the great film was dull"]
    documents = [
        LabelledDocument(black_box.encoder.encode(texts[0]), 1, ((0, 1), (4, 5))),
        LabelledDocument(black_box.encoder.encode(texts[1]), 0, ((7, 8), (9, 10))),
        LabelledDocument(black_box.encoder.encode(texts[2]), 1),  # nobody marked anything
    ]
    assert len(documents[1].document.windows) > 1
    precision, f1 = [], []
    for document in documents[:2]:
        kinds = {"great": "great", "quux": "great", "dull": "dull"}
        words = [word.text for word in document.document.words]
        scores = [PICKED[kinds.get(word, "other")] for word in words]
        gold = [
            any(first <= place < end for first, end in document.rationale or ())
            for place in range(len(scores))
        ]
        precision.append(average_precision_score(gold, scores))
        found = [score > 0 for score in scores]
        hits = sum(a and b for a, b in zip(found, gold, strict=True))
        f1.append(2 * hits / (sum(found) + sum(gold)))
    measured = measure_rationale(black_box, documents)
    assert measured["texts"] == 2
    assert measured["auprc"] == pytest.approx(np.mean(precision))
    assert measured["f1"] == pytest.approx(np.mean(f1))
    assert 0 < measured["f1"] < 1
    assert measure_rationale(black_box, documents[2:]) == {"texts": 0, "auprc": None, "f1": None}


# Recipes.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blackbox.architecture=rationale", "a rationale layer needs human rationales"),
        ("blackbox.rationale.weight=-1", "weight of at least 0"),
        ("blackbox.rationale.pos_weight=0", "pos_weight of more than 0"),
        ("blackbox.rationale.power=0.5", "power: give at least 1"),
        ("blackbox.rationale.power=nan", "power: give at least 1"),
        ("blackbox.rationale.power=2.0", "power is for votes"),
        ("blackbox.rationale.dropout=1", "dropout: give at least 0 and less than 1"),
        ("blackbox.rationale.pooling=evidence", "pooling is for architecture rationale"),
        ("blackbox.rationale.random=true", "random needs a rationale layer with some weight"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(override, message, recipe_path, tmp_path):
    with pytest.raises(RecipeError, match=message) as refused:
        run_recipe(recipe_path, [override], tmp_path, "train")
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def judged_data(tiny_data, tmp_path_factory):
    """The tiny data in ERASER's format, with its judging words marked."""
    root = tmp_path_factory.mktemp("judged")
    (root / "movies" / "docs").mkdir(parents=True)
    for name in ("train", "dev"):
        lines = []
        for row, line in enumerate((tiny_data / f"{name}.tsv").read_text().splitlines()):
            text, label = line.split("\t")
            (root / "movies" / "docs" / f"{name}{row}").write_text(text)
            pieces = [
                {"docid": f"{name}{row}", "start_token": place, "end_token": place + 1}
                for place, word in enumerate(text.split())
                if word in JUDGING
            ]
            gold = {"annotation_id": f"{name}{row}", "classification": LABELS[int(label)]}
            lines.append(json.dumps(gold | {"evidences": [pieces]}) + "\n")
        (root / "movies" / f"{name}.jsonl").write_text("".join(lines))
    return root


def on_judged(judged_data, *overrides):
    return [
        *overrides, f"data.root={judged_data}", "blackbox.fit.epochs=4",
        'data.train=[{ path = "movies" }]', 'data.validation=[{ path = "movies", split = "dev" }]',
    ]  # fmt: skip


def test_the_control_learns_from_marks_that_nobody_made(judged_data, recipe_path, tmp_path):
    asked = on_judged(judged_data, "blackbox.architecture=rationale")
    asked.append("blackbox.rationale.random=true")
    assert run_recipe(recipe_path, asked, tmp_path, "train") == 0
    metrics = json.loads((tmp_path / "tiny" / "blackbox" / "metrics.json").read_text())
    assert metrics["rationale"]["0:movies"]["auprc"] < 0.6  # above 0.9 with those that people made


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blackbox.feedback={ every = 1, use = 'marks' }", "has no rationale layer to learn marks"),
        ("blackbox.rationale.random=true", "nothing here learns from rationales"),
    ],
)
def test_what_goes_on_without_a_layer_learns_no_marks(
    override, message, black_box, judged_data, recipe_path, tmp_path
):
    black_box.save(tmp_path / "plain")
    asked = on_judged(judged_data, "blackbox.architecture=trained", override)
    asked.append(f"blackbox.checkpoint={tmp_path / 'plain'}")
    with pytest.raises(RecipeError, match=message) as refused:
        run_recipe(recipe_path, asked, tmp_path, "train")
    assert "\n" not in str(refused.value)


def test_a_run_ends_with_a_bundle_that_is_explained_like_any_other(
    judged_data, recipe_path, tmp_path, quiet_exporter, capsys
):
    overrides = [
        "blackbox.architecture=rationale", f"data.root={judged_data}",
        'data.train=[{ path = "movies" }]', 'data.validation=[{ path = "movies", split = "dev" }]',
        "blackbox.fit.epochs=4", "attribution.teacher=gradient", "explainer.fit.epochs=1",
        "evaluation={}",
    ]  # fmt: skip
    assert run_recipe(recipe_path, overrides, tmp_path, "run") == 0
    run = tmp_path / "tiny"
    metrics = json.loads((run / "blackbox" / "metrics.json").read_text())
    assert metrics["accuracy"]["0:movies"] > 0.9
    assert metrics["rationale"]["0:movies"]["texts"] == 24
    assert metrics["rationale"]["0:movies"]["auprc"] > 0.9
    assert metrics["rationale"]["0:movies"]["f1"] > 0.8
    explainer = Explainer.load(run / "bundle")
    [answer] = explainer.explain(["The plot was awful and very dull."])
    assert answer.label == "NEG"
    rebuilt, _ = to_torch(explainer.bundle)
    assert isinstance(rebuilt.model, RationaleForSequenceClassification)
    texts = ["the film was great .", "the ending was terrible and boring " * 9]
    documents = [explainer.encode(text) for text in texts]
    np.testing.assert_allclose(
        rebuilt.logits(documents), explainer.logits(documents), atol=1e-4, rtol=0
    )
    data = tmp_path / "texts.tsv"
    data.write_text("\n".join(texts), encoding="utf-8")
    flags = ["--blackbox", str(run / "bundle"), "--data", str(data), "--text-column", "0"]
    flags += ["--teacher", "deep_shap", "--json", "-", "--runs", str(tmp_path / "explained")]
    capsys.readouterr()
    assert main(["attribute", *flags]) == 0
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        total = sum(word["weight"] for word in line["words"])
        assert total == pytest.approx(line["value"] - line["null_value"], abs=1e-4)
    # Going on trains the layer too: no answer depends on its bias, only its own loss.
    more = ["name=more", "blackbox.architecture=trained", "blackbox.fit.epochs=1"]
    more.append(f"blackbox.checkpoint={run / 'bundle'}")
    assert run_recipe(recipe_path, [*overrides, *more], tmp_path, "train") == 0
    after = HuggingFaceBlackBox.from_checkpoint(str(tmp_path / "more" / "blackbox"), LABELS)
    biases = [one.model.get_parameter("rationale.bias") for one in (after, rebuilt)]
    assert not torch.equal(*biases)
    assert "rationale" in json.loads((tmp_path / "more" / "blackbox" / "metrics.json").read_text())
