"""What a bundle says about itself: the manifest, its golden answer, and the errors of loading.

BundleError
├── MissingFileError     a file, or the whole bundle, is not there
├── CorruptFileError     a file is not what was saved: changed bytes, unreadable JSON, wrong types
├── MismatchError        whole files that do not belong together: tokenizer, graph, golden answer
└── SchemaVersionError   written by a newer l2e
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final

SCHEMA_VERSION: Final = 1
# In what a graph multiplies its matrices: float32; float16, for GPUs; or 8-bit integers with scales
# that were fixed when it was exported.
PRECISIONS: Final = ("fp32", "fp16", "int8")
# How far a device that computes in less than the graph says may be off the golden answer, where
# the answer itself says nothing of that precision.
_LESS: Final = {"bf16": 0.2}
MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
CONFIG: Final = "config.json"


class BundleError(Exception):
    """A bundle cannot be used; the message is one line: what, where, the cure."""


class MissingFileError(BundleError):
    """A file of the bundle, or the bundle itself, is not there."""


class CorruptFileError(BundleError):
    """A file is not what was saved: changed bytes, unreadable JSON, values of a wrong type."""


class MismatchError(BundleError):
    """Files are whole but do not belong together, or do not give the golden answer."""


class SchemaVersionError(BundleError):
    """The bundle was written by a newer version of l2e."""


@dataclass(frozen=True)
class Golden:
    """One text with the answer the pair must give, checked whenever a bundle is loaded.

    `logits` has one value per class, `weights` one per word for the label `target`; `tolerance`
    is the largest absolute difference allowed, by precision, such as `{"fp32": 1e-3}`.
    """

    text: str
    target: str
    logits: tuple[float, ...]
    weights: tuple[float, ...]
    tolerance: Mapping[str, float]

    def allowed(self, precision: str, computed: str | None = None) -> float:
        """Return the largest difference allowed.

        Args:
            precision: of the graph.
            computed: in what the device computes, where it does not follow the graph.
        """
        own = self.tolerance[precision]
        return own if computed is None else max(own, self.tolerance.get(computed, _LESS[computed]))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "text": self.text,
            "target": self.target,
            "logits": [float(value) for value in self.logits],
            "weights": [float(value) for value in self.weights],
            "tolerance": {key: float(value) for key, value in self.tolerance.items()},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Golden":
        """Check types and build the pair; ValueError names the field that is wrong."""
        tolerance = _take(record, "tolerance", dict)
        limits = _numbers([*tolerance.values()], "tolerance")
        return cls(
            text=_take(record, "text", str),
            target=_take(record, "target", str),
            logits=_numbers(_take(record, "logits", list), "logits"),
            weights=_numbers(_take(record, "weights", list), "weights"),
            tolerance=dict(zip(tolerance, limits, strict=True)),
        )


@dataclass(frozen=True)
class Manifest:
    """What the pair is and how it was made.

    `precision` is one of `PRECISIONS`; whatever it is, matrices are stored in float16 or less.
    `temperature` divides the logits before softmax; `max_tokens` counts the special tokens and
    `overlap` is shared by neighbouring windows, both in pieces. `times` alone may differ between
    two runs of one recipe, so `digest` leaves it out.
    """

    schema_version: int
    name: str
    labels: tuple[str, ...]
    max_tokens: int
    overlap: int
    temperature: float
    mask_token: str
    precision: str
    teacher: Mapping[str, Any]
    recipe: Mapping[str, Any]
    card: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]  # name -> {"sha256", "size" in bytes}
    tokenizer_sha256: str
    golden: Golden
    times: Mapping[str, Any]
    versions: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse values that cannot work together (ValueError)."""
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError("field 'labels' needs at least two different labels")
        if self.max_tokens < 8 or not 0 <= self.overlap < self.max_tokens // 2:
            raise ValueError("fields 'max_tokens' and 'overlap' do not fit together")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError("field 'temperature' is not above 0")
        if len(self.golden.logits) != len(self.labels) or self.golden.target not in self.labels:
            raise ValueError("field 'golden' does not fit 'labels'")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"field 'precision' is {self.precision!r}, not one of {known}")
        if self.precision not in self.golden.tolerance:
            raise ValueError(f"field 'golden' has no tolerance for precision {self.precision!r}")

    @cached_property  # every answer of the service names it
    def digest(self) -> str:
        """The sha256 in hexadecimal of everything but `times`."""
        record = {key: value for key, value in self.to_dict().items() if key != "times"}
        return sha256(dump(record))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        record = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        record |= {"labels": list(self.labels), "temperature": float(self.temperature)}
        return record | {"golden": self.golden.to_dict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Manifest":
        """Check types and build the manifest; ValueError names the field that is wrong."""
        unknown = set(record) - {entry.name for entry in fields(cls)}
        if unknown:
            raise ValueError(f"unknown field {min(unknown)!r}")
        kinds = {"schema_version": int, "max_tokens": int, "overlap": int, "temperature": float}
        kinds |= dict.fromkeys(("name", "mask_token", "precision", "tokenizer_sha256"), str)
        kinds |= dict.fromkeys(("teacher", "recipe", "card", "times", "versions"), dict)
        values = {name: _take(record, name, kind) for name, kind in kinds.items()}
        labels = _take(record, "labels", list)
        if not all(isinstance(label, str) and label.strip() for label in labels):
            raise ValueError("field 'labels' holds something that is not a name")
        files = _take(record, "files", dict)
        if set(files) != {MODEL, TOKENIZER, CONFIG}:
            raise ValueError("field 'files' does not list the files of a bundle")
        for entry in files.values():
            _take(entry, "sha256", str)
            _take(entry, "size", int)
        golden = Golden.from_dict(_take(record, "golden", dict))
        return cls(labels=tuple(labels), files=files, golden=golden, **values)


def dump(record: Mapping[str, Any]) -> bytes:
    """Return the one JSON form of a record: same record, same bytes."""
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def sha256(data: bytes) -> str:
    """Return the checksum in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _take(record: object, name: str, kind: type) -> Any:
    """Return a field of exactly this JSON type (an integer passes for a float)."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"field {name!r} is missing")
    value = record[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # exact, because a bool is an int to isinstance
        raise ValueError(f"field {name!r} is of type {type(value).__name__}, not {kind.__name__}")
    return value


def _numbers(values: list[Any], name: str) -> tuple[float, ...]:
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"field {name!r} holds something that is not a finite number")
    return tuple(float(value) for value in values)
