"""The record that every reader of data returns."""

from __future__ import annotations

from dataclasses import dataclass


class DataError(ValueError):
    """A data file cannot be used; the message is one line: what, where, the cure."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its gold label.

    Attributes:
        id: unique within its source.
        text: as read.
        label: a label name, after `label_map`; empty where labels were not asked for.
        rationale: human evidence as half-open code-point spans of `text`, or None where the
            source has none.
    """

    id: str
    text: str
    label: str = ""
    rationale: tuple[tuple[int, int], ...] | None = None
