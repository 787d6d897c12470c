"""Runs a teacher over many texts: shard by shard, from where it was killed, on an engine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np

from models.progress import TextProgress
from training.attribution.ensemble import EnsembleTeacher
from training.attribution.perturbation import PerturbationTeacher
from training.attribution.record import PREDICTED, Attribution, Teacher
from training.attribution.store import AttributionStore, StoreError, encode_records
from training.attribution.teachers import teacher_named
from training.blackbox.protocol import BlackBox, explained_value

Records: TypeAlias = list[Attribution]

SHARD = 64  # texts of one file: a killed run loses at most these
# Words times evaluations of one file, some minutes of two processors: long texts, which cost most,
# get files of their own.
SHARD_COST = 2_000_000
LAST_DIGIT = 1e-6  # of a probability in single precision, a few times over
SAME = 1e-3  # relative difference of a value that a black box may give when asked again


@dataclass(frozen=True)
class Job:
    """One shard: texts, targets, and what is known of them from another budget."""

    texts: tuple[str, ...]
    targets: tuple[int, ...]
    known: tuple[Attribution | None, ...]
    seconds_before: float  # per text, spent on what is known


@dataclass(frozen=True)
class Done:
    """A finished shard as the bytes of its file."""

    content: bytes
    seconds_per_text: float
    texts: int


@dataclass(frozen=True)
class Work:
    """What is to be done with each job; small enough to be sent to another machine."""

    teacher: str
    budget: int
    seed: int

    def do(self, black_box: BlackBox, job: Job) -> Done:
        """Explains the texts of a job.

        Batches are formed inside the job, so that a resumed, an uninterrupted and a distributed
        run do the same sums.
        """
        started = time.monotonic()
        found = teacher_named(self.teacher).attribute(
            black_box,
            [black_box.encoder.encode(text) for text in job.texts],
            np.array(job.targets, dtype=np.int64),
            budget=self.budget,
            seed=self.seed,
            known=job.known,
        )
        content = encode_records(job.texts, job.targets, found)
        seconds = (time.monotonic() - started) / len(job.texts)
        return Done(content, job.seconds_before + seconds, len(job.texts))


class Engine(Protocol):
    """Where jobs are done."""

    def __call__(self, black_box: BlackBox, work: Work, jobs: Sequence[Job]) -> Iterator[Done]:
        """Does the jobs and yields each result when it is there, in any order."""
        ...


def run_locally(black_box: BlackBox, work: Work, jobs: Sequence[Job]) -> Iterator[Done]:
    """Does the jobs one after the other in this process; an `Engine`."""
    for job in jobs:
        yield work.do(black_box, job)


def attribute_texts(
    black_box: BlackBox,
    texts: Mapping[str, str],
    *,
    teacher: str,
    budget: int,
    seed: int,
    store: AttributionStore,
    targets: Mapping[str, int] | None = None,
    shard: int = SHARD,
    engine: Engine = run_locally,
) -> list[Attribution]:
    """Explains texts; what the store holds already is not computed again.

    A budget above that of a stored record evaluates the difference only, where the teacher
    samples; one below uses the first of its samples.

    Args:
        black_box: the classifier.
        texts: id to text.
        teacher: a name, see `teacher_named`.
        budget: evaluations per text.
        seed: of sampling.
        store: of this black box.
        targets: id to the class to explain; None explains the predicted one.
        shard: texts per file.
        engine: where the work is done.

    Returns:
        One record per text, in the order of `texts`.
    """
    found = teacher_named(teacher)

    def run(name: str, texts: Mapping[str, str], targets: Mapping[str, int] | None) -> Records:
        return _attribute(black_box, texts, Work(name, budget, seed), store, targets, shard, engine)

    if not isinstance(found, EnsembleTeacher):
        return run(teacher, texts, targets)
    check_budgets(black_box, texts.values(), {teacher: budget})
    # Members are stored on their own, so that each is there for other purposes too.
    each = [run(member.name, texts, targets) for member in found.members]
    for number, member in enumerate(found.members):
        each[number] = _agree(each[0], each[number], texts, partial(run, member.name))
    return [found.combine(records) for records in zip(*each, strict=True)]


def check_budgets(black_box: BlackBox, texts: Iterable[str], teachers: Mapping[str, int]) -> None:
    """Finds now what a teacher would refuse when its turn comes, hours from now.

    Args:
        black_box: the classifier.
        texts: all that will be explained.
        teachers: name to budget.

    Raises:
        ValueError: when a budget is too small for a text, or a teacher cannot look into the black
            box.
    """
    found = {teacher_named(name): budget for name, budget in teachers.items()}
    for teacher, budget in found.items():
        teacher.attribute(black_box, [], np.zeros(0, dtype=np.int64), budget=budget, seed=0)
    for text in texts:
        document = black_box.encoder.encode(text)
        for teacher, budget in found.items():
            teacher.spent(document, budget)


def _attribute(
    black_box: BlackBox,
    texts: Mapping[str, str],
    work: Work,
    store: AttributionStore,
    targets: Mapping[str, int] | None,
    shard: int,
    engine: Engine,
) -> Records:
    """Explains texts by one teacher, no ensemble; see `attribute_texts`."""
    asked = {
        name: (text, PREDICTED if targets is None else targets[name])
        for name, text in texts.items()
    }
    reader = _Reader(black_box, teacher_named(work.teacher), work, store)
    pairs = list(dict.fromkeys(asked.values()))
    if black_box.eps is not None:
        reader.check(pairs)
    jobs = reader.plan(pairs, shard)
    done = len(pairs) - sum(len(job.texts) for job in jobs)
    with TextProgress(f"{work.teacher} attributions", len(pairs), done) as progress:
        for result in engine(black_box, work, jobs):
            store.add(result.content, result.seconds_per_text)
            progress.add(result.texts)
    return [dataclasses.replace(reader.read(*pair), id=name) for name, pair in asked.items()]


def _agree(
    first: Records,
    found: Records,
    texts: Mapping[str, str],
    again: Callable[[Mapping[str, str], Mapping[str, int]], Records],
) -> Records:
    """Explains again what a member of an ensemble explained for another class than the first did.

    Each finds the predicted class in batches of its own, so that rounding may decide a near tie
    otherwise.
    """
    targets = {
        one.id: one.target for one, other in zip(first, found, strict=True)
        if one.target != other.target
    }  # fmt: skip
    if not targets:
        return found
    repaired = {r.id: r for r in again({name: texts[name] for name in targets}, targets)}
    return [repaired.get(record.id, record) for record in found]


@dataclass(frozen=True)
class _Reader:
    """Knows which records of a store answer a piece of work."""

    black_box: BlackBox
    teacher: Teacher
    work: Work
    store: AttributionStore

    def plan(self, pairs: Sequence[tuple[str, int]], shard: int) -> list[Job]:
        """Cuts texts and targets into shards and leaves out what is stored.

        The cuts depend on the input alone, so that every run makes the same files.
        """
        parts: list[list[tuple[str, int]]] = [[]]
        cost = 0
        for pair in pairs:
            document = self.black_box.encoder.encode(pair[0])
            own = len(document.words) * self.teacher.spent(document, self.work.budget)
            if parts[-1] and (len(parts[-1]) >= shard or cost + own > SHARD_COST):
                parts.append([])
                cost = 0
            parts[-1].append(pair)
            cost += own
        jobs = [self._job(part) for part in parts if part]
        return [job for job in jobs if job is not None]

    def read(self, text: str, target: int) -> Attribution:
        """Returns a stored record, cut back to the budget where it has more."""
        record = self._find(text, target)
        assert record is not None
        if record.budget == self._spent(text):
            return record
        [cut] = self.teacher.attribute(
            self.black_box,
            [self.black_box.encoder.encode(text)],
            np.array([record.target]),
            budget=self.work.budget,
            seed=self.work.seed,
            known=[record],
        )
        return cut

    def check(self, pairs: Sequence[tuple[str, int]]) -> None:
        """Asks a callable again for a few stored values: a store knows its name and file only.

        Of the first, a middle and the last text that are stored these are the whole text, the null
        text and the last masked copy, nine at most and in one call, however much is stored. A
        change that leaves these as they were is not seen, such as one of some classes or words
        only, nor is one smaller than `SAME`, nor one after this.

        Raises:
            StoreError: when an answer is another one.
        """
        spread = (pairs, pairs[len(pairs) // 2 :], pairs[::-1])
        stored = {text: record for part in spread for text, record in self._first(part)}
        documents, keep, known, targets = [], [], [], []
        for text, record in stored.items():
            document = self.black_box.encoder.encode(text)
            assert isinstance(self.teacher, PerturbationTeacher)  # others need logits
            copies = self.teacher.copies(document, record)
            for row in sorted({0, 1, len(copies) - 1}):
                documents.append(document)
                keep.append(copies[row])
                known.append(record.values[row])
                targets.append(record.target)
        if not stored:
            return
        logits = self.black_box.logits(documents, keep)
        found = explained_value(self.black_box, logits, np.array(targets))
        for now, then in zip(found.tolist(), known, strict=True):
            # Near the clip the log-odds magnify the last digit of a probability.
            moved = abs(1 / (1 + np.exp(-now)) - 1 / (1 + np.exp(-then)))
            if abs(now - then) > SAME * (1 + abs(now)) and moved > LAST_DIGIT:
                raise StoreError(
                    f"{self.store.folder} holds attributions of a function that answered "
                    f"otherwise ({then:.4g} then, {now:.4g} now): remove the folder"
                )

    def _first(self, pairs: Sequence[tuple[str, int]]) -> list[tuple[str, Attribution]]:
        """Finds the first stored record; what is not stored costs no file."""
        for text, target in pairs:
            record = self._find(text, target)
            if record is not None:
                return [(text, record)]
        return []

    def _job(self, pairs: Sequence[tuple[str, int]]) -> Job | None:
        todo: list[tuple[str, int, Attribution | None]] = []
        seconds = []
        for text, target in pairs:
            spent, known = self._spent(text), self._find(text, target)
            sampled = known is not None and len(known.values) > 0
            if known is not None and known.budget != spent and not sampled:
                known = None  # nothing of it can be used
            if known is None:
                todo.append((text, target, None))
                seconds.append(0.0)
            elif known.budget < spent:
                todo.append((text, target, known))
                seconds.append(self.store.seconds(text, known))
        if not todo:
            return None
        texts, targets, records = zip(*todo, strict=True)
        return Job(texts, targets, records, float(np.mean(seconds)))

    def _find(self, text: str, target: int) -> Attribution | None:
        name, seed = self.teacher.name, self.work.seed
        return self.store.find(text, target, name, seed, self._spent(text))

    def _spent(self, text: str) -> int:
        return self.teacher.spent(self.black_box.encoder.encode(text), self.work.budget)
