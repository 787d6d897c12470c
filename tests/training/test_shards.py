"""Results in shards of JSON lines, those of the evaluations."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.attribution.store import StoreError
from training.evaluation.shards import SHARD, ShardStore, compute_records, texts_digest


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


plain = st.recursive(
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(["id", "weights", "é"]), plain), max_size=3))
def test_records_come_back_to_the_bit(tmp_path_factory, records):
    """Line separators, NUL and emoji; subnormal numbers, infinities and -0.0."""
    store = ShardStore(tmp_path_factory.mktemp("store"), {"a": 1})
    store.write(0, records)
    assert repr(store.read(1)) == repr(records)


def test_killed_while_writing_leaves_no_shard(tmp_path):
    def records():
        yield {"id": "a"}
        raise Killed

    store = ShardStore(tmp_path / "store", {})
    with pytest.raises(Killed):
        store.write(0, records())
    assert store.missing(1) == [0]


def test_missing_shards_are_those_not_written(tmp_path):
    store = ShardStore(tmp_path / "store", {})
    store.write(1, [{"id": "a"}])
    assert store.missing(3) == [0, 2]
    assert ShardStore(tmp_path / "store", {}).missing(3) == [0, 2]
    assert store.missing(0) == []


def test_an_empty_shard_is_read_as_empty(tmp_path):
    store = ShardStore(tmp_path / "store", {})
    store.write(0, [])
    assert store.read(1) == []


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_one_damaged_byte_is_found_and_the_file_named(bit, tmp_path):
    """Anywhere in the file; with the highest bit turned it is not even UTF-8."""
    store = ShardStore(tmp_path / "store", {})
    store.write(0, [{"id": "a", "weights": [0.5]}, {"id": "é", "weights": []}])
    path = tmp_path / "store" / "00000.jsonl"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"00000\.jsonl is damaged: remove it"):
            store.read(1)
    path.write_bytes(whole)
    assert len(store.read(1)) == 2


def test_a_cut_file_is_found_and_named(tmp_path):
    store = ShardStore(tmp_path / "store", {})
    store.write(0, [{"id": "a"}, {"id": "b"}])
    path = tmp_path / "store" / "00000.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=r"00000\.jsonl is damaged: remove it"):
            store.read(1)


@pytest.mark.parametrize(
    ("key", "what"), [({"a": 2}, "a"), ({}, "a"), ({"a": 1, "b": None, "c": 0}, "c")]
)
def test_another_setting_is_refused_and_named(key, what, tmp_path):
    ShardStore(tmp_path, {"a": 1})
    with pytest.raises(StoreError, match=rf"results of another run \({what} differ\): remove"):
        ShardStore(tmp_path, key)


def test_a_damaged_key_is_named(tmp_path):
    ShardStore(tmp_path, {"a": 1})
    for content in (b"{", b"\xff", b"", b"3", b"null", b"[1]"):
        (tmp_path / "key.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"key\.json is damaged: remove the folder"):
            ShardStore(tmp_path, {"a": 1})


def test_the_digest_of_texts_knows_their_borders_and_order():
    lists = (["a b"], ["a", "b"], ["b", "a"], ["a", "b", ""], ["\ud800"])
    assert len({texts_digest(texts) for texts in lists}) == 5


def test_files_are_plain_json_lines(tmp_path):
    store = ShardStore(tmp_path, {})
    store.write(0, [{"id": "a", "weights": [0.5]}, {"id": "é"}])
    *records, last = map(json.loads, (tmp_path / "00000.jsonl").read_text("utf-8").splitlines())
    assert records == [{"id": "a", "weights": [0.5]}, {"id": "é"}]
    assert set(last) == {"sha256"}


@pytest.mark.parametrize("life", range(10))
def test_killed_at_any_record_it_resumes(life, tmp_path):
    """At most a shard is computed twice, none is left out."""
    made: list[int] = []

    def compute(row):
        if len(made) == life:
            raise Killed
        made.append(row)
        return {"row": row}

    with pytest.raises(Killed):
        compute_records(tmp_path, {"a": 1}, 11, compute, "rows")
    assert made == [*range(life)]
    made.clear()
    life = 100
    found = compute_records(tmp_path, {"a": 1}, 11, compute, "rows")
    assert found == [{"row": row} for row in range(11)]
    assert made == [*range(made[0], 11)]
    assert made[0] % SHARD == 0


def test_each_key_has_a_folder_of_its_own(tmp_path):
    for key, value in (("a", 1), ("b", 2), ("a", 1)):
        rows = compute_records(tmp_path, {"key": key}, 1, {0: {"v": value}}.__getitem__, "rows")
        assert rows == [{"v": value}]
    assert len([*tmp_path.iterdir()]) == 2
