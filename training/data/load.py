"""From a `DataSource` of a recipe or the command line to examples."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.config import DataSource
from training.data.eraser import read_eraser
from training.data.example import DataError, Example
from training.data.hub import read_hub
from training.data.tables import read_table


def load(source: DataSource, labels: Sequence[str] | None = None, root: str = ".") -> list[Example]:
    """Reads a source, maps its labels and takes its seeded sample.

    Args:
        source: what to read; its path is a file, an ERASER directory, `hub:NAME`, or
            `package:MODULE/FILE` for a file shipped inside an installed package.
        labels: the labels that are allowed; None allows all.
        root: folder that a relative path starts from.

    Raises:
        DataError: one clear line about what is missing or wrong.
    """
    examples = _read(source, root)
    examples = [_clean(example, source) for example in examples]
    if labels is not None:
        _check_labels(source, examples, labels)
    if source.limit is not None:
        examples = sample(examples, source.limit, source.seed)
    return examples


def sample(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """Draws a label-stratified sample of `limit` examples, in the order of the input.

    Each label gets its share of the whole, rounded by largest remainder.
    """
    if limit >= len(examples):
        return list(examples)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows[example.label].append(row)
    names = sorted(rows)
    exact = np.array([limit * len(rows[name]) / len(examples) for name in names])
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: limit - counts.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(rows[name], count, replace=False)
        for name, count in zip(names, counts, strict=True)
    ]
    return [examples[row] for row in np.sort(np.concatenate(chosen))]


def package_path(name: str) -> Path:
    """Resolves `MODULE/FILE` to a path inside an installed package.

    Raises:
        DataError: when the package is not installed.
    """
    module, _, rest = name.partition("/")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"package {module} is not installed: pip install {module.replace('_', '-')}"
        )
    return Path(next(iter(found.submodule_search_locations))) / rest


def _read(source: DataSource, root: str) -> list[Example]:
    if source.path.startswith("hub:"):
        name = source.path.removeprefix("hub:")
        return read_hub(name, source.split, source.text_column, source.label_column)
    if source.path.startswith("package:"):
        path = package_path(source.path.removeprefix("package:"))
    else:
        path = Path(root) / source.path
    if path.is_dir():
        return read_eraser(path, source.split)
    if not path.is_file():
        raise DataError(f"no data at {path}; {source.obtain}")
    return read_table(path, source.text_column, source.label_column, source.where)


def _clean(example: Example, source: DataSource) -> Example:
    text = example.text
    for old, new in source.replace.items():
        text = text.replace(old, new)
    label = source.label_map.get(example.label, example.label)
    return replace(example, text=text, label=label)


def _check_labels(source: DataSource, examples: Sequence[Example], labels: Sequence[str]) -> None:
    unknown = sorted({example.label for example in examples} - set(labels))
    if unknown:
        raise DataError(
            f"{source.path} has labels {', '.join(unknown[:5])}; expected {', '.join(labels)} "
            "(translate with --label-map OLD=NEW,…)"
        )
