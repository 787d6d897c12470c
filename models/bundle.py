"""The on-disk bundle of a trained pair; the only reader and writer of the format.

A bundle is a directory of four files: `manifest.json` (what the pair is, with the checksum of
every other file), `model.onnx`, `tokenizer.json` and `config.json`. Loading checks all of it and
raises one of the named errors of `models.manifest`.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from models.manifest import (
    CONFIG,
    MANIFEST,
    MODEL,
    SCHEMA_VERSION,
    TOKENIZER,
    BundleError,
    CorruptFileError,
    Golden,
    Manifest,
    MismatchError,
    MissingFileError,
    SchemaVersionError,
    dump,
    sha256,
)

__all__ = [
    "CONFIG",
    "MANIFEST",
    "MODEL",
    "SCHEMA_VERSION",
    "TOKENIZER",
    "Bundle",
    "BundleError",
    "CorruptFileError",
    "Golden",
    "Manifest",
    "MismatchError",
    "MissingFileError",
    "SchemaVersionError",
    "load",
    "save",
    "save_changed",
]

_CURE: Final = "restore the bundle from its source or export it again"
# Fields of the manifest that `save` fills in by itself.
_DERIVED: Final = ("schema_version", "files", "tokenizer_sha256")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; `config` holds `{"classifier": {…}, "explainer": {…}}`."""

    path: Path
    manifest: Manifest
    config: Mapping[str, Any] = field(repr=False)
    tokenizer_json: str = field(repr=False)

    @property
    def model_path(self) -> Path:
        """Where the ONNX graph lies."""
        return self.path / MODEL

    @property
    def digest(self) -> str:
        """The sha256 in hexadecimal that names this bundle; two runs of one recipe share it."""
        return self.manifest.digest

    def model_bytes(self) -> bytes:
        """Read the ONNX graph."""
        return self.model_path.read_bytes()


def load(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and verify all of it.

    Args:
        path: the directory of the bundle.

    Raises:
        BundleError: one of its four kinds, in one line with the cure.
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists():
        raise MissingFileError(
            f"{folder}: no bundle here ({MANIFEST} is missing): give the directory of a bundle"
            " or make one with `l2e run RECIPE.toml`"
        )
    record = _parse(folder / MANIFEST, _read(folder / MANIFEST))
    digest = record.pop("digest", None)
    manifest = _manifest(folder / MANIFEST, record)
    tokenizer = _verified(folder, TOKENIZER, manifest)
    config = _parse(folder / CONFIG, _verified(folder, CONFIG, manifest))
    if not all(isinstance(config.get(half), dict) for half in ("classifier", "explainer")):
        _corrupt(folder / CONFIG, "does not describe a classifier and an explainer")
    _verified(folder, MODEL, manifest)
    # Last, so that a hand-edited manifest is first told what does not fit in it.
    if digest is None or digest != _digest(manifest):
        _corrupt(folder / MANIFEST, "was changed after it was saved")
    return Bundle(folder, manifest, config, tokenizer.decode())


def save(
    path: str | os.PathLike[str],
    *,
    model: bytes,
    tokenizer_json: str,
    config: Mapping[str, Any],
    name: str,
    labels: Sequence[str],
    max_tokens: int,
    overlap: int,
    temperature: float,
    mask_token: str,
    precision: str,
    teacher: Mapping[str, Any],
    recipe: Mapping[str, Any],
    card: Mapping[str, Any],
    golden: Golden,
    times: Mapping[str, Any],
    versions: Mapping[str, Any],
) -> Bundle:
    """Write a bundle so that `path` only ever shows a whole one, and replace an older bundle.

    `path` is the directory, whose parents are made; the other arguments are the contents of the
    files and the fields of `Manifest`.

    Raises:
        ValueError: fields that do not fit together.
        BundleError: `path` holds files that are not a bundle's, or what was written is not valid.
    """
    contents = {MODEL: model, TOKENIZER: tokenizer_json.encode(), CONFIG: dump(config)}
    table = {key: {"sha256": sha256(data), "size": len(data)} for key, data in contents.items()}
    manifest = Manifest(
        SCHEMA_VERSION, name, tuple(labels), max_tokens, overlap, temperature, mask_token,
        precision, teacher, recipe, card, table, sha256(contents[TOKENIZER]), golden, times,
        versions,
    )  # fmt: skip
    contents[MANIFEST] = dump(manifest.to_dict() | {"digest": manifest.digest})
    target = Path(path).resolve()  # a link to a bundle stays a link
    _refuse_strangers(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f"{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        scratch.mkdir()
        for key, data in contents.items():
            _write(scratch / key, data)
        _sync_directory(scratch)
        bundle = load(scratch)  # what load would refuse is never shown
        _publish(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return replace(bundle, path=target)


def save_changed(
    bundle: Bundle,
    path: str | os.PathLike[str],
    *,
    model: bytes | None = None,
    **changes: Any,
) -> Bundle:
    """Write a copy of a bundle in which some things are changed, as `save` would write it.

    Args:
        bundle: the original.
        path: of the copy; the original's own has it replaced.
        model: the graph; None keeps that of the original.
        changes: other arguments of `save` by name, such as `card`.

    Raises:
        ValueError, BundleError: see `save`.
    """
    manifest = bundle.manifest
    kept: dict[str, Any] = {
        entry.name: getattr(manifest, entry.name)
        for entry in fields(manifest)
        if entry.name not in _DERIVED
    }
    kept |= {"tokenizer_json": bundle.tokenizer_json, "config": bundle.config}
    return save(path, model=bundle.model_bytes() if model is None else model, **kept | changes)


def _manifest(path: Path, record: dict[str, Any]) -> Manifest:
    """Build the manifest; the version is judged first, since a newer one has other fields."""
    version = record.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path}: has schema version {version}, this l2e reads up to {SCHEMA_VERSION}:"
            " install a newer l2e or export the bundle again"
        )
    if type(version) is int and version < 1:
        _corrupt(path, f"has schema version {version}, the first is 1")
    try:
        return Manifest.from_dict(record)
    except (ValueError, OverflowError) as error:
        _corrupt(path, f"is not a manifest: {error}")


def _digest(manifest: Manifest) -> str | None:
    """Return the digest, or None where values have no JSON form (NaN, lone surrogates)."""
    try:
        return manifest.digest
    except ValueError:
        return None


def _verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Return the bytes of a file that has the size and the checksum of the manifest."""
    path, entry = folder / name, manifest.files[name]
    data = _read(path)
    checksum = sha256(data)
    # A whole tokenizer of another model is a swap; anything else is damage, judged further down.
    whole = checksum == entry["sha256"] or (len(data) != entry["size"] and _is_json(data))
    if name == TOKENIZER and whole and checksum != manifest.tokenizer_sha256:
        raise MismatchError(
            f"{path}: is not the tokenizer this model was trained with (sha256"
            f" {checksum[:12]}…, expected {manifest.tokenizer_sha256[:12]}…): {_CURE}"
        )
    if len(data) != entry["size"]:
        _corrupt(path, f"has {len(data)} bytes instead of {entry['size']}")
    if checksum != entry["sha256"]:
        _corrupt(path, f"has sha256 {checksum[:12]}… instead of {entry['sha256'][:12]}…")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: is missing from the bundle: {_CURE}") from None
    except OSError as error:
        raise CorruptFileError(
            f"{path}: cannot be read ({error.strerror}): check its type and its permissions"
        ) from error


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    if not _is_json(data):
        _corrupt(path, "is not readable JSON")
    record: dict[str, Any] = json.loads(data)
    return record


def _corrupt(path: Path, what: str) -> NoReturn:
    raise CorruptFileError(f"{path}: {what}: {_CURE}")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_strangers(target: Path) -> None:
    """Refuse to replace anything but a bundle: the user may have named the wrong directory."""
    if not target.exists():
        return
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else {target.name}
    strangers = names - {MANIFEST, MODEL, TOKENIZER, CONFIG}
    if strangers:
        raise BundleError(
            f"{target}: holds {min(strangers)!r}, which is not part of a bundle and would be lost:"
            " save to another directory or move it away"
        )


def _publish(scratch: Path, target: Path) -> None:
    """Rename the finished directory into place; between the two renames there is none at all."""
    old = scratch.with_name(f"{scratch.name}-old")
    if target.exists():
        target.rename(old)
    try:
        scratch.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)
