"""What an explainer reads of the frozen black box, computed once or whenever it is asked."""

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from models.text import pad_rows
from training.config import Optimization, Student
from training.explainer.distill import Lesson, distill, network_config
from training.explainer.states import States

TEXTS = (
    "great film",
    "dull",
    "a great quux film and a dull great film",
    "great film",
    "quux " * 30,
)
MUCH = 1e9


@pytest.fixture
def windows(lively_black_box):
    return [lively_black_box.encoder.encode(text).windows[0] for text in TEXTS]


def config(black_box, **reads):
    return network_config(black_box, Student(width=16, **reads), scale=1.0)


def padded(windows, length=48):
    return (
        torch.from_numpy(part) for part in pad_rows([each.input_ids for each in windows], length, 0)
    )


def calls(work):
    """How often a black box ran, and what the work returned."""
    found = []
    hook = register_module_forward_hook(lambda module, *_: found.append(type(module).__name__))
    try:
        result = work()
    finally:
        hook.remove()
    return len([name for name in found if name.endswith("Model")]), result


@pytest.mark.parametrize("reads", [{"reads": "all"}, {"reads": "layers", "layers": (0, 2)}])
def test_what_is_kept_is_what_would_be_computed(reads, lively_black_box, windows):
    settings = config(lively_black_box, **reads)
    kept, anew = States(lively_black_box, settings), States(lively_black_box, settings)
    assert kept.keep(windows, most=MUCH)
    ids, mask = padded(windows)
    runs, found = calls(lambda: kept.read(ids, mask))
    assert runs == 0
    runs, expected = calls(lambda: anew.read(ids, mask))
    assert runs == 1
    assert found.shape == expected.shape == (5, 48, settings.input_width)
    inside = mask.bool()
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=0)
    assert not found[~inside].any()


def test_what_is_kept_follows_from_the_texts_alone(lively_black_box, windows):
    """So that a run which was killed goes on with the same numbers."""
    settings = config(lively_black_box)
    first, second = States(lively_black_box, settings), States(lively_black_box, settings)
    first.keep(windows, most=MUCH)
    second.keep(windows[::-1], most=MUCH)
    ids, mask = padded(windows)
    assert torch.equal(first.read(ids, mask), second.read(ids, mask))


def test_rows_that_differ_are_computed_once_each(lively_black_box, windows):
    """Four of the five texts differ."""
    settings = config(lively_black_box)
    pieces = sum(len(row) for row in {tuple(window.input_ids) for window in windows})
    least = pieces * settings.input_width * 4
    states = States(lively_black_box, settings)
    assert not states.keep(windows, most=least - 1)
    assert calls(lambda: states.read(*padded(windows[:1])))[0] == 1
    assert states.keep(windows, most=least)
    assert calls(lambda: states.read(*padded(windows[:1])))[0] == 0


def test_a_row_that_was_not_kept_is_computed(lively_black_box, windows):
    states = States(lively_black_box, config(lively_black_box))
    states.keep(windows[:2], most=MUCH)
    runs, found = calls(lambda: states.read(*padded(windows[1:3])))
    assert runs == 1
    assert found[1].any()


def test_own_embeddings_take_the_ids(lively_black_box, windows):
    states = States(lively_black_box, config(lively_black_box, reads="own"))
    assert not states.keep(windows, most=MUCH)
    ids, mask = padded(windows)
    assert states.read(ids, mask) is ids


def test_an_explainer_learns_the_same_from_kept_states(lively_black_box, tmp_path):
    encode, chance = lively_black_box.encoder.encode, np.random.default_rng(0)
    texts = [" ".join(chance.choice(["great", "dull", "film", "quux"], 6)) for _ in range(24)]
    lessons = [Lesson(encode(text), 1, chance.normal(size=6)) for text in texts]

    def learn(keep_gb):
        fit = Optimization(epochs=2, learning_rate=1e-3, batch_rows=4, precision="fp32")
        student = Student(width=16, keep_gb=keep_gb, fit=fit)
        network, _ = distill(
            lively_black_box, lessons[:16], lessons[16:], student, seed=0,
            folder=tmp_path / str(keep_gb),
        )  # fmt: skip
        return network.state_dict()

    kept, anew = learn(1.0), learn(0.0)
    for name, values in anew.items():
        torch.testing.assert_close(kept[name], values, atol=1e-4, rtol=0)
