import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from models import bundle
from models.bundle import (
    BundleError,
    CorruptFileError,
    Golden,
    MismatchError,
    MissingFileError,
    SchemaVersionError,
)

FILES = ("manifest.json", "model.onnx", "tokenizer.json", "config.json")


@pytest.fixture
def broken(tiny_bundle, tmp_path):
    """A copy of the tiny bundle to break."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def edit_manifest(path, **changes):
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def assert_clear(error, *mentions):
    """One line that names the place and, after the last colon, the cure."""
    message = str(error.value)
    assert "\n" not in message
    assert len(message.split(": ")) >= 3
    for mention in mentions:
        assert str(mention) in message


def test_load_gives_what_was_saved(tiny_bundle, tiny_fields):
    found = bundle.load(tiny_bundle)
    assert names(tiny_bundle) == sorted(FILES)
    assert found.model_bytes() == tiny_fields["model"] == found.model_path.read_bytes()
    assert found.tokenizer_json == tiny_fields["tokenizer_json"]
    assert found.config == tiny_fields["config"]
    assert found.manifest.schema_version == bundle.SCHEMA_VERSION == 1
    for name in tiny_fields.keys() - {"model", "tokenizer_json", "config"}:
        assert getattr(found.manifest, name) == tiny_fields[name]
    sizes = {name: entry["size"] for name, entry in found.manifest.files.items()}
    assert sizes == {name: (tiny_bundle / name).stat().st_size for name in FILES[1:]}


def test_same_contents_same_bytes(tiny_bundle, tiny_fields, tmp_path):
    again = bundle.save(tmp_path / "again", **tiny_fields)
    for name in FILES:
        assert (again.path / name).read_bytes() == (tiny_bundle / name).read_bytes()


def test_digest_covers_everything_but_the_times(tiny_bundle, tiny_fields, tmp_path):
    first = bundle.load(tiny_bundle)
    later = bundle.save(tmp_path / "later", **tiny_fields | {"times": {"created": "2027"}})
    other = bundle.save(tmp_path / "other", **tiny_fields | {"card": {"language": "German"}})
    assert re.fullmatch("[0-9a-f]{64}", first.digest)
    assert later.digest == first.digest
    assert other.digest != first.digest


def test_whole_numbers_may_be_integers(tiny_fields, tmp_path):
    found = bundle.save(tmp_path / "b", **tiny_fields | {"temperature": 1})
    assert bundle.load(found.path).manifest.temperature == 1.0


@pytest.mark.parametrize("name", FILES)
def test_missing_file(broken, name):
    (broken / name).unlink()
    with pytest.raises(MissingFileError) as error:
        bundle.load(broken)
    assert_clear(error, broken, name)


def test_missing_bundle(tmp_path):
    with pytest.raises(MissingFileError) as error:
        bundle.load(tmp_path / "nowhere")
    assert_clear(error, tmp_path / "nowhere", "l2e run")


def test_a_file_is_not_a_bundle(tiny_bundle):
    with pytest.raises(MissingFileError):
        bundle.load(tiny_bundle / "model.onnx")


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_byte(broken, name, position):
    data = bytearray((broken / name).read_bytes())
    data[position % len(data)] ^= 1
    (broken / name).write_bytes(data)
    with pytest.raises(CorruptFileError) as error:
        bundle.load(broken)
    assert_clear(error, broken / name, "sha256")


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(broken, name):
    os.truncate(broken / name, (broken / name).stat().st_size // 2)
    with pytest.raises(CorruptFileError) as error:
        bundle.load(broken)
    assert_clear(error, broken / name)


def test_flipped_bytes_all_over_the_manifest_are_found(broken):
    path = broken / "manifest.json"
    whole = path.read_bytes()
    before = bundle.load(broken)
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 1
        path.write_bytes(data)
        try:
            after = bundle.load(broken)
        except BundleError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most flips raise, those in `times` do not
        else:
            assert after.digest == before.digest
            assert after.manifest.times != before.manifest.times


def other_tokenizer(tokenizer_json):
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.add_tokens(["unheard"])
    return tokenizer.to_str()


def test_wrong_tokenizer(broken, tiny_tokenizer_json):
    (broken / "tokenizer.json").write_text(other_tokenizer(tiny_tokenizer_json))
    with pytest.raises(MismatchError) as error:
        bundle.load(broken)
    assert_clear(error, broken / "tokenizer.json", "trained with")


def test_wrong_tokenizer_with_its_checksum(broken, tiny_fields, tiny_tokenizer_json, tmp_path):
    wrong = other_tokenizer(tiny_tokenizer_json)
    other = bundle.save(tmp_path / "other", **tiny_fields | {"tokenizer_json": wrong})
    shutil.copy(other.path / "tokenizer.json", broken)
    edit_manifest(broken, files=other.manifest.files)
    with pytest.raises(MismatchError) as error:
        bundle.load(broken)
    assert_clear(error, broken / "tokenizer.json", "trained with")


def test_newer_schema(broken):
    edit_manifest(broken, schema_version=2, labels={"renamed": "field"}, more="fields")
    with pytest.raises(SchemaVersionError) as error:
        bundle.load(broken)
    assert_clear(error, broken / "manifest.json", "version 2", "install a newer l2e")


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe\x00", b'{"a": 1}}'],
)
def test_unreadable_json(tiny_fields, tmp_path, name, content):
    path = bundle.save(tmp_path / "b", **tiny_fields).path
    (path / name).write_bytes(content)
    with pytest.raises(CorruptFileError) as error:
        bundle.load(path)
    assert_clear(error, path / name)


def test_a_directory_in_place_of_a_file(broken):
    (broken / "config.json").unlink()
    (broken / "config.json").mkdir()
    with pytest.raises(CorruptFileError) as error:
        bundle.load(broken)
    assert_clear(error, broken / "config.json", "cannot be read")


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 0},
        {"schema_version": True},
        {"schema_version": "1"},
        {"name": 3},
        {"labels": "NEG,POS"},
        {"labels": ["NEG", "NEG"]},
        {"labels": ["NEG", ""]},
        {"labels": ["ONLY"]},
        {"max_tokens": 4},
        {"max_tokens": 32.5},
        {"overlap": 16},
        {"temperature": 0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"temperature": 10**400},
        {"precision": "int8"},
        {"recipe": []},
        {"files": {}},
        {"files": {"../../etc/passwd": {"sha256": "", "size": 0}}},
        {"golden": {}},
        {"golden": None},
        {"card": {"accuracy": float("nan")}},
        {"card": {"accuracy": 1e999}},
        {"card": {"data": "\ud800"}},
        {"surprise": 1},
        {"name": "renamed by hand"},
    ],
)
def test_manifest_edited_by_hand(broken, changes):
    edit_manifest(broken, **changes)
    with pytest.raises(CorruptFileError) as error:
        bundle.load(broken)
    assert_clear(error, broken / "manifest.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits", [0.5]),
        ("logits", ["a", "b"]),
        ("weights", [True]),
        ("target", "NEUTRAL"),
        ("tolerance", {"fp32": None}),
        ("tolerance", {}),
    ],
)
def test_golden_edited_by_hand(broken, tiny_golden, name, value):
    edit_manifest(broken, golden=tiny_golden.to_dict() | {name: value})
    with pytest.raises(CorruptFileError) as error:
        bundle.load(broken)
    assert_clear(error, broken / "manifest.json")


def test_manifest_without_a_field(broken):
    record = json.loads((broken / "manifest.json").read_text())
    del record["temperature"]
    (broken / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(CorruptFileError, match="'temperature' is missing"):
        bundle.load(broken)


def test_config_describes_both_halves(tiny_fields, tmp_path):
    with pytest.raises(CorruptFileError, match="classifier"):
        bundle.save(tmp_path / "b", **tiny_fields | {"config": {"classifier": {}}})
    assert names(tmp_path) == []


def test_save_replaces_an_older_bundle(tiny_fields, tmp_path):
    first = bundle.save(tmp_path / "b", **tiny_fields)
    second = bundle.save(tmp_path / "b", **tiny_fields | {"name": "second"})
    assert bundle.load(tmp_path / "b").manifest.name == "second"
    assert first.digest != second.digest
    assert names(tmp_path) == ["b"]


def test_save_makes_parents_and_follows_a_link(tiny_fields, tmp_path):
    bundle.save(tmp_path / "deep" / "er", **tiny_fields)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    bundle.save(tmp_path / "link", **tiny_fields | {"name": "second"})
    assert (tmp_path / "link").is_symlink()
    assert bundle.load(tmp_path / "deep" / "er").manifest.name == "second"


def test_a_changed_copy_has_the_rest_of_its_original(tiny_bundle, tmp_path):
    first = bundle.load(tiny_bundle)
    again = bundle.save_changed(first, tmp_path / "again")
    for name in FILES:
        assert (again.path / name).read_bytes() == (tiny_bundle / name).read_bytes()
    other = bundle.save_changed(first, tmp_path / "other", model=b"a graph", card={"new": 1})
    loaded = bundle.load(tmp_path / "other")
    assert loaded == other
    assert loaded.digest != first.digest
    assert loaded.model_bytes() == b"a graph"
    assert loaded.manifest.files["model.onnx"]["size"] == 7
    kept = {"model.onnx": first.manifest.files["model.onnx"]}
    same = dataclasses.replace(
        loaded.manifest, card=first.manifest.card, files={**loaded.manifest.files, **kept}
    )
    assert same == first.manifest
    assert names(tmp_path) == ["again", "other"]


def test_a_bundle_is_changed_in_its_place_or_left_as_it_was(tiny_fields, tmp_path):
    first = bundle.save(tmp_path / "b", **tiny_fields)
    second = bundle.save_changed(first, first.path, name="second")
    assert bundle.load(first.path) == second
    with pytest.raises(ValueError, match="temperature"):
        bundle.save_changed(second, first.path, temperature=0.0)
    with pytest.raises(TypeError, match="'labelz'"):
        bundle.save_changed(second, first.path, labelz=())
    assert bundle.load(first.path) == second
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("kind", ["foreign directory", "notes beside a bundle", "file"])
def test_save_never_replaces_what_is_not_a_bundle(tiny_fields, tmp_path, kind):
    path = tmp_path / "b"
    if kind == "notes beside a bundle":
        bundle.save(path, **tiny_fields)
    elif kind == "foreign directory":
        path.mkdir()
    note = path if kind == "file" else path / "thesis.txt"
    note.write_text("years of work")
    with pytest.raises(BundleError) as error:
        bundle.save(path, **tiny_fields)
    assert_clear(error, path, note.name)
    assert note.read_text() == "years of work"


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("POS",)},
        {"overlap": 31},
        {"temperature": -1.0},
        {"precision": "bf16"},
        {"card": {"accuracy": float("nan")}},
    ],
)
def test_failed_save_leaves_the_old_bundle(tiny_fields, tmp_path, changes):
    old = bundle.save(tmp_path / "b", **tiny_fields)
    with pytest.raises(ValueError, match=r"\w"):
        bundle.save(tmp_path / "b", **tiny_fields | changes)
    assert bundle.load(tmp_path / "b") == old
    assert names(tmp_path) == ["b"]


def test_others_may_read_what_was_saved(tiny_fields, tmp_path):
    before = os.umask(0o022)
    try:
        path = bundle.save(tmp_path / "b", **tiny_fields).path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o755
    assert {(path / name).stat().st_mode & 0o777 for name in FILES} == {0o644}


SAVE_FOREVER = """
import sys
from models import bundle
old = bundle.load(sys.argv[1])
fields = {n: getattr(old.manifest, n) for n in (
    "name labels max_tokens overlap temperature mask_token precision teacher recipe card golden "
    "times versions").split()}
print("ready", flush=True)
while True:
    bundle.save(sys.argv[2], model=bytes(4_000_000), tokenizer_json=old.tokenizer_json,
                config=old.config, **fields)
"""


def test_a_killed_save_is_never_visible(tiny_bundle, tmp_path):
    target = tmp_path / "b"
    seen = 0
    for pause in (0.0, 0.01, 0.02, 0.05, 0.09):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tiny_bundle), str(target)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(bundle.__file__).parents[1])},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            assert bundle.load(target).model_bytes() == bytes(4_000_000)
            seen += 1
    assert seen


def test_golden_round_trip(tiny_golden):
    assert Golden.from_dict(json.loads(json.dumps(tiny_golden.to_dict()))) == tiny_golden
