"""Runs a teacher over many texts: shard by shard, from where it was killed, on an engine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from training.attribution.ensemble import EnsembleTeacher
from training.attribution.record import PREDICTED, Attribution, Teacher
from training.attribution.store import AttributionStore, StoreError, encode_records
from training.attribution.teachers import teacher_named
from training.blackbox.protocol import BlackBox, explained_value
from training.runtime import progress

SHARD = 64  # texts of one file: a killed run loses at most these
# Words times evaluations of one file, some minutes of two processors: long texts, which cost most,
# get files of their own.
SHARD_COST = 2_000_000
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
        return Done(content, job.seconds_before + seconds)


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
    if isinstance(found, EnsembleTeacher):
        # Members are stored on their own, so that each is there for other purposes too.
        each = [
            attribute_texts(
                black_box, texts, teacher=member.name, budget=budget, seed=seed, store=store,
                targets=targets, shard=shard, engine=engine,
            )
            for member in found.members
        ]  # fmt: skip
        return [found.combine(records) for records in zip(*each, strict=True)]
    asked = {
        name: (text, PREDICTED if targets is None else targets[name])
        for name, text in texts.items()
    }
    work = Work(teacher, budget, seed)
    reader = _Reader(black_box, found, work, store)
    pairs = list(dict.fromkeys(asked.values()))
    if black_box.eps is not None:
        reader.check(pairs)
    jobs = reader.plan(pairs, shard)
    todo = [job for job in jobs if job is not None]
    done = engine(black_box, work, todo)
    what = f"{teacher} attributions"
    for result in progress(done, total=len(jobs), done=len(jobs) - len(todo), what=what):
        store.add(result.content, result.seconds_per_text)
    return [dataclasses.replace(reader.read(*pair), id=name) for name, pair in asked.items()]


@dataclass(frozen=True)
class _Reader:
    """Knows which records of a store answer a piece of work."""

    black_box: BlackBox
    teacher: Teacher
    work: Work
    store: AttributionStore

    def plan(self, pairs: Sequence[tuple[str, int]], shard: int) -> list[Job | None]:
        """Cuts texts and targets into shards; None stands for one that is stored.

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
        return [self._job(part) for part in parts if part]

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
        """Asks a callable once more for one stored value.

        A store knows a function by its name and file only; the model behind it may have changed.

        Raises:
            StoreError: when the answer is another one.
        """
        for text, target in pairs:
            record = self._find(text, target)
            if record is not None:
                document = self.black_box.encoder.encode(text)
                logits = self.black_box.logits([document])
                value = float(explained_value(self.black_box, logits, record.target)[0])
                if abs(value - record.value) > SAME * (1 + abs(value)):
                    raise StoreError(
                        f"{self.store.folder} holds attributions of a function that answered "
                        f"otherwise ({record.value:.4g} then, {value:.4g} now): remove the folder"
                    )
                return

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
