"""Attributions on disk; what runs do with them: test_run.py."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.attribution.record import PREDICTED, Attribution
from training.attribution.store import OPEN, AttributionStore, StoreError, encode_records

KEY = {"black_box": "linear", "precision": "fp32"}
FIELDS = ("target", "teacher", "budget", "seed", "eps")
any_float = st.floats(allow_nan=False, width=64)  # subnormal, infinite and -0.0 too
any_text = st.text(st.characters(exclude_categories=["Cs"]))


def record(**changes):
    fields: dict[str, Any] = {
        "id": "", "target": 1, "teacher": "lime", "budget": 3, "seed": 2, "value": 0.5,
        "null_value": -0.25, "weights": np.array([0.5, -0.0]), "values": np.array([0.5, -0.25, 1]),
    }  # fmt: skip
    return Attribution(**{**fields, **changes})


def put(store, found, *, text="a film", asked=PREDICTED, seconds=0.25):
    return store.add(encode_records([text], [asked], [found]), seconds)


def get(store, *, text="a film", target=PREDICTED, teacher="lime", seed=2, budget=3):
    return store.find(text, target, teacher, seed, budget)


def bits(*numbers):
    return np.array(numbers, dtype=np.float64).tobytes()


def same(mine, theirs):
    """Equal to the bit, the id aside, which a store does not keep."""
    for name in FIELDS:
        assert getattr(mine, name) == getattr(theirs, name)
    assert bits(mine.value, mine.null_value) == bits(theirs.value, theirs.null_value)
    for name in ("weights", "values"):
        assert getattr(mine, name).dtype == np.float64
        assert getattr(mine, name).tobytes() == getattr(theirs, name).tobytes()


@pytest.fixture
def store(tmp_path):
    return AttributionStore(tmp_path / "store", KEY)


@pytest.fixture
def reopen(tmp_path):
    return lambda: AttributionStore(tmp_path / "store", KEY)


@given(
    st.lists(any_float, max_size=5), st.lists(any_float, max_size=5), any_float,
    st.none() | any_float, any_text, st.integers(-(2**63), 2**63 - 1), st.integers(0, 2),
)  # fmt: skip
def test_a_record_comes_back_to_the_bit(
    tmp_path_factory, weights, values, value, eps, text, seed, target
):
    found = record(
        weights=np.array(weights), values=np.array(values), value=value, null_value=-0.0, eps=eps,
        seed=seed, target=target,
    )  # fmt: skip
    store = AttributionStore(tmp_path_factory.mktemp("store"), KEY)
    content = encode_records([text, f"{text}."], [PREDICTED, target], [found, record(seed=seed)])
    store.add(content, 0.1)
    for opened in (store, AttributionStore(store.folder, KEY)):
        same(get(opened, text=text, seed=seed), found)
        same(get(opened, text=f"{text}.", target=target, seed=seed), record(seed=seed))


def test_equal_records_give_equal_bytes_and_others_do_not():
    def encode(text="a film", asked=PREDICTED, **changes):
        return encode_records([text], [asked], [record(**changes)])

    assert encode() == encode(id="another name")
    changes: list[dict[str, Any]] = [
        {"target": 0}, {"teacher": "occlusion"}, {"budget": 4}, {"seed": 3}, {"value": 0.75},
        {"null_value": 0.0}, {"eps": 1e-6}, {"weights": np.array([0.5, 0.0])},
        {"weights": np.array([0.5, -0.0, 0.0])}, {"values": np.zeros(0)}, {"text": "a film."},
        {"asked": 1},
    ]  # fmt: skip
    assert len({encode(), *(encode(**change) for change in changes)}) == 1 + len(changes)


def test_a_file_is_named_by_its_bytes_and_its_time_lies_beside_it(store):
    path = put(store, record())
    assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    assert put(store, record(), seconds=9.0) == path
    note = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert note == {"seconds_per_text": 9.0}


def test_a_record_is_found_by_text_target_teacher_and_seed(store):
    put(store, record())
    assert get(store) is not None
    others: list[dict[str, Any]] = [
        {"text": "a film "}, {"target": 0}, {"teacher": "occlusion"}, {"seed": 0},
    ]  # fmt: skip
    for other in others:
        assert get(store, **other) is None


def test_what_was_made_for_the_predicted_class_answers_for_this_class(store):
    put(store, record(target=1), asked=PREDICTED)
    same(get(store, target=1), record())


def test_what_was_made_for_a_class_does_not_say_that_it_is_predicted(store):
    put(store, record(target=1), asked=1)
    assert get(store, target=PREDICTED) is None
    same(get(store, target=1), record())


def test_of_several_budgets_the_one_asked_for_else_the_largest(store, reopen):
    for budget in (10, 40, 20):
        put(store, record(budget=budget, value=float(budget)))
    for opened in (store, reopen()):
        found = [get(opened, budget=budget).budget for budget in (10, 20, 40, 5, 30, 80)]
        assert found == [10, 20, 40, 40, 40, 40]


def test_two_may_add_to_one_folder(store, reopen):
    """Neither has seen what the other wrote; the same record twice is one."""
    other = reopen()
    put(store, record(), text="one")
    put(store, record(), text="both")
    put(other, record(), text="both", seconds=1.0)
    put(other, record(), text="two")
    put(other, record(), text="both", asked=1)
    assert get(store, text="two") is None
    opened = reopen()
    for text in ("one", "two", "both"):
        same(get(opened, text=text), record())
        same(get(opened, text=text, target=1), record())


def test_many_files_of_many_records(store, reopen):
    """Every record is that of its own text, in whatever order they are asked for."""
    texts = [f"text {number}" for number in range(30)]
    for first in range(0, 30, 7):
        part = texts[first : first + 7]
        found = [record(value=float(first + row)) for row in range(len(part))]
        store.add(encode_records(part, [PREDICTED] * len(part), found), 0.5)
    for opened in (store, reopen()):
        for number in np.random.default_rng(0).permutation(30):
            assert get(opened, text=texts[number]).value == number


# Damage


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_one_damaged_byte_is_found_and_the_file_named(bit, store, reopen):
    """Anywhere in the file: at every seventh byte with each of two bits."""
    path = put(store, record())
    whole = path.read_bytes()
    for place in range(bit % 7, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=rf"{path.name} is damaged: remove it and run again"):
            reopen()
    path.write_bytes(whole)
    same(get(reopen()), record())


def test_a_cut_file_is_found_and_named(store, reopen):
    path = put(store, record())
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=rf"{path.name} is damaged: remove it"):
            reopen()


@pytest.mark.parametrize("name", ["a.parquet", f"{0:064d}.parquet", "Ä.parquet"])
def test_a_renamed_file_is_named(name, store, reopen):
    path = put(store, record())
    path.rename(path.with_name(name))
    with pytest.raises(StoreError, match=rf"{name} is damaged: remove it"):
        reopen()


def test_a_file_that_is_damaged_while_it_is_in_use_is_named(store):
    path = put(store, record())
    other = put(store, record(), text="another")
    same(get(store, text="another"), record())
    for damaged in (path, other):
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=rf"{path.name} is damaged"):
        get(store)


def test_what_a_killed_process_left_behind_does_no_harm(store, reopen):
    """Half a file under its temporary name; a time without its file."""
    path = put(store, record())
    (store.folder / f".{path.name}.12345").write_bytes(path.read_bytes()[:100])
    (store.folder / f".{path.stem}.json.12345").write_bytes(b"{")
    (store.folder / f"{0:064d}.json").write_bytes(b'{"seconds_per_text": 1.0}')
    same(get(reopen()), record())


@pytest.mark.parametrize("note", [None, b"", b"{", b"\xff", b"{}", b"[]", b"null", b'{"a": 1}'])
def test_a_lost_or_damaged_time_is_unknown_and_harmless(note, store, reopen):
    path = put(store, record()).with_suffix(".json")
    if note is None:
        path.unlink()
    else:
        path.write_bytes(note)
    opened = reopen()
    same(get(opened), record())
    assert math.isnan(opened.seconds("a film", get(opened)))


def test_times_are_means_over_texts_and_sums_over_members(store):
    put(store, record(), text="one", seconds=0.5)
    put(store, record(), text="two", seconds=1.5)
    put(store, record(teacher="occlusion", budget=9), text="one", seconds=0.25)
    one, two = record(id="1"), record(id="2")
    texts = {"1": "one", "2": "two"}
    assert store.seconds_per_text(texts, [one, two]) == 1.0
    both = dataclasses.replace(one, members=(one, record(teacher="occlusion", budget=9)))
    assert store.seconds("one", both) == 0.75
    assert math.isnan(store.seconds("three", one))
    assert math.isnan(store.seconds("one", record(budget=4)))


# The key


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ({**KEY, "black_box": "other"}, "black_box"),
        ({**KEY, "precision": "bf16"}, "precision"),
        ({**KEY, "eps": 1e-6}, "eps"),
        ({"black_box": "linear"}, "precision"),
        ({}, "black_box, precision"),
    ],
)
def test_the_store_of_another_black_box_is_refused(key, what, store):
    with pytest.raises(StoreError, match=rf"results of another run \({what} differ\): remove"):
        AttributionStore(store.folder, key)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"", b"[1]", b"3"])
def test_a_damaged_key_is_named(content, store, reopen):
    (store.folder / "key.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"key\.json is damaged: remove the folder"):
        reopen()


def test_a_missing_key_is_named_where_there_are_attributions(store, reopen):
    (store.folder / "key.json").unlink()
    reopen()  # nothing was there yet: as new
    put(store, record())
    (store.folder / "key.json").unlink()
    with pytest.raises(StoreError, match=r"key\.json is missing") as caught:
        reopen()
    assert "remove" in str(caught.value)  # says what to do
    assert not (store.folder / "key.json").exists()


READS = """
import pathlib, sys
from training.attribution import store

def threads():
    return len(list(pathlib.Path("/proc/self/task").iterdir()))

before = threads()
content = pathlib.Path(sys.argv[1]).read_bytes()
folder = pathlib.Path(sys.argv[2])
store.AttributionStore(folder, {}).add(content, 0.5)
records = store.AttributionStore(folder, {}).find("a film", -1, "lime", 2, 3)
assert records is not None
print(before, threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_reading_and_writing_start_no_thread(tmp_path):
    """A thread of Arrow that outlives the work aborted a finished process once in hundreds."""
    made = tmp_path / "made"
    made.write_bytes(encode_records(["a film"], [PREDICTED], [record()]))
    command = [sys.executable, "-c", READS, str(made), str(tmp_path / "folder")]
    before, after = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    assert before == after


def test_files_that_take_turns_are_read_once_each(store):
    """Only a few are kept: memory does not grow with the store."""
    texts = [f"film {number}" for number in range(2 * OPEN)]
    paths = [put(store, record(value=float(row)), text=text) for row, text in enumerate(texts)]
    for text in texts[:OPEN]:
        get(store, text=text)
    for path in paths[:OPEN]:
        path.unlink()
    for _ in range(2):
        assert [get(store, text=text).value for text in texts[:OPEN]] == [*range(OPEN)]
    get(store, text=texts[-1])  # takes the place of the one used longest ago
    assert get(store, text=texts[1]).value == 1
    with pytest.raises(FileNotFoundError):
        get(store, text=texts[0])
    for text in texts[OPEN:]:
        get(store, text=text)
    assert len(store._open) == OPEN
