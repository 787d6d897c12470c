"""What an explanation costs: the classifier alone, label only, label and rationale, and others."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from models.device import CPU, DeviceName
from models.explainer import Explainer
from models.session import OnnxSession
from training.evaluation.classifier_graph import classifier_alone
from training.evaluation.machine import machine
from training.evaluation.rivals import Rival, place_of, rivals
from training.evaluation.texts import SOURCE, texts_of
from training.evaluation.timing import in_turns, milliseconds, quartiles, ratios
from training.export.graph import to_torch

TOKENS = (24, 128, 512)
BATCHES = (1, 8, 32)
# Tokens that the classifier sees in one call of a rival. Up to the first number, or to `LONG` where
# the evaluations are few, it is timed as often as the reply, in turns with it; else once.
CHEAP = 1_100
FEW = 4  # evaluations, beside which what else it does shows
BATCHED = 200_000  # at most for a batch: a rival of many evaluations fills batches by itself
LONG = 15_000  # from here on it takes seconds, and is announced
WARM_UP = 8  # tokens of the text that warms up what is timed once
# With --quick.
QUICK_REPEATS = 3
QUICK_ROW = 1_024  # tokens of a row of the table
QUICK_RIVAL = 6_000
QUICK_SECONDS = 25.0  # after which nothing more is begun


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        against: rivals, name to samples or steps; see `training.evaluation.rivals.ALL`.
        tokens: of the texts, in all their windows, special tokens included; at least 8.
        batches: texts in one call.
        repeats: rounds that count.
        seed: of the texts.
        quick: leaves out what takes long, and says so.
    """

    against: Mapping[str, int]
    tokens: Sequence[int] = TOKENS
    batches: Sequence[int] = BATCHES
    repeats: int = 9
    seed: int = 0
    quick: bool = False

    @property
    def rounds(self) -> int:
        """Rounds that count, fewer where it is to be quick."""
        return min(self.repeats, QUICK_REPEATS) if self.quick else self.repeats

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Lengths and batch sizes, the quickest first where it is to be quick."""
        found = [*itertools.product(self.tokens, self.batches)]
        return sorted(found, key=math.prod) if self.quick else found

    def leaves_out(self, tokens: int, batch: int) -> bool:
        """Whether a row is too much for --quick."""
        return self.quick and tokens * batch > QUICK_ROW


def measure_speed(explainer: Explainer, plan: Plan) -> dict[str, Any]:
    """Times texts of several lengths, alone and in batches.

    Three sides take turns on the same texts, each after an untimed call of its own, from text to
    decoded answer: `classifier`, a graph that holds the classifier alone (the same runtime, threads
    and precision); `label_only`, the bundle's graph without its explanation; `reply`, label and
    rationale.

    Args:
        explainer: the bundle, in ONNX Runtime.
        plan: what is timed.

    Returns:
        `machine`, `bundle`, `precision`, `runtime`, `texts` (what they are), `quick`, `left_out`
        (rows that were too much for --quick), `rivals` (how each is driven, on which `device` and
        in which `precision`) and `rows`, one for each length and batch size, with the `device` and
        `precision` of the three sides and their `repeats`.
        Milliseconds are of one text: those of a call over its texts. A name alone has the median,
        `NAME_quartiles` the first and the third. `ratio` is reply over classifier, `label_ratio`
        label only over classifier, each the median over rounds.
    """
    started = time.monotonic()
    session, place = explainer.session, place_of(explainer)
    alone = _classifier(explainer)
    black_box, _ = to_torch(explainer.bundle)
    found = rivals(explainer, black_box, plan.against)
    end = started + QUICK_SECONDS if plan.quick else math.inf
    rows: list[dict[str, Any]] = []
    left_out = []
    for tokens, batch in plan.pairs:
        if plan.leaves_out(tokens, batch) or (time.monotonic() > end and rows):
            left_out.append({"tokens": tokens, "batch": batch})
            continue
        _say(f"{tokens} tokens, {batch} at a time", tokens * batch * plan.rounds)
        texts = texts_of(explainer, tokens, batch, plan.seed)
        sides = _time_sides(explainer, alone, texts, plan.rounds)
        about = {"tokens": tokens, "batch": batch, **place._asdict(), "repeats": plan.rounds}
        rows.append(about | sides)
    for row in rows:  # after all of ours, for some take minutes
        texts = texts_of(explainer, row["tokens"], row["batch"], plan.seed)
        row |= time_rivals(explainer, found, texts, plan, row["reply_ms"], end)
    return {
        "machine": machine(),
        "bundle": explainer.bundle.digest,
        "precision": place.precision,
        "runtime": {"device": session.device, "threads": session.threads},
        "texts": {
            "tokens": list(plan.tokens),
            "batches": list(plan.batches),
            "repeats": plan.rounds,
            "seed": plan.seed,
            "source": SOURCE,
            "counted": "tokens of all windows, special ones included",
        },
        "quick": plan.quick,
        "left_out": left_out,
        "rivals": {
            one.name: {"budget": one.budget, "how": one.how, **one.place._asdict()} for one in found
        },
        "rows": rows,
    }


def _classifier(explainer: Explainer) -> Explainer:
    """Returns the classifier alone, where the device has not taken the graph apart already."""
    session = explainer.session
    if session.provider != CPU:
        return explainer  # its graph for the label alone holds nothing else
    small = classifier_alone(explainer.bundle.model_bytes())
    device = cast("DeviceName", session.device)
    opened = OnnxSession(small, device=device, threads=session.threads)
    return Explainer(explainer.bundle, opened)


def _time_sides(
    explainer: Explainer, alone: Explainer, texts: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Times the three sides in turns, per text."""
    labels = [[one.label for one in side.predict(texts)] for side in (alone, explainer)]
    if labels[0] != labels[1]:
        raise RuntimeError("the classifier cut out of the graph gives other labels than the graph")
    calls = {
        "classifier": partial(alone.predict, texts),
        "label_only": partial(explainer.predict, texts),
        "reply": partial(explainer.explain, texts),
    }
    spent = in_turns(calls, rounds, warm=True)
    result: dict[str, Any] = {}
    for name, values in spent.items():
        result |= _summed(f"{name}_ms", [value / len(texts) for value in values])
    result |= _summed("ratio", ratios(spent["reply"], spent["classifier"]))
    return result | _summed("label_ratio", ratios(spent["label_only"], spent["classifier"]))


def time_rivals(
    explainer: Explainer,
    found: Sequence[Rival],
    texts: Sequence[str],
    plan: Plan,
    reply: float,
    end: float,
) -> dict[str, Any]:
    """Times the rivals on the texts of a row.

    Args:
        explainer: whose reply takes turns with what is cheap.
        found: the rivals.
        texts: of the row.
        plan: see `Plan`.
        reply: the median milliseconds of a reply, per text.
        end: of `time.monotonic()`, when nothing more is begun.

    Returns:
        `teachers`: name to `ms`, its quartiles, `speedup` (rival over reply), `evaluations` of
        a text, `device`, `precision` and `repeats`; `skipped`: name to the reason.
    """
    documents = [explainer.encode(text) for text in texts]
    short = texts_of(explainer, WARM_UP, 1, plan.seed)
    teachers, skipped = {}, {}
    for rival in found:
        tokens = rival.tokens(documents)
        reason = _reason_to_skip(tokens, len(texts), plan, end)
        if reason:
            skipped[rival.name] = reason
            continue
        evaluations = rival.evaluations(documents[0])
        length = tokens // evaluations // len(texts)
        _say(f"{rival.name}, {len(texts)} x {length} tokens x {evaluations} evaluations", tokens)
        few = evaluations <= FEW and tokens < LONG and not plan.quick
        rounds = plan.rounds if tokens <= CHEAP or few else 0
        if not rounds:
            rival.explain(short)  # so that imports, kernels and caches are there
        times, speedups = _time_rival(explainer, rival, texts, rounds, reply)
        teachers[rival.name] = {
            **_summed("ms", times),
            **_summed("speedup", speedups),
            "budget": rival.budget,
            "evaluations": evaluations,
            **rival.place._asdict(),
            "repeats": len(times),
        }
    return {"teachers": teachers, "skipped": skipped}


def _time_rival(
    explainer: Explainer, rival: Rival, texts: Sequence[str], rounds: int, reply: float
) -> tuple[list[float], list[float]]:
    """Returns milliseconds per text and multiples of the reply, both one for each round.

    Args:
        explainer: whose reply takes turns with the rival.
        rival: the other.
        texts: of the row.
        rounds: that count, after one that warms up; 0 times it once and alone.
        reply: the median milliseconds of a reply, for a rival that is timed alone.
    """
    if not rounds:
        once = milliseconds(partial(rival.explain, texts)) / len(texts)
        return [once], [once / reply]
    calls: dict[str, Callable[[], object]] = {
        "rival": partial(rival.explain, texts),
        "reply": partial(explainer.explain, texts),
    }
    spent = in_turns(calls, rounds, warm=True)
    times = [value / len(texts) for value in spent["rival"]]
    return times, ratios(spent["rival"], spent["reply"])


def _reason_to_skip(tokens: int, batch: int, plan: Plan, end: float) -> str:
    """Says why a rival that would see so many tokens is not timed; empty where it is."""
    if plan.quick and batch > 1:
        return "--quick times others with one text alone"
    if plan.quick and tokens > QUICK_RIVAL:
        return f"{tokens:,} tokens to evaluate are more than the {QUICK_RIVAL:,} of --quick"
    if batch > 1 and tokens > BATCHED:
        return f"{tokens:,} tokens to evaluate are more than the {BATCHED:,} of a batch"
    return "no time was left" if time.monotonic() > end else ""


def _say(what: str, tokens: int) -> None:
    """Announces what will take seconds."""
    if tokens >= LONG:
        sys.stderr.write(f"l2e bench: {what}\n")


def _summed(name: str, values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = quartiles(values)
    return {name: middle, f"{name}_quartiles": [low, high]}
