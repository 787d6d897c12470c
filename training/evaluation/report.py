"""Results for people: tables for a terminal and for the pages in docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

ALIGNMENT = {"ap@10": "AP@10", "mr@10": "MR@10", "auprc": "AUPRC", "token_f1": "token F1"}
# What `training.evaluation.alignment` calls them.
BOUNDS = {"random words": "random", "oracle": "oracle"}


def format_result(result: Mapping[str, Any]) -> str:
    """Formats an evaluation as a table for a terminal."""
    header = f"{'':26}{'compreh.':>10}{'suffic.':>10}{'log-odds':>10}{'agree':>8}{'ms/text':>11}"
    lines = [summary(result), header]
    for name, row in _rows(result):
        time = f"{row['ms_per_text']:>11.1f}" if "ms_per_text" in row else f"{'-':>11}"
        lines.append(
            f"{name:26}{row['aopc_comprehensiveness']:>10.3f}{row['aopc_sufficiency']:>10.3f}"
            f"{row['log_odds_drop']:>10.2f}{row['agreement']:>8.2f}{time}"
        )
    return "\n".join(lines)


def to_markdown(result: Mapping[str, Any]) -> str:
    """Formats an evaluation as the table of our pages."""
    lines = [
        "| | comprehensiveness | sufficiency | log-odds drop | agreement | ms/text |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in _rows(result):
        time = f"{row['ms_per_text']:,.1f}" if "ms_per_text" in row else "-"
        lines.append(
            f"| {name} | {row['aopc_comprehensiveness']:.3f} | {row['aopc_sufficiency']:.3f} "
            f"| {row['log_odds_drop']:.2f} | {row['agreement']:.2f} | {time} |"
        )
    return "\n".join(lines)


def format_teachers(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns the tables of `l2e compare` for a terminal."""
    return "\n\n".join(f"{name}\n{teachers_to_markdown(rows)}" for name, rows in results.items())


def teachers_to_markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of teachers, strongest first by log-odds drop."""
    lines = [
        "| teacher | evaluations | comprehensiveness | sufficiency | log-odds drop | agreement "
        "| reliability | residual | s per text |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["log_odds_drop"]):
        reliability = "-" if row["reliability"] is None else f"{row['reliability']:.2f}"
        residual = "-" if row["residual"] is None else f"{row['residual']:.1%}"
        seconds = "-" if row["seconds_per_text"] is None else f"{row['seconds_per_text']:.3g}"
        lines.append(
            f"| {name} | {row['budget']:.0f} | {row['comprehensiveness']:.3f} "
            f"| {row['sufficiency']:.3f} | {row['log_odds_drop']:.2f} | {row['agreement']:.2f} "
            f"| {reliability} | {residual} | {seconds} |"
        )
    return "\n".join(lines)


def packages_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the table of `tests.bench.attribution`: how much faster than the packages."""
    lines = [
        "| package | tokens | against a pipeline | against hand-made fp32 batches "
        "| share of the raw forward pass |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['package']} | {row['tokens']} | {row['times_pipeline']:.1f} x "
        f"| {row['times_hand-batched']:.1f} x | {row['share_of_raw']:.0%} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def alignment_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the tables of `l2e align`: a line for each row of the study, then the tests.

    Numbers are means over the seeds, after ± the standard deviation over them. Random words and
    the oracle follow the rows that were judged on the same texts.
    """
    rows = by_name(result)
    teachers = list(dict.fromkeys(name for row in result["rows"] for name in _teachers(row)))
    names = [f"{teacher} {measure}" for teacher in teachers for measure in ALIGNMENT.values()]
    header = [
        "classifier",
        "seeds",
        "judged on",
        "accuracy",
        *names,
        "training",
        "feedback",
        "ratio",
    ]
    lines = [_line(header), "|---" * len(header) + "|"]
    groups: dict[str, list[str]] = {}
    for name, runs in rows.items():
        groups.setdefault(_texts(runs[0]), []).append(name)
    for texts, members in groups.items():
        for name in members:
            lines.append(_line([name, *_row_cells(rows, name, teachers)]))
        judged = [run for name in members for run in rows[name] if run["metrics"]]
        for label, system in BOUNDS.items() if judged else ():
            cells = [_mean([run["metrics"][system][m] for run in judged]) for m in ALIGNMENT]
            lines.append(_line([label, "-", texts, "-", *cells * len(teachers), "-", "-", "-"]))
    if not result["comparisons"]:
        return "\n".join(lines)
    return "\n".join([*lines, "", *_tests(result["comparisons"])])


def by_name(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups the rows of `l2e align`: the name of a row to its results, one for each seed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault(row["name"], []).append(row)
    return found


def seeds_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """Says how many seeds of a row are there, and of how many, where some are missing."""
    asked = len(runs[0]["seeds"])
    return str(asked) if len(runs) == asked else f"{len(runs)} of {asked}"


def summary(result: Mapping[str, Any]) -> str:
    """Says in one line what an evaluation was made on."""
    return (
        f"{result['n']} texts, accuracy {result['accuracy']:.4f}; {result['n_explained']} "
        f"explained; label only {result['label_only_ms_per_text']:.1f} ms"
    )


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    yield "explainer", result["explainer"]
    for name, row in result["teachers"].items():
        budget = result["setting"]["teachers"][name]
        yield f"{name} ({budget})" if budget else name, row
    yield "random words", result["random"]


def _row_cells(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], name: str, teachers: Sequence[str]
) -> list[str]:
    """Returns the cells of a study's row after its name."""
    runs = rows[name]
    accuracies = [run["accuracy"] for run in runs]
    spread = f" ± {np.std(accuracies, ddof=1):.3f}" if len(runs) > 1 else ""
    budgets = _teachers(runs[0])
    values = [
        _mean([run["metrics"][teacher][m] for run in runs]) if teacher in budgets else "-"
        for teacher in teachers
        for m in ALIGNMENT
    ]
    baseline = rows.get(next(iter(runs[0]["against"]), ""), [])
    feedback = float(np.mean([run["feedback_seconds"] for run in runs]))
    return [
        seeds_of(runs),
        ", ".join([_texts(runs[0]), *(f"{name} {n or ''}".strip() for name, n in budgets.items())]),
        f"{np.mean(accuracies):.3f}{spread}",
        *values,
        f"{np.mean([run['train_seconds'] for run in runs]) / 60:.1f} min",
        f"{feedback / 60:.1f} min" if feedback else "-",
        _ratio(runs, baseline),
    ]


def _tests(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a table with a line for each pair of rows and each teacher."""
    found: dict[tuple[str, str], dict[str | None, dict[str, Mapping[str, Any]]]] = {}
    for each in comparisons:
        pair = found.setdefault((each["row"], each["against"]), {})
        pair.setdefault(each["teacher"], {})[each["measure"]] = each
    measures = list(dict.fromkeys(each["measure"] for each in comparisons if each["teacher"]))
    header = ["difference, 95 % interval, p after Holm", "accuracy", "by"]
    header += [*(ALIGNMENT.get(measure, measure) for measure in measures), "texts"]
    lines = [_line(header), "|---" * len(header) + "|"]
    for (row, against), by_teacher in found.items():
        accuracy = by_teacher.pop(None)["accuracy"]
        first = [f"{row} less {against}", f"{accuracy['difference']:+.3f}"]
        if not by_teacher:
            lines.append(_line([*first, "-", *["-"] * len(measures), str(accuracy["n"])]))
        for teacher, tests in by_teacher.items():
            cells = [_tested(tests[measure]) for measure in measures]
            lines.append(_line([*first, str(teacher), *cells, str(tests[measures[0]]["n"])]))
    return lines


def _tested(each: Mapping[str, Any]) -> str:
    p = "p < 0.001" if each["p_holm"] < 0.001 else f"p {each['p_holm']:.3f}"
    return f"{each['difference']:+.3f}, {each['low']:+.3f} to {each['high']:+.3f}, {p}"


def _teachers(row: Mapping[str, Any]) -> Mapping[str, int]:
    teachers: Mapping[str, int] = row["setting"]["teachers"]
    return teachers


def _texts(row: Mapping[str, Any]) -> str:
    """Says which texts were explained, or that none were."""
    setting = row["setting"]
    if not setting["texts"]:
        return "-"
    tokens = f" of {setting['tokens']} tokens" if setting["tokens"] else ""
    return f"{setting['source']} {setting['split']}, {setting['texts']} texts{tokens}"


def _ratio(runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> str:
    """Compares the time of training, over the seeds that both had on one machine."""
    pairs = [
        (run["train_seconds"], other["train_seconds"])
        for run in runs
        for other in baseline
        if run["seed"] == other["seed"] and run.get("machine") == other.get("machine")
    ]
    others = sum(other for _, other in pairs)
    return f"{sum(mine for mine, _ in pairs) / others:.2f}" if others else "-"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
