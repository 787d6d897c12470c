"""Datasets in the ERASER format (DeYoung et al., ACL 2020): SPLIT.jsonl beside docs/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from training.data.example import DataError, Example


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
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            examples.append(_read_line(directory, f"{path}:{number}", line))
    return examples


def _read_line(directory: Path, where: str, line: str) -> Example:
    try:
        record: dict[str, Any] = json.loads(line)
        identifier, label = str(record["annotation_id"]), str(record["classification"])
        evidences = [piece for group in record["evidences"] for piece in group]
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg}); repair or remove the line") from None
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{where} lacks {error}: an ERASER line has annotation_id, classification and evidences"
        ) from None
    names = {str(piece["docid"]) for piece in evidences} or {identifier}
    if len(names) > 1:
        raise DataError(
            f"{where} draws evidence from {len(names)} documents; only one is supported"
        )
    document = directory / "docs" / names.pop()
    if not document.is_file():
        raise DataError(f"{where} names {document}, which does not exist; restore the docs folder")
    text = document.read_text(encoding="utf-8")
    tokens = [match.span() for match in re.finditer(r"\S+", text)]
    spans = []
    for piece in evidences:
        start, end = int(piece["start_token"]), int(piece["end_token"])
        if not 0 <= start < end <= len(tokens):
            raise DataError(f"{where} has evidence {start}:{end} outside the {len(tokens)} tokens")
        spans.append((tokens[start][0], tokens[end - 1][1]))
    return Example(identifier, text, label, tuple(sorted(spans)))
