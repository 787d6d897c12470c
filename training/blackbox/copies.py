"""Masked copies of training texts, and what a classifier should say of them.

Masking words at random (masked fine-tuning) makes a gap nothing unusual. With human rationales a
copy can also say what a decision should rest on: without the rationale a text is no case for its
label any more, without as much text elsewhere it still is (Situ et al., ACL 2021, section 5, masks
the rationale only, from which a classifier may learn that any gap means neutral).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.text import BoolArray, Document, FloatArray, Window
from training.config import Copies
from training.data.rationale import Span


@dataclass(frozen=True)
class LabelledDocument:
    """An encoded text and its class index.

    Attributes:
        document: the text.
        label: index of its class.
        rationale: disjoint ranges of words that people marked, or None.
    """

    document: Document
    label: int
    rationale: tuple[Span, ...] | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """What the explanation of a training text for its gold label got wrong.

    Attributes:
        missed: bool [words], content words of the rationale that are not among the strongest.
        distracting: bool [words], the strongest content words that nobody marked.
        hit: share of human spans with a word among the strongest, in [0, 1].
    """

    missed: BoolArray
    distracting: BoolArray
    hit: float


@dataclass(frozen=True)
class Copy:
    """Which words are kept, bool [words], and what to answer, probabilities [classes]."""

    keep: BoolArray
    target: FloatArray


def draw_copy(
    part: LabelledDocument,
    window: Window,
    settings: Copies,
    classes: int,
    rng: np.random.Generator,
    finding: Finding | None = None,
) -> Copy | None:
    """Draws a copy that the rationale decides, or None, for a row like those of any text.

    Args:
        part: the text.
        window: the stretch of it that is trained on. One that a text's rationale does not reach
            can have random spans of its lengths masked, and is else like any text's.
        settings: how often which copy is drawn.
        classes: of the black box; with `neutral` the last one is it.
        rng: of the draw.
        finding: what feedback knows of the text. In graded copies its distractors are kept where
            the rationale is masked and masked where it is kept, so that they cannot stand for it;
            they take the place of random spans. Other copies do not read it.
    """
    choice = rng.random()
    spans = rationale_inside(part, window)
    inside = mark([stretch(window)], len(part.document.words))
    if not spans:
        if choice >= settings.random_spans or not part.rationale:
            return None
        # Masks would be seen beside a rationale only, and mean that one is missing.
        free = random_spans(_expected(part.rationale, inside, rng), inside, rng)
        return Copy(~mark(free, len(inside)), _certain(part.label, classes))
    gold = mark(spans, len(inside))
    label = _certain(part.label, classes)
    # The same text may come with other marks, too: what one marked distracts nobody here.
    distracting = None if finding is None else finding.distracting & inside & ~gold
    ends = np.cumsum(
        [
            settings.without_rationale,
            settings.random_spans,
            settings.only_rationale,
            settings.graded,
        ]
    )
    match int(np.searchsorted(ends, choice, side="right")):
        case 0:
            return Copy(~gold, _without(label, settings.neutral))
        case 1:
            if distracting is not None and distracting.any():
                return Copy(~distracting, label)
            return Copy(~_elsewhere(spans, inside, rng), label)
        case 2:
            return Copy(gold, label)
        case 3:
            return _graded(gold, label, settings.neutral, rng, distracting)
    return None


def stretch(window: Window) -> Span:
    """Returns the range of words that a window reaches, empty where it reaches none."""
    places = window.word_index[window.word_index >= 0]
    return (int(places.min()), int(places.max()) + 1) if len(places) else (0, 0)


def rationale_inside(part: LabelledDocument, window: Window) -> list[Span]:
    """Returns the parts of a text's rationale that lie in a window, ranges of the text's words."""
    low, high = stretch(window)
    clipped = [(max(first, low), min(end, high)) for first, end in part.rationale or ()]
    return [(first, end) for first, end in clipped if first < end]


def mark(spans: Sequence[Span], words: int) -> BoolArray:
    """Marks the words of ranges, bool [words]."""
    marked = np.zeros(words, dtype=np.bool_)
    for first, end in spans:
        marked[first:end] = True
    return marked


def random_spans(spans: Sequence[Span], free: BoolArray, rng: np.random.Generator) -> list[Span]:
    """Draws a place for a span of each length where all words are free; they do not overlap.

    Args:
        spans: ranges of words; the longest is placed first.
        free: bool [words], where a word may be taken.
        rng: of the places.

    Returns:
        Ranges of the same lengths; one that fits nowhere any more is shortened to the longest
        stretch that is left, or left out where nothing is.
    """
    free = free.copy()
    placed = []
    for length in sorted((end - first for first, end in spans), reverse=True):
        edges = np.flatnonzero(np.diff(free, prepend=False, append=False)).reshape(-1, 2)
        if not len(edges):
            break
        fits = min(length, int((edges[:, 1] - edges[:, 0]).max()))
        starts = np.concatenate([np.arange(first, end - fits + 1) for first, end in edges.tolist()])
        first = int(rng.choice(starts))
        free[first : first + fits] = False
        placed.append((first, first + fits))
    return placed


def mark_at_random(
    documents: Sequence[LabelledDocument], rng: np.random.Generator
) -> list[LabelledDocument]:
    """Replaces each rationale by spans of the same lengths anywhere in the text.

    Args:
        documents: of training; a text that is repeated gets the same spans each time.
        rng: of the places.

    Returns:
        The documents in the same order; those without a rationale as they were.
    """
    drawn: dict[tuple[str, tuple[Span, ...]], tuple[Span, ...]] = {}
    found = []
    for part in documents:
        if part.rationale:
            key = part.document.text, part.rationale
            if key not in drawn:
                free = np.ones(len(part.document.words), dtype=np.bool_)
                drawn[key] = tuple(sorted(random_spans(part.rationale, free, rng)))
            part = replace(part, rationale=drawn[key])
        found.append(part)
    return found


def _elsewhere(spans: Sequence[Span], inside: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Marks as many words as the rationale has, outside of it and in spans of its lengths."""
    free = inside & ~mark(spans, len(inside))
    return mark(random_spans(spans, free, rng), len(inside))


def _expected(spans: Sequence[Span], inside: BoolArray, rng: np.random.Generator) -> list[Span]:
    """Draws of a text's spans those that would fall into a window by chance, at least one."""
    drawn = [span for span in spans if rng.random() < inside.mean()]
    return drawn or [spans[int(rng.integers(len(spans)))]]


def _graded(
    gold: BoolArray,
    label: FloatArray,
    neutral: bool,
    rng: np.random.Generator,
    distracting: BoolArray | None,
) -> Copy:
    """Masks words at a rate from U(0, 1); the target moves with the share of the rationale kept.

    Such copies are those that LIME and Kernel SHAP draw: what they find is what moves the answer
    here, the words of the rationale, and nothing else.
    """
    keep = rng.random(len(gold)) >= rng.random()
    share = float(keep[gold].mean())
    if distracting is not None:
        keep[distracting] = rng.random(int(distracting.sum())) >= share
    return Copy(keep, share * label + (1 - share) * _without(label, neutral))


def _without(label: FloatArray, neutral: bool) -> FloatArray:
    """Returns the target of a text without its rationale: neutral, or nothing in particular."""
    if neutral:
        return _certain(len(label) - 1, len(label))
    return np.full(len(label), 1 / len(label))


def _certain(label: int, classes: int) -> FloatArray:
    certain: FloatArray = np.eye(classes)[label]
    return certain
