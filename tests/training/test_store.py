import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.attribution.record import Attribution
from training.attribution.run import attribute_texts
from training.attribution.store import ShardStore, StoreError, from_record, texts_digest, to_record

TEXTS = {
    f"t{number}": f"the {subject} was {word} ."
    for number, (subject, word) in enumerate(
        (subject, word)
        for subject in ("film", "plot")
        for word in ("great", "dull", "weak", "funny", "awful")
    )
}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Mortal:
    """Another black box that is killed at its call number `life`."""

    def __init__(self, inner, life):
        self.labels, self.encoder = inner.labels, inner.encoder
        self.inner, self.life = inner, life

    def logits(self, documents, keep=None):
        self.life -= 1
        if self.life < 0:
            raise Killed
        return self.inner.logits(documents, keep)


@pytest.fixture
def run(linear_black_box, tmp_path):
    """Attributes our ten texts, three to a shard; each shard takes two calls."""

    def attribute(black_box=linear_black_box, texts=None, folder="store", **changes):
        settings = {"teacher": "lime", "budget": 12, "seed": 1, "shard": 3, **changes}
        key = settings.pop("key", {"black_box": "linear"})
        texts = TEXTS if texts is None else texts
        return attribute_texts(black_box, texts, folder=tmp_path / folder, key=key, **settings)

    return attribute


def same(found, expected):
    assert [to_record(record) for record in found] == [to_record(record) for record in expected]


weights = st.lists(st.floats(allow_nan=False, width=64), max_size=5)


@given(weights, st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_record_comes_back_to_the_bit(tmp_path_factory, values, value, name):
    """Names with line separators, NUL and emoji; subnormal numbers, infinities and -0.0."""
    record = Attribution(
        id=name, target=1, teacher="lime", budget=9, seed=2, value=value, null_value=-0.0,
        weights=np.array(values, dtype=np.float64),
    )  # fmt: skip
    store = ShardStore(tmp_path_factory.mktemp("store"), {"a": 1})
    store.write(0, [to_record(record), to_record(record)])
    for line in store.read(1):
        found = from_record(line)
        assert (found.id, found.target, found.teacher) == (name, 1, "lime")
        assert (found.budget, found.seed) == (9, 2)
        assert found.weights.tobytes() == record.weights.tobytes()
        for mine, theirs in ((found.value, value), (found.null_value, -0.0)):
            assert np.float64(mine).tobytes() == np.float64(theirs).tobytes()


def test_results_come_in_the_order_of_the_texts(run):
    found = run()
    assert [record.id for record in found] == list(TEXTS)
    assert [record.target for record in found] == [1, 0, 0, 1, 0] * 2


def test_a_second_run_reads_what_the_first_wrote(run, linear_black_box):
    first = run()
    calls = len(linear_black_box.calls)
    same(run(), first)
    assert len(linear_black_box.calls) == calls


@pytest.mark.parametrize("life", range(8))
def test_killed_at_any_call_it_resumes_and_ends_alike(life, run, linear_black_box, tmp_path):
    whole = run(folder="whole")
    with pytest.raises(Killed):
        run(Mortal(linear_black_box, life))
    written = sorted(path.name for path in (tmp_path / "store").glob("0*"))
    assert written == [f"{shard:05d}.jsonl" for shard in range(life // 2)]
    before = len(linear_black_box.calls)
    same(run(), whole)
    assert len(linear_black_box.calls) - before == 2 * (4 - life // 2)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "store" / path.name).read_bytes() == path.read_bytes()


def test_shards_do_not_matter_to_the_result(run):
    same(run(folder="small", shard=1), run(folder="large", shard=64))


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


def test_a_damaged_file_is_computed_anew_once_removed(run, tmp_path):
    whole = run()
    path = tmp_path / "store" / "00001.jsonl"
    path.write_text(path.read_text().replace('"budget": 12', '"budget": 13'))
    with pytest.raises(StoreError, match=r"00001\.jsonl"):
        run()
    path.unlink()
    same(run(), whole)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"teacher": "occlusion"}, "teacher"),
        ({"budget": 13}, "budget"),
        ({"seed": 2}, "seed"),
        ({"shard": 4}, "shard"),
        ({"key": {"black_box": "other"}}, "black_box"),
        ({"key": {"black_box": "linear", "precision": "bf16"}}, "precision"),
        ({"key": {}}, "black_box"),
        ({"texts": {**TEXTS, "t0": "the film was fine ."}}, "texts"),
    ],
)
def test_another_setting_is_refused_and_named(changes, what, run, tmp_path):
    run()
    with pytest.raises(StoreError, match=rf"store holds .* \({what} differ\): remove the folder"):
        run(**changes)


def test_a_damaged_key_is_named(run, tmp_path):
    run()
    for content in (b"{", b"\xff", b""):
        (tmp_path / "store" / "key.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"key\.json is damaged: remove the folder"):
            run()


def test_the_digest_of_texts_knows_their_borders_and_order():
    lists = (["a b"], ["a", "b"], ["b", "a"], ["a", "b", ""], ["\ud800"])
    assert len({texts_digest(texts) for texts in lists}) == 5


def test_files_are_plain_json_lines(run, tmp_path):
    found = run()
    lines = (tmp_path / "store" / "00000.jsonl").read_text().splitlines()
    *records, last = [json.loads(line) for line in lines]
    assert [record["weights"] for record in records] == [r.weights.tolist() for r in found[:3]]
    assert set(last) == {"sha256"}


def test_texts_may_be_renamed(run, linear_black_box):
    """What was computed for a text stays good; only the name that it is returned under changes."""
    first = run()
    calls = len(linear_black_box.calls)
    renamed = run(texts={f"new {name}": text for name, text in TEXTS.items()})
    assert [record.id for record in renamed] == [f"new {name}" for name in TEXTS]
    assert [record.value for record in renamed] == [record.value for record in first]
    assert len(linear_black_box.calls) == calls
