"""The picture of a study of alignment: how far each row has come from chance to the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.text import FloatArray
from training.evaluation.picture import COLOURS, GREY, SHAPES, drawing, to_svg
from training.evaluation.report import BOUNDS, by_name, seeds_of
from training.evaluation.significance import average_seeds, bootstrap_interval

Runs = Sequence[Mapping[str, Any]]  # of one row, one for each seed


@dataclass(frozen=True)
class _Measure:
    """A panel: its title, and what is drawn of a value, larger is better."""

    name: str
    title: str
    shown: Callable[[FloatArray], FloatArray]


MEASURES = (
    _Measure("ap@10", "human spans hit by the 10 strongest words\n(AP@10)", lambda x: x),
    _Measure("mr@10", "10 strongest words inside human spans\n(1 - MR@10)", lambda x: 1 - x),
)


def draw_alignment(result: Mapping[str, Any]) -> str:
    """Draws the rows of `l2e align` that were explained.

    Each row has a grey band from random words to the oracle. On it lie the means by teacher over
    documents, after averaging over seeds, with their 95 % bootstrap intervals; a line leads there
    from the mean of the first row that it is tested against, if any, hollow.

    Args:
        result: the JSON of `l2e align`.

    Returns:
        An SVG with a transparent ground, for light and dark pages; equal results give equal bytes.

    Raises:
        ValueError: when no row was explained.
    """
    rows = {name: runs for name, runs in by_name(result).items() if runs[0]["documents"]}
    if not rows:
        raise ValueError("there is nothing to draw: no row of the result has explanations")
    teachers = list(dict.fromkeys(name for runs in rows.values() for name in _teachers(runs)))

    with drawing(9, 1.5 + 0.55 * len(rows)) as figure:
        panels = figure.subplots(1, len(MEASURES), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, MEASURES, strict=True):
            _draw_panel(axes, measure, rows, teachers)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        return to_svg(figure, "Alignment with human rationales")


def _draw_panel(
    axes: Any, measure: _Measure, rows: Mapping[str, Runs], teachers: Sequence[str]
) -> None:
    offsets = (np.arange(len(teachers)) - (len(teachers) - 1) / 2) * 0.5 / len(teachers)
    for place, (name, runs) in enumerate(rows.items()):
        low, high = (_bound(runs, system, measure) for system in BOUNDS.values())
        label = "random words to oracle" if not place else None
        axes.barh(place, high - low, 0.7, left=low, color=GREY, alpha=0.2, lw=0, label=label)
        for number, teacher in enumerate(teachers):
            if teacher not in _teachers(runs):
                continue
            baseline = rows.get(next(iter(rows[name][0]["against"]), ""), ())
            if not (_whole(runs) and _whole(baseline)):  # they are not tested either
                baseline = ()
            _draw_point(axes, place + offsets[number], number, measure, teacher, runs, baseline)
    # Handles of the legend, which no single row may have to offer.
    for number, teacher in enumerate(teachers):
        look = {"color": COLOURS[number % 4], "marker": SHAPES[number % 4]}
        axes.plot([], [], linestyle="", label=teacher, **look)
    axes.plot(
        [], [], "o", color=GREY, markerfacecolor="none", label="the first row it is tested against"
    )
    names = [
        name if _whole(runs) else f"{name} ({seeds_of(runs)} seeds)" for name, runs in rows.items()
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axes.set_xlim(left=0)
    axes.set_title(measure.title, fontsize=9, color=GREY)
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _whole(runs: Runs) -> bool:
    return bool(runs) and len(runs) == len(runs[0]["seeds"])


def _draw_point(
    axes: Any,
    height: float,
    number: int,
    measure: _Measure,
    teacher: str,
    runs: Runs,
    baseline: Runs,
) -> None:
    look = {"color": COLOURS[number % 4], "marker": SHAPES[number % 4], "markersize": 5}
    values = _values(runs, measure, teacher)
    mean, (low, high) = float(values.mean()), bootstrap_interval(values)
    if baseline and teacher in _teachers(baseline):
        start = float(_values(baseline, measure, teacher).mean())
        line = {"arrowstyle": "-", "color": look["color"], "shrinkA": 2.5, "shrinkB": 0, "lw": 1}
        axes.annotate("", (mean, height), (start, height), arrowprops=line)
        axes.plot([start], [height], markerfacecolor="none", linestyle="", **look)
    # A skewed bootstrap may leave its mean outside by a digit.
    spread = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
    axes.errorbar([mean], [height], xerr=spread, linestyle="", elinewidth=2.2, **look)


def _values(runs: Runs, measure: _Measure, teacher: str) -> FloatArray:
    """Returns what is drawn of each document, averaged over seeds, float64 [documents]."""
    values = average_seeds(
        {run["seed"]: {part["id"]: part[teacher][measure.name] for part in run["documents"]}
         for run in runs}
    )  # fmt: skip
    return measure.shown(np.array([values[name] for name in sorted(values)]))


def _bound(runs: Runs, system: str, measure: _Measure) -> float:
    found = np.array([run["metrics"][system][measure.name] for run in runs])
    return float(measure.shown(found).mean())


def _teachers(runs: Runs) -> Mapping[str, int]:
    teachers: Mapping[str, int] = runs[0]["setting"]["teachers"]
    return teachers
