import json
import math
import random
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    MPNetConfig,
    RobertaConfig,
)

from training.blackbox.copies import LabelledDocument
from training.blackbox.fit import (
    encode_examples,
    group_by_length,
    make_batches,
    measure_accuracy,
)
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.protocol import softmax
from training.config import Optimization
from training.data import DataError, Example

SHORT = "the plot was great and very funny ."
LONG = "the ending was dull and i hated it , but the music was moving . " * 6
TEXTS = [SHORT, "dull", LONG, "zyxomma quux !", "a warm and clever film " * 4]


def encode(black_box, texts):
    return [black_box.encoder.encode(text) for text in texts]


def test_equals_a_plain_forward_of_transformers(lively_black_box, lively_checkpoint):
    model = AutoModelForSequenceClassification.from_pretrained(lively_checkpoint).eval()
    encoding = lively_black_box.encoder.tokenizer.encode(SHORT)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([encoding.ids]), attention_mask=torch.ones(1, len(encoding.ids))
        ).logits.numpy()
    found = lively_black_box.logits(encode(lively_black_box, [SHORT]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_answers_depend_on_the_text(lively_black_box):
    """Else every equality below would hold for a constant classifier."""
    logits = lively_black_box.logits(encode(lively_black_box, TEXTS))
    assert np.ptp(logits[:, 1] - logits[:, 0]) > 0.1


def test_a_text_in_a_padded_batch_is_the_text_alone(lively_black_box):
    documents = encode(lively_black_box, TEXTS)
    together = lively_black_box.logits(documents)
    backwards = lively_black_box.logits(documents[::-1])[::-1]
    alone = np.concatenate([lively_black_box.logits([document]) for document in documents])
    np.testing.assert_allclose(together, alone, atol=2e-6, rtol=0)
    np.testing.assert_allclose(backwards, alone, atol=2e-6, rtol=0)


def test_padding_to_the_bucket_does_not_count(lively_black_box, lively_checkpoint):
    """A text of 6 tokens is padded to 8: the same logits as 6 tokens alone."""
    text = "great clever plot ."
    ids = torch.tensor([lively_black_box.encoder.tokenizer.encode(text).ids])
    assert ids.shape == (1, 6)
    with torch.no_grad():
        expected = lively_black_box.model(input_ids=ids).logits.numpy()
    found = lively_black_box.logits(encode(lively_black_box, [text]))
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_windows_are_averaged(lively_black_box):
    [document] = encode(lively_black_box, [LONG])
    assert len(document.windows) > 2
    with torch.no_grad():
        rows = [
            lively_black_box.model(input_ids=torch.from_numpy(window.input_ids)[None]).logits[0]
            for window in document.windows
        ]
    expected = torch.stack(rows).double().mean(0).numpy()
    assert np.ptp(torch.stack(rows).numpy(), axis=0).max() > 0.01
    np.testing.assert_allclose(lively_black_box.logits([document])[0], expected, atol=2e-6, rtol=0)


def test_a_dropped_word_is_a_typed_mask(lively_black_box):
    """One mask for each piece of the word: `quux` has four."""
    [document] = encode(lively_black_box, ["the quux was very dull ."])
    keep = np.array([word.text not in ("quux", "dull") for word in document.words])
    typed = f"the {'[MASK]' * 4} was very [MASK] ."
    found = lively_black_box.logits([document], [keep])
    np.testing.assert_array_equal(found, lively_black_box.logits(encode(lively_black_box, [typed])))
    assert not np.allclose(found, lively_black_box.logits([document]), atol=1e-3)


def test_a_dropped_word_is_dropped_in_every_window(lively_black_box):
    """`overlap` words lie in two windows and are masked in both."""
    [document] = encode(lively_black_box, [LONG])
    keep = np.random.default_rng(0).random(len(document.words)) < 0.5
    masked = "".join(
        word.text + " " if kept else "[MASK] "
        for word, kept in zip(document.words, keep, strict=True)
    )
    pieces = [int((window.word_index >= 0).sum()) for window in document.windows]
    assert sum(pieces) > len(document.words)
    np.testing.assert_array_equal(
        lively_black_box.logits([document], [keep]),
        lively_black_box.logits(encode(lively_black_box, [masked])),
    )


def test_each_copy_has_its_own_mask(lively_black_box):
    [document] = encode(lively_black_box, [SHORT])
    masks = list(np.random.default_rng(1).random((5, len(document.words))) < 0.5)
    together = lively_black_box.logits([document] * 5, masks)
    for row, mask in enumerate(masks):
        np.testing.assert_allclose(
            together[row], lively_black_box.logits([document], [mask])[0], atol=2e-6, rtol=0
        )


def test_keeping_everything_is_no_mask(lively_black_box):
    documents = encode(lively_black_box, TEXTS)
    keep = [np.ones(len(document.words), dtype=np.bool_) for document in documents]
    np.testing.assert_array_equal(
        lively_black_box.logits(documents, keep), lively_black_box.logits(documents)
    )


def test_equal_windows_are_evaluated_once(lively_black_box):
    """A masked word lies in one window or two; the others are those of the whole text."""
    black_box = lively_black_box
    subjects = ("film", "plot", "story", "actor", "scene", "camera", "script", "music")
    text = " ".join(f"the {subject} was dull but not too weak ," for subject in subjects)
    document = black_box.encoder.encode(text)
    other = black_box.encoder.encode("great film")
    windows = len(document.windows)
    assert windows > 2
    keep = [np.ones(len(document.words), dtype=bool) for _ in range(4)]
    keep[1][0] = keep[2][-1] = False
    rows = []
    handle = black_box.model.register_forward_hook(
        lambda model, args, kwargs, output: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    together = black_box.logits([*[document] * 4, other, other], [*keep, *[np.ones(2, bool)] * 2])
    assert sum(rows) == windows + 1 + 1 + 1
    rows.clear()
    alone = [black_box.logits([document], [mask])[0] for mask in keep]
    assert sum(rows) == 4 * windows
    handle.remove()
    np.testing.assert_allclose(together[:4], alone, atol=1e-5, rtol=0)
    assert together[0].tolist() == together[3].tolist()
    assert together[4].tolist() == together[5].tolist()
    assert np.abs(together[0] - together[1]).max() > 1e-4
    # Without sharing: each window of each copy in a forward pass of its own.
    masked = [black_box.encoder.masked_ids(part, keep[1]) for part in document.windows]
    with torch.inference_mode():
        logits = [
            black_box.model(
                input_ids=torch.from_numpy(ids)[None], attention_mask=torch.ones(1, len(ids))
            ).logits[0]
            for ids in masked
        ]
    np.testing.assert_allclose(together[1], torch.stack(logits).mean(0).numpy(), atol=1e-5)


def test_reduced_precision_stays_near(lively_black_box):
    documents = encode(lively_black_box, TEXTS)
    exact = lively_black_box.logits(documents)
    lively_black_box.precision = "bf16"
    np.testing.assert_allclose(lively_black_box.logits(documents), exact, atol=0.05)


def test_saved_and_loaded_it_answers_alike(lively_black_box, tmp_path):
    lively_black_box.save(tmp_path / "copy")
    copy = HuggingFaceBlackBox.from_checkpoint(
        str(tmp_path / "copy"), None, max_tokens=32, overlap=4
    )
    assert copy.labels == ("NEG", "POS")
    documents = encode(lively_black_box, TEXTS)
    np.testing.assert_array_equal(copy.logits(documents), lively_black_box.logits(documents))


def test_a_tokenizer_that_truncates_and_pads_is_freed(lively_checkpoint, tmp_path):
    """As all-MiniLM-L6-v2 is published; a text of 600 words keeps them all."""
    black_box = HuggingFaceBlackBox.from_checkpoint(
        str(lively_checkpoint), None, max_tokens=32, overlap=4
    )
    black_box.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    settings["padding"] = {
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    text = "great film " * 300
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None, max_tokens=32, overlap=4)
    document = again.encoder.encode(text)
    covered = np.unique(np.concatenate([window.word_index for window in document.windows]))
    assert covered.tolist() == list(range(-1, 600))
    np.testing.assert_array_equal(
        again.logits([document]), black_box.logits(encode(black_box, [text]))
    )


def test_windows_are_no_longer_than_the_model_can_take(lively_checkpoint):
    black_box = HuggingFaceBlackBox.from_checkpoint(
        str(lively_checkpoint), None, max_tokens=4096, overlap=4
    )
    assert black_box.encoder.max_tokens == 512


NARROW: Any = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize(
    ("kind", "positions", "longest"),
    [
        (BertConfig, 72, 64),  # 65 tokens would be padded to 80
        (BertConfig, 100, 96),
        (BertConfig, 500, 480),
        (AlbertConfig, 128, 128),
        # These count from the position behind that of the pads.
        (RobertaConfig, 66, 64),
        (RobertaConfig, 64, 56),
        (MPNetConfig, 514, 512),
    ],
)
def test_a_padded_window_has_positions(kind, positions, longest, tiny_checkpoint, tmp_path):
    tokenizer = (tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    record = json.loads(tokenizer)
    vocabulary = record["model"]["vocab"]
    vocabulary |= {
        "[PAD]": vocabulary["[UNK]"],
        "[UNK]": vocabulary["[PAD]"],
    }  # pads are 1, as theirs
    config = kind(
        vocab_size=len(vocabulary), max_position_embeddings=positions, pad_token_id=1, **NARROW
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(record), encoding="utf-8")
    black_box = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None, overlap=4)
    assert black_box.encoder.max_tokens == longest
    [document] = encode(black_box, ["great film " * 400])
    assert {len(window.input_ids) for window in document.windows} == {longest}
    assert np.isfinite(black_box.logits([document])).all()


def test_a_saved_black_box_remembers_its_windows(lively_black_box, tiny_checkpoint, tmp_path):
    """As a checkpoint it is explained in the windows that it was trained with."""
    lively_black_box.save(tmp_path)
    again = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None)
    assert (again.encoder.max_tokens, again.encoder.overlap) == (32, 4)
    assert state_digest(again) == state_digest(lively_black_box)
    other = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None, max_tokens=64, overlap=8)
    assert (other.encoder.max_tokens, other.encoder.overlap) == (64, 8)
    foreign = HuggingFaceBlackBox.from_checkpoint(str(tiny_checkpoint), None)
    assert (foreign.encoder.max_tokens, foreign.encoder.overlap) == (512, 32)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(DataError, match="no checkpoint"):
        HuggingFaceBlackBox.from_checkpoint(
            str(tmp_path / "nothing"), None, max_tokens=32, overlap=4
        )


def test_a_classifier_of_other_labels_is_refused(lively_checkpoint):
    with pytest.raises(DataError, match="other labels than the 3 asked for"):
        HuggingFaceBlackBox.from_checkpoint(
            str(lively_checkpoint), ("A", "B", "C"), max_tokens=32, overlap=4
        )


@pytest.mark.parametrize("asked", [("POS", "NEG"), ("pos", "neg")])
def test_labels_of_a_checkpoint_are_not_swapped(asked, lively_checkpoint):
    with pytest.raises(DataError, match=r"labels NEG, POS, in this order: .* not as (POS|pos)"):
        HuggingFaceBlackBox.from_checkpoint(str(lively_checkpoint), asked)


@pytest.mark.parametrize("asked", [("neg", "pos"), ("POS", "OTHER"), ("LABEL_0", "LABEL_1")])
def test_labels_of_a_checkpoint_get_other_names(asked, lively_checkpoint):
    assert HuggingFaceBlackBox.from_checkpoint(str(lively_checkpoint), asked).labels == asked


def test_one_output_is_no_classifier(tiny_checkpoint, tmp_path):
    """As a regression model has; its probabilities would all be 1, its explanations no numbers."""
    config = BertConfig(vocab_size=99, id2label={0: "SCORE"}, **NARROW)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    shutil.copy(tiny_checkpoint / "tokenizer.json", tmp_path)
    with pytest.raises(DataError, match="has one output: give a classifier of two classes"):
        HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None, new_head=False)
    trained_on = HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None)  # for its encoder
    assert len(trained_on.labels) == 1


def test_labels_that_do_not_exclude_each_other_are_refused(tiny_checkpoint, tmp_path):
    config = BertConfig(vocab_size=99, problem_type="multi_label_classification", **NARROW)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    shutil.copy(tiny_checkpoint / "tokenizer.json", tmp_path)
    with pytest.raises(DataError, match="several labels at once: give a function"):
        HuggingFaceBlackBox.from_checkpoint(str(tmp_path), None, new_head=False)


def test_attention_has_no_dropout(lively_black_box):
    """It would turn the fused attention kernel off."""
    lively_black_box.model.train()
    dropouts = {
        name: module.p
        for name, module in lively_black_box.model.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert all(p == 0 for name, p in dropouts.items() if ".self." in name)
    assert any(p > 0 for name, p in dropouts.items() if ".self." not in name)


def test_softmax_is_stable():
    found = softmax(np.array([[1e4, 0.0], [0.0, math.log(3)]]))
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.25, 0.75]], atol=1e-15)


# What the loop is fed


def test_accuracy_counts_whole_documents(lively_black_box):
    documents = encode(lively_black_box, TEXTS)
    predicted = lively_black_box.logits(documents).argmax(1)
    labels = predicted.copy()
    labels[1] = 1 - labels[1]
    labelled = [
        LabelledDocument(document, int(label))
        for document, label in zip(documents, labels, strict=True)
    ]
    assert measure_accuracy(lively_black_box, labelled) == 0.8


def test_labels_become_indices(black_box):
    examples = [Example("a", "great", "POS"), Example("b", "dull", "NEG")]
    assert [part.label for part in encode_examples(black_box, examples)] == [1, 0]


def rows_of(batches):
    """The unpadded rows of all batches, sorted, and their labels."""
    found = []
    for batch in batches:
        for ids, mask, label in zip(
            batch.input_ids, batch.attention_mask, batch.targets, strict=True
        ):
            found.append((ids[: int(mask.sum())].tolist(), int(label)))
    return sorted(found)


def test_an_epoch_visits_every_text_once(black_box):
    texts = [SHORT, "dull", "a clever film", "great " * 20, "weak"]
    labelled = [
        LabelledDocument(document, row % 2) for row, document in enumerate(encode(black_box, texts))
    ]
    settings = Optimization(batch_rows=2)
    batches = make_batches(black_box, labelled, settings, 0.0, seed=1, epoch=0)
    expected = [(part.document.windows[0].input_ids.tolist(), part.label) for part in labelled]
    assert rows_of(batches) == sorted(expected)
    assert all(len(batch.targets) <= 2 for batch in batches)


def test_batches_are_a_function_of_seed_and_epoch(black_box):
    labelled = [LabelledDocument(document, 0) for document in encode(black_box, [LONG, SHORT] * 8)]

    def rows(seed, epoch):
        found = make_batches(black_box, labelled, Optimization(batch_rows=4), 0.5, seed, epoch)
        return [batch.input_ids.tolist() for batch in found]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)


def test_masked_rows_keep_specials_and_length(black_box):
    """With a share of 1 every row is drawn for masking, at rates from 0 to 1."""
    labelled = [LabelledDocument(document, 0) for document in encode(black_box, [SHORT] * 200)]
    ids = labelled[0].document.windows[0].input_ids
    mask_id = black_box.encoder.mask_id
    shares = []
    for row, _ in rows_of(make_batches(black_box, labelled, Optimization(), 1.0, seed=0, epoch=0)):
        masked = np.array(row) == mask_id
        np.testing.assert_array_equal(np.where(masked, ids, row), ids)
        assert not masked[[0, -1]].any()
        shares.append(masked[1:-1].mean())
    # The mean of U(0, 1) over 200 rows of 8 words: 0.5, standard error below 0.03.
    assert abs(np.mean(shares) - 0.5) < 0.09
    assert min(shares) < 0.2
    assert max(shares) > 0.8


def test_groups_hold_like_lengths_within_the_budget():
    chance = random.Random(3)
    lengths = [chance.randint(2, 256) for _ in range(700)]
    settings = Optimization(batch_rows=16, batch_tokens=1024)
    groups = group_by_length(lengths, settings, np.random.default_rng(0))
    assert sorted(row for group in groups for row in group) == list(range(700))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or len(group) * longest <= 1024
        assert len(group) <= 16
    spent = sum(len(group) * max(lengths[row] for row in group) for group in groups)
    assert spent < 1.15 * sum(lengths)
