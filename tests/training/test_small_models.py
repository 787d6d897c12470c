"""CNN and MLP: what they compute, and that every verb takes them as it takes any checkpoint."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from l2e import main
from models.explainer import Explainer
from models.text import split_words
from training.attribution.deep_shap import DeepShapRules
from training.attribution.lrp import LrpRules
from training.attribution.propagation import Propagation
from training.attribution.record import PREDICTED
from training.attribution.teachers import teacher_named
from training.blackbox.build import new_black_box
from training.blackbox.cnn import CnnConfig, CnnForSequenceClassification, Convolution
from training.blackbox.fit import encode_examples, fit
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.mlp import MlpConfig, MlpForSequenceClassification
from training.blackbox.vocabulary import (
    SPECIAL_TOKENS,
    count_words,
    most_frequent,
    word_tokenizer,
    word_vectors,
)
from training.commands import run_recipe
from training.config import (
    BlackBox,
    Cnn,
    Mlp,
    Optimization,
    RationaleLayer,
    Student,
    Vocabulary,
)
from training.data import Example
from training.data.example import DataError
from training.explainer.distill import network_config
from training.explainer.network import ExplainerNetwork
from training.export.graph import to_torch
from training.export.release import export_checked
from training.export.scales import choose_scales

TEXTS = (
    "A great plot , and a fine story",
    "the plot was dull and very , very bad",
    "Don't see it : it is not great",
    "fine",
)
LABELS = ("NEG", "POS")
WORD_VECTORS = "a 1 0 0\ngreat 0 1 0\nplot 0 0 1\nfine 1 1 0\nzebra 5 5 5\n"
# Not what is unassigned: libraries know different versions of Unicode.
any_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
KINDS = ("cnn", "attention", "evidence", "mlp")
GRADIENT_TEACHERS = ("gradient", "integrated_gradients", "lrp", "deep_shap")


@pytest.fixture(scope="module")
def vectors_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    path.write_text(WORD_VECTORS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def new(vectors_path):
    """Makes an untrained black box of a kind, its norms as if it had seen data."""

    def make(kind, **changes):
        cnn = Cnn(
            channels=(8, 12), kernels=(3, 5), attention_heads=2 if kind == "attention" else 0,
            pooling="evidence" if kind == "evidence" else "max",
            vectors=str(vectors_path), vector_size=3, dropout=0.1,
        )  # fmt: skip
        recipe = BlackBox(
            architecture="mlp" if kind == "mlp" else "cnn", max_tokens=16, overlap=4,
            vocabulary=Vocabulary(least=1), cnn=cnn, mlp=Mlp(units=(6, 5)),
            rationale=RationaleLayer(power=2.0 if kind == "evidence" else 1.0),
        )  # fmt: skip
        torch.manual_seed(0)
        black_box = new_black_box(dataclasses.replace(recipe, **changes), LABELS, TEXTS)
        for module in black_box.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        if kind == "evidence":  # so that every word has a say
            nn.init.normal_(black_box.model.classifier.weight)
            nn.init.zeros_(black_box.model.classifier.bias)
        return black_box

    return make


# Words and vectors.


@given(st.lists(any_text, max_size=4))
@example(["a [MASK] film [UNK] [PAD]"])  # written by somebody: words like any other
def test_every_word_is_one_piece(texts):
    """The two dialects of the pattern for words agree on any text."""
    tokenizer = word_tokenizer(most_frequent(count_words(texts), 1000))
    for text in texts:
        encoding = tokenizer.encode(text)
        assert encoding.offsets == [(word.start, word.end) for word in split_words(text)]


@given(any_text)
@example("ΟΔΟΣ")  # in Python's lower case the last letter is another one
def test_every_training_word_is_known(text):
    tokenizer = word_tokenizer(most_frequent(count_words([text]), 1000))
    assert 1 not in tokenizer.encode(text).ids


def test_words_are_ranked_by_frequency_and_then_by_name():
    counts = count_words(["b B a c c c", "d"])
    assert most_frequent(counts, 10) == ["c", "b", "a", "d"]
    assert most_frequent(counts, 2, skip=1) == ["b", "a"]
    assert most_frequent(counts, 10, least=2) == ["c", "b"]


def test_vectors_of_a_file_by_word(vectors_path):
    found = word_vectors(["plot", "unheard", "a"], str(vectors_path), 3)
    scale = found[0, 2]
    assert (found == scale * np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]])).all()
    assert found.std() == pytest.approx(1)


def test_a_head_line_and_words_with_blanks_are_passed_over(tmp_path):
    """As word2vec's files have the one and GloVe's the others; `2` and `a` are words here."""
    path = tmp_path / "vectors.txt"
    path.write_text("2 3\na b 9 9 9\na 1 0 0\n2 0 2 0\n", encoding="utf-8")
    found = word_vectors(["a", "2"], str(path), 3)
    assert (found == found[0, 0] * np.array([[1, 0, 0], [0, 2, 0]])).all()


def test_vectors_of_an_encoder_are_its_principal_components(tiny_checkpoint):
    words = ["great", "dull", "plot", "story", "very", "fine"]
    found = word_vectors(words, str(tiny_checkpoint), 3)
    assert found.shape == (6, 3)
    assert found.std() == pytest.approx(1)
    assert np.abs(found.mean(0)).max() < 1e-9  # components of centred vectors
    assert np.abs(found.T @ found - np.diag(np.diag(found.T @ found))).max() < 1e-6
    assert (np.diff((found**2).sum(0)) <= 0).all()  # strongest first


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (WORD_VECTORS, 4, "vectors.txt:1 has not 4 numbers after its word"),
        ("zebra 1 2 3\n", 3, "has none of the 2 words"),
        (
            "zebra 1 2 3\nplot 1\n",
            3,
            "vectors.txt:2 has not 3 numbers",
        ),  # one would be taken for all
        ("plot 1 2 x\n", 3, "vectors.txt:1 has not 3 numbers"),
        ("plot 1 2 nan\n", 3, "vectors.txt:1 has not 3 numbers"),
        (b"plot 1 2 \xff\n", 3, "is not UTF-8"),
        (None, 3, "no word vectors or encoder at"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(content, size, message, tmp_path):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        word_vectors(["a", "plot"], str(path), size)


def test_more_numbers_than_an_encoder_has_are_refused(tiny_checkpoint):
    with pytest.raises(DataError, match="at most 2 numbers, not 50: choose a smaller vector_size"):
        word_vectors(["great", "plot"], str(tiny_checkpoint), 50)


# The networks.


def test_a_cnn_worked_by_hand():
    """One convolution of one channel that adds three neighbours up, word vectors of one number."""
    config = CnnConfig(vocab_size=5, hidden_size=1, channels=[1], kernels=[3], num_labels=2)
    model = CnnForSequenceClassification(config).eval()
    state = {
        "vectors.weight": torch.tensor([[0.0], [0.0], [0.0], [2.0], [-1.0]]),
        "convolutions.0.convolve.weight": torch.ones(1, 1, 3),
        "convolutions.0.convolve.bias": torch.tensor([0.5]),
        "convolutions.0.norm.weight": torch.tensor([2.0]),
        "convolutions.0.norm.bias": torch.tensor([0.25]),
        "convolutions.0.norm.running_mean": torch.tensor([1.0]),
        "convolutions.0.norm.running_var": torch.tensor([4.0 - 1e-5]),
        "convolutions.0.norm.num_batches_tracked": torch.tensor(1),
        "classifier.weight": torch.tensor([[-1.0], [3.0]]),
        "classifier.bias": torch.tensor([0.0, 1.0]),
    }
    model.load_state_dict(state)
    ids, mask = torch.tensor([[3, 4, 4, 0]]), torch.tensor([[1, 1, 1, 0]])
    # Sums of neighbours 1, 0, -2, plus 0.5, at least 0: 1.5, 0.5, 0. Norm 2 (x - 1) / 2 + 0.25.
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert output.hidden_states[1].flatten().tolist() == pytest.approx([0.75, -0.25, -0.75, 0])
    assert output.logits.tolist() == [pytest.approx([-0.75, 3.25])]


def test_a_norm_in_training_sees_no_padding():
    torch.manual_seed(0)
    block = Convolution(2, 3, 3, dropout=0.0).train()
    x, mask = torch.randn(4, 5, 2), torch.ones(4, 5, dtype=torch.bool)
    longer = torch.cat([x, torch.zeros(4, 7, 2)], dim=1)
    padded = torch.cat([mask, torch.zeros(4, 7, dtype=torch.bool)], dim=1)
    assert torch.allclose(block(x, mask), block(longer, padded)[:, :5], atol=1e-6)
    flat = block(x, mask).reshape(-1, 3)
    assert torch.allclose(flat.mean(0), torch.zeros(3), atol=1e-6)


def test_a_single_word_can_be_trained_on():
    """It has no statistics of its own: those of the words so far stand in."""
    block = Convolution(2, 3, 3, dropout=0.0).train()
    assert block.norm.running_mean is not None
    before = block.norm.running_mean.clone()
    found = block(torch.randn(1, 4, 2), torch.tensor([[True, False, False, False]]))
    assert found.isfinite().all()
    assert torch.equal(block.norm.running_mean, before)


def test_a_bag_of_words_sees_presence_only(new):
    black_box = new("mlp")
    one, other, another = (
        black_box.encoder.encode(text)
        for text in ("great plot", "PLOT unheard plot great plot", "it was very , very dull")
    )
    first, second, third = black_box.logits([one, other, another])
    np.testing.assert_allclose(first, second, atol=1e-7)
    assert np.abs(first - third).max() > 1e-3


def test_a_bag_of_words_worked_by_hand():
    config = MlpConfig(vocab_size=5, special_ids=3, units=[1], num_labels=2)
    model = MlpForSequenceClassification(config).eval()
    state = {
        "layers.0.weight": torch.tensor([[100.0, 100.0, 100.0, 2.0, -3.0]]),
        "layers.0.bias": torch.tensor([0.5]),
        "classifier.weight": torch.tensor([[-1.0], [1.0]]),
        "classifier.bias": torch.tensor([0.0, 1.0]),
    }
    model.load_state_dict(state)
    ids = torch.tensor([[3, 3, 1, 0], [4, 2, 0, 0], [0, 3, 4, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    hidden = [2.5, 0, 0]  # relu of 0.5 + 2, 0.5 - 3, 0.5 + 2 - 3
    expected = [[-value, 1 + value] for value in hidden]
    assert model(input_ids=ids, attention_mask=mask).logits.tolist() == expected
    embedded = model.get_input_embeddings()(ids)
    assert model(inputs_embeds=embedded, attention_mask=mask).logits.tolist() == expected


# As black boxes.


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_alone_or_in_company_gets_the_same_answer(kind, new):
    black_box = new(kind)
    documents = [black_box.encoder.encode(text) for text in (*TEXTS, " ".join(TEXTS) * 3)]
    assert len(documents[-1].windows) > 1
    together = black_box.logits(documents)
    alone = [black_box.logits([document])[0] for document in documents]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(black_box.logits(documents[::-1])[::-1], together, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded(kind, new, tmp_path):
    black_box = new(kind)
    black_box.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = HuggingFaceBlackBox.from_checkpoint(
        str(tmp_path), None, max_tokens=16, overlap=4, new_head=False
    )
    documents = [black_box.encoder.encode(text) for text in TEXTS]
    assert again.labels == LABELS
    np.testing.assert_allclose(again.logits(documents), black_box.logits(documents), atol=1e-7)
    assert state_digest(again) == state_digest(black_box)


def test_words_that_are_unknown_or_masked_count_as_nothing(new):
    black_box = new("cnn")
    table = black_box.model.get_input_embeddings().weight
    assert (table[: len(SPECIAL_TOKENS)] == 0).all()
    assert (table[len(SPECIAL_TOKENS) :] != 0).any()


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_vectors_stay_and_others_learn(frozen, new, vectors_path, tmp_path):
    cnn = Cnn(
        channels=(8,), kernels=(3,), dropout=0.1, vectors=str(vectors_path), vector_size=3,
        frozen_vectors=frozen,
    )  # fmt: skip
    black_box = new("cnn", cnn=cnn)
    black_box.save(tmp_path / "before")  # a checkpoint that is trained on keeps its vectors too
    black_box = HuggingFaceBlackBox.from_checkpoint(
        str(tmp_path / "before"), LABELS, max_tokens=16, overlap=4
    )
    before = black_box.model.get_input_embeddings().weight.clone()
    learn(black_box, tmp_path / "run", epochs=2)
    assert (black_box.model.get_input_embeddings().weight == before).all() == frozen


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_resumes_to_the_bit(kind, new, tmp_path):
    whole = new(kind)
    progress = learn(whole, tmp_path / "whole", epochs=16)
    assert progress.best == 1.0
    part = new(kind)
    with pytest.raises(KeyboardInterrupt):
        learn(part, tmp_path / "part", epochs=16, killed_in=5)
    again = new(kind)
    learn(again, tmp_path / "part", epochs=16)
    assert state_digest(again) == state_digest(whole)


def learn(black_box, folder, *, epochs, killed_in=None):
    """Fits two texts; `killed_in` an epoch, in place of its validation."""
    examples = [Example(str(row), text, LABELS[row % 2 == 0]) for row, text in enumerate(TEXTS[:2])]
    documents = encode_examples(black_box, examples)

    class Killed(dict):
        rounds = 0

        def items(self):
            Killed.rounds += 1
            if Killed.rounds == killed_in:
                raise KeyboardInterrupt
            return super().items()

    folder.mkdir(exist_ok=True)
    setting = Optimization(
        epochs=epochs, learning_rate=0.01, batch_rows=2, patience=epochs, precision="fp32"
    )
    return fit(
        black_box, documents * 6, Killed(all=documents), setting, mask_share=0.0, seed=1,
        folder=folder,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", GRADIENT_TEACHERS)
def test_teachers_that_look_inside(kind, teacher, new):
    """Complete ones sum to the explained difference; gradients and LRP answer every word."""
    black_box = new(kind)
    documents = [black_box.encoder.encode(text) for text in TEXTS]
    budget = 402 if teacher == "integrated_gradients" else 0
    found = teacher_named(teacher).attribute(
        black_box, documents, np.full(len(documents), PREDICTED), budget=budget, seed=0
    )
    for record, document in zip(found, documents, strict=True):
        assert record.weights.shape == (len(document.words),)
        assert np.isfinite(record.weights).all()
        if teacher in ("integrated_gradients", "deep_shap"):
            gap = record.value - record.null_value
            tolerance = 0.02 if teacher == "integrated_gradients" else 1e-5
            assert record.weights.sum() == pytest.approx(gap, abs=tolerance)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_deep_shap_of_a_maximum_is_complete(seed):
    """Of a network that is nothing but a maximum, all goes to the winners of text and reference."""
    rng = np.random.default_rng(seed)
    text, reference = torch.tensor(rng.integers(-3, 4, (2, 5, 2)) / 2.0)
    rules = DeepShapRules()
    x = text.clone().requires_grad_()
    with Propagation(rules):
        with torch.no_grad():
            before = reference.amax(0)
        rules.recording = False
        after = x.amax(0)
    (multipliers,) = torch.autograd.grad(after.sum(), x)
    contributions = (text - reference) * multipliers
    assert torch.allclose(contributions.sum(0), after.detach() - before)
    winners = {int(part.argmax()) for part in (text[:, 0], reference[:, 0])}
    others = [row for row in range(5) if row not in winners]
    assert (contributions[others, 0] == 0).all()


@pytest.mark.parametrize("dim", [(), (1,), -1, (0, 2), (2, 1, 0)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_maxima_over_any_dimensions(dim, keepdim):
    """As torch takes them, with the same derivative under LRP's rule."""
    x = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    expected = x.amax(dim, keepdim=keepdim)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with Propagation(LrpRules()):
        found = x.amax(dim, keepdim=keepdim)
        whole = x.amax()
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], gradient)
    assert whole == x.max()


# As one graph.


@pytest.mark.parametrize(
    ("kind", "reads"),
    [("cnn", "all"), ("attention", "last"), ("evidence", "all"), ("mlp", "own")],
)
def test_the_graph_computes_what_the_modules_compute(kind, reads, new, quiet_exporter):
    black_box = new(kind)
    student = Student(reads=reads, width=16, heads=2, decode="regression")
    torch.manual_seed(1)
    network = ExplainerNetwork(network_config(black_box, student, 1.0)).eval()
    exported = export_checked(black_box, network, TEXTS)
    assert exported.difference <= 1e-4


@pytest.mark.parametrize(("kind", "reads"), [("cnn", "all"), ("mlp", "own")])
def test_linear_layers_of_the_explainer_alone_make_no_bundle_in_integers(
    kind, reads, new, quiet_exporter
):
    black_box = new(kind)
    student = Student(reads=reads, width=16, heads=2, decode="regression")
    network = ExplainerNetwork(network_config(black_box, student, 1.0)).eval()
    exported = export_checked(black_box, network, TEXTS)
    with pytest.raises(ValueError, match=r"no linear layers over tokens.*export it as fp32"):
        choose_scales(exported.model, black_box.encoder, TEXTS)


def test_an_explainer_cannot_read_states_that_there_are_not(new):
    with pytest.raises(ValueError, match=r"set explainer\.reads = .own."):
        network_config(new("mlp"), Student(reads="all"), 1.0)


# Through every verb.

SMALL = {
    "cnn": [
        "blackbox.architecture=cnn", "blackbox.cnn.channels=[8, 12]",
        "blackbox.cnn.kernels=[3, 5]", "blackbox.cnn.vector_size=3",
        "blackbox.cnn.attention_heads=2", "blackbox.cnn.dropout=0.1", "explainer.reads=last",
        "blackbox.cnn.frozen_vectors=false",
    ],
    "evidence": [
        "blackbox.architecture=cnn", "blackbox.cnn.channels=[8, 12]",
        "blackbox.cnn.kernels=[3, 5]", "blackbox.cnn.vector_size=3",
        "blackbox.cnn.pooling=evidence", "blackbox.rationale.weight=0",
        "blackbox.cnn.dropout=0.1", "blackbox.cnn.frozen_vectors=false",
    ],
    "mlp": ["blackbox.architecture=mlp", "explainer.reads=own"],
}  # fmt: skip


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_ends_with_a_bundle_that_is_explained_like_any_other(
    kind, recipe_path, vectors_path, tmp_path, quiet_exporter, capsys
):
    overrides = [
        *SMALL[kind],
        "blackbox.fit.learning_rate=0.02",
        "explainer.fit.epochs=1",
        "evaluation={}",
    ]
    if kind != "mlp":
        overrides.append(f"blackbox.cnn.vectors={vectors_path}")
    assert run_recipe(recipe_path, overrides, tmp_path, "run") == 0
    run = tmp_path / "tiny"
    measures = json.loads((run / "blackbox" / "metrics.json").read_text())["measures"]["0:dev.tsv"]
    assert measures["accuracy"] > 0.8
    assert sum(map(sum, measures["confusion"])) == 24
    explainer = Explainer.load(run / "bundle")
    [answer] = explainer.explain(["The plot was awful and very dull."])
    assert answer.label == "NEG"
    rebuilt, _ = to_torch(explainer.bundle)
    texts = ["the film was great .", "the ending was terrible and boring " * 9]
    documents = [explainer.encode(text) for text in texts]
    assert len(documents[1].windows) > 1
    np.testing.assert_allclose(
        rebuilt.logits(documents), explainer.logits(documents), atol=1e-4, rtol=0
    )
    data = tmp_path / "texts.tsv"
    data.write_text("\n".join(texts), encoding="utf-8")
    for name in (run / "bundle", run / "blackbox"):
        flags = ["--blackbox", str(name), "--data", str(data), "--text-column", "0"]
        flags += ["--teacher", "deep_shap", "--json", "-", "--runs", str(tmp_path / "runs")]
        capsys.readouterr()
        assert main(["attribute", *flags]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for line in lines:
            total = sum(word["weight"] for word in line["words"])
            assert total == pytest.approx(line["value"] - line["null_value"], abs=1e-4)
