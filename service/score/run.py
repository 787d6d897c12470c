"""`l2e score`: labels and explains every row of a file, in shards, from where it was killed.

An undisturbed run and one that was killed any number of times write the same bytes; see
`service.score.work` for why.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from models.explainer import Explainer
from models.progress import TextProgress
from service.score.results import check_cell, write_results
from service.score.shards import Counts, WorkFolder, exists_already, open_work, work_path
from service.score.tables import format_of
from service.score.work import (
    SHARD_CHARS,
    SHARD_ROWS,
    VERSION,
    Done,
    ScoreOptions,
    Source,
    Work,
    survey,
)


class Engine(Protocol):
    """Where shards are computed."""

    def __call__(self, explainer: Explainer, work: Work) -> Generator[Done, None, None]:
        """Does all of `work.jobs()` and yields each result when it is there, in any order.

        Whoever asks closes it, so that nothing goes on where the results are no longer wanted.
        """
        ...


def run_locally(explainer: Explainer, work: Work) -> Generator[Done, None, None]:
    """Does the jobs one after the other in this process; an `Engine`."""
    for job in work.jobs():
        yield work.do(explainer, job)


def check_paths(source: Path, output: Path) -> None:
    """Refuses what can be refused before a bundle is loaded.

    Raises:
        TableError: an ending that is not known.
        FileNotFoundError: there is no such input, or no folder for the output.
        WorkError: the output exists.
    """
    format_of(source)
    format_of(output)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; give a file to read")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder; make it first")
    if output.exists() and not work_path(output).exists():
        raise exists_already(output)


def score(
    source: Path,
    output: Path,
    explainer: Explainer,
    options: ScoreOptions,
    engine: Engine = run_locally,
) -> Counts:
    """Answers every row of a file.

    Args:
        source: .jsonl, .csv, .tsv or .parquet.
        output: likewise, not necessarily the same; it appears when it is whole. Until then
            `output.part` beside it keeps what is done.
        explainer: that answers.
        options: what is asked.
        engine: where the work is done; the bytes of the output do not depend on it.

    Returns:
        How many rows were written, and how many of them as errors.

    Raises:
        ValueError: an unknown target, `max_words` below 1, or an input that is no table.
        WorkError: the output exists, another process writes it, or it was begun with another
            bundle, input or options.
    """
    check_paths(source, output)
    # What every text would be refused for is refused now.
    options.answer(explainer, [explainer.bundle.manifest.golden.text])
    suffix = format_of(output)
    for label in explainer.labels:
        check_cell(label, suffix, f"label {label!r}")
    found = survey(source, options.columns)
    with open_work(output) as folder:
        counts = folder.published()
        folder.claim(_key(found, explainer, options))
        if counts is None:
            shards = _compute(found, explainer, options, folder, suffix, engine)
            write_results(folder.scratch, suffix, folder.read(len(shards)))
            counts = Counts(found.rows, sum(shard.errors for shard in shards.values()))
            folder.publish(counts)
        folder.remove()
    return counts


def _compute(
    found: Source,
    explainer: Explainer,
    options: ScoreOptions,
    folder: WorkFolder,
    suffix: str,
    engine: Engine,
) -> dict[int, Counts]:
    """Computes the shards that are missing, and returns the counts of all."""
    counts = folder.shards()
    work = Work(found, options, suffix, frozenset(counts))
    before = sum(shard.rows for shard in counts.values())
    with TextProgress(found.path.name, found.rows, before) as progress:
        if work.missing:
            with closing(engine(explainer, work)) as results:
                for done in results:
                    found.check()
                    folder.add(*done)
                    counts[done.number] = done.counts
                    progress.add(done.counts.rows)
    found.check()
    if len(counts) != found.shards:
        missing = found.shards - len(counts)
        raise RuntimeError(f"{missing} shards of {found.path} are missing: repeat the command")
    return counts


def _key(source: Source, explainer: Explainer, options: ScoreOptions) -> dict[str, Any]:
    """What the bytes of the output depend on, by the words that an error has for it."""
    return {
        "bundle": explainer.bundle.digest,
        "input": source.sha256,
        "format of the input": format_of(source.path),
        "device": explainer.session.device,
        "--text-column": options.columns.text,
        "--id-column": options.columns.id,
        "--target": options.target,
        "--no-explain": not options.explain,
        "--max-words": options.max_words,
        "version of l2e": [VERSION, SHARD_ROWS, SHARD_CHARS],
    }
