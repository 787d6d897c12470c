"""From a `DataSource` of a recipe or the command line to examples."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.text import check_text
from training.config import DataSource
from training.data.eraser import read_eraser
from training.data.example import DataError, Example
from training.data.hub import read_hub
from training.data.tables import read_table


def load(source: DataSource, labels: Sequence[str] | None = None, root: str = ".") -> list[Example]:
    """Reads a source, maps its labels and takes its seeded sample.

    The ids are those of the source where they are unique there, else row numbers from 0.

    Args:
        source: what to read; its path is a file, an ERASER directory, `hub:NAME`, or
            `package:MODULE/FILE` for a file shipped inside an installed package.
        labels: the labels that are allowed; None allows all.
        root: folder that a relative path starts from; `~` is the home folder.

    Raises:
        DataError: one clear line about what is missing or wrong.
    """
    examples = _read(source, root)
    if len({example.id for example in examples}) < len(examples):
        examples = [replace(example, id=str(row)) for row, example in enumerate(examples)]
    examples = [_clean(example, source) for example in examples]
    if labels is not None:
        _check_labels(source, examples, labels)
    rows = len(examples)
    examples = cut_part(examples, source.part, source.seed)
    if not examples:
        part = ", ".join(f"{share:g}" for share in source.part)
        raise DataError(f"{source.path}: part [{part}] of {rows} rows is empty: give a larger one")
    if source.limit is not None:
        examples = sample(examples, source.limit, source.seed)
    return examples


def cut_part(examples: Sequence[Example], part: Sequence[float], seed: int) -> list[Example]:
    """Returns a part of a seeded shuffle, in the order of the input.

    Parts that follow each other, such as (0, 0.8) and (0.8, 1), have no example in common and
    miss none.

    Args:
        examples: to cut.
        part: from and to, shares in [0, 1].
        seed: of the shuffle.
    """
    first, last = (round(share * len(examples)) for share in part)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[row] for row in np.sort(order[first:last])]


def sample(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """Draws a label-stratified sample of `limit` examples, in the order of the input.

    Each label gets its share of the whole, rounded by largest remainder.

    Args:
        examples: to draw from.
        limit: at least 1; all examples are returned where there are no more.
        seed: the same seed draws the same sample.
    """
    if limit < 1:
        raise DataError(f"a sample of {limit} texts: give a limit of at least 1")
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
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of a parent package, or no module's name
        found = None
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"package {module} is not installed: pip install {module.replace('_', '-')}"
        )
    return Path(next(iter(found.submodule_search_locations))) / rest


def _read(source: DataSource, root: str) -> list[Example]:
    if source.path.startswith("hub:"):
        name = source.path.removeprefix("hub:")
        return read_hub(name, source.split, source.text_column, source.label_column, source.where)
    if source.path.startswith("package:"):
        path = package_path(source.path.removeprefix("package:"))
    else:
        path = Path(root).expanduser() / Path(source.path).expanduser()
    if path.is_dir():
        if source.where:
            raise DataError(f"{path} is in ERASER format and has no columns: leave `where` out")
        return read_eraser(path, source.split)
    if not path.is_file():
        raise DataError(f"no data at {path}; {source.obtain}")
    return read_table(path, source.text_column, source.label_column, source.where)


def _clean(example: Example, source: DataSource) -> Example:
    text = example.text
    for old, new in source.replace.items():
        if example.rationale and len(old) != len(new) and old in text:
            raise DataError(
                f"{source.path}, id {example.id}: replacing {old!r} would move its rationale: "
                "replace by as many characters, or clean the documents and their evidence"
            )
        text = text.replace(old, new)
    try:
        check_text(text)
    except ValueError as error:
        raise DataError(f"{source.path}, id {example.id}: {error}") from None
    label = source.label_map.get(example.label, example.label)
    return replace(example, text=text, label=label)


def _check_labels(source: DataSource, examples: Sequence[Example], labels: Sequence[str]) -> None:
    first = {example.label: example.id for example in reversed(examples)}
    unknown = sorted(set(first) - set(labels))
    if unknown:
        # A whole text may stand where the label should: say enough to recognise it.
        shown = ", ".join(
            f"{' '.join(label.split())[:40]} (first: id {first[label]})" for label in unknown[:5]
        )
        raise DataError(
            f"{source.path} has labels {shown}; expected {', '.join(labels)} "
            "(translate with --label-map OLD=NEW,…)"
        )
