"""Datasets in the ERASER format (DeYoung et al., ACL 2020): SPLIT.jsonl beside docs/."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.example import DataError, Example

Span = tuple[int, int]


def read_eraser(directory: Path, split: str) -> list[Example]:
    """Reads one split.

    Evidence offsets of the format index whitespace tokens of the document; they become
    code-point spans.

    Raises:
        DataError: when the split, a document or a field is missing.
    """
    path = directory / f"{split}.jsonl"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in directory.glob("*.jsonl"))) or "none"
        raise DataError(f"{directory} has no {split}.jsonl; splits found: {found} (choose --split)")
    # Not splitlines: JSON strings may hold line separators such as U+2028.
    lines = _read_text(path).split("\n")
    examples = [
        _read_line(directory, f"{path}:{number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not examples:
        raise DataError(f"{path} has no rows")
    return examples


def _read_line(directory: Path, where: str, line: str) -> Example:
    try:
        record: dict[str, Any] = json.loads(line)
        identifier, label = str(record["annotation_id"]), str(record["classification"])
        pieces = [piece for group in record["evidences"] for piece in group]
        names = {str(piece["docid"]) for piece in pieces} or {*map(str, record.get("docids") or [])}
        ranges = [(int(piece["start_token"]), int(piece["end_token"])) for piece in pieces]
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg}); repair or remove the line") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            f"{where} is not an ERASER line: it needs annotation_id, classification and evidences "
            "with docid, start_token and end_token"
        ) from None
    if len(names) > 1:
        raise DataError(
            f"{where} draws evidence from {len(names)} documents; only one is supported"
        )
    folder = directory / "docs"
    document = folder / (names.pop() if names else identifier)
    if not document.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where} names a document outside {folder}; repair the line")
    if not document.is_file():
        raise DataError(f"{where} names {document}, which does not exist; restore the docs folder")
    text = _read_text(document)
    return Example(identifier, text, label, _char_spans(text, ranges, where))


def _char_spans(text: str, ranges: Sequence[Span], where: str) -> tuple[Span, ...]:
    """Turns ranges of whitespace tokens into sorted ranges of code points."""
    tokens = [match.span() for match in re.finditer(r"\S+", text)]
    spans = []
    for start, end in ranges:
        if not 0 <= start < end <= len(tokens):
            raise DataError(
                f"{where} has evidence {start}:{end} outside the {len(tokens)} tokens of its "
                "document; restore the docs folder"
            )
        spans.append((tokens[start][0], tokens[end - 1][1]))
    return tuple(sorted(spans))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
