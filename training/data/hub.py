"""Datasets of the Hugging Face hub, through the `datasets` library (extra `hub`)."""

from __future__ import annotations

from training.data.example import DataError, Example


def read_hub(name: str, split: str, text_column: str, label_column: str) -> list[Example]:
    """Reads one split of a hub dataset.

    Integer class labels become the names that the dataset declares.

    Raises:
        DataError: when the library is missing, or the dataset or a column is.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("hub: data needs the datasets library: pip install 'l2e[hub]'") from None
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises whatever its transport raises
        raise DataError(f"hub:{name} split {split} cannot be loaded: {error}") from error
    for column in (*text_column.split(","), label_column):
        if column not in table.column_names:
            raise DataError(f"hub:{name} has no column {column!r}; found: {table.column_names}")
    names = getattr(table.features[label_column], "names", None)
    return [
        Example(
            str(row.get("id", number)),
            " ".join(str(row[column]) for column in text_column.split(",")),
            names[row[label_column]] if names else str(row[label_column]),
        )
        for number, row in enumerate(table)
    ]
