"""Datasets of the Hugging Face hub, through the `datasets` library (extra `hub`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.example import DataError, Example


def read_hub(
    name: str, split: str, text_column: str, label_column: str | None, where: Mapping[str, str]
) -> list[Example]:
    """Reads one split of a hub dataset.

    Integer class labels become the names that the dataset declares.

    Args:
        name: of the dataset.
        split: of the dataset.
        text_column: a column's name; several, `premise,hypothesis`, are joined by a blank.
        label_column: a column's name; None leaves the labels empty.
        where: only rows in which each of these columns has this value.

    Raises:
        DataError: when the library is missing, or the dataset, a column or a label is.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("hub: data needs the datasets library: pip install 'l2e[hub]'") from None
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises whatever its transport raises
        reason = " ".join(str(error).split())
        raise DataError(f"hub:{name} split {split} cannot be loaded: {reason}") from error
    text_columns = text_column.split(",")
    label_columns = () if label_column is None else (label_column,)
    for column in (*text_columns, *label_columns, *where):
        if column not in table.column_names:
            found = ", ".join(table.column_names)
            raise DataError(f"hub:{name} has no column {column!r}; found: {found}")
    names = None if label_column is None else getattr(table.features[label_column], "names", None)
    return [
        Example(
            str(row.get("id", number)),
            " ".join(str(row[column]) for column in text_columns),
            ""
            if label_column is None
            else _label(row[label_column], names, f"hub:{name} split {split}, row {number}"),
        )
        for number, row in enumerate(table)
        if all(str(row[column]) == value for column, value in where.items())
    ]


def _label(value: Any, names: list[str] | None, place: str) -> str:
    if names is None:
        return str(value)
    # The hub marks a row without a label by -1 or None.
    if value is None or not 0 <= value < len(names):
        raise DataError(f"{place} has no label; choose another split")
    return str(names[value])
