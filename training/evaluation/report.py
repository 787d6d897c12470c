"""Results for people: tables for a terminal and for the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


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


def format_speed(result: Mapping[str, Any]) -> str:
    """Formats a benchmark as a table for a terminal."""
    lines = [f"{'tokens':>7}{'label only':>12}{'with words':>12}{'ratio':>8}  teachers (times)"]
    for row in result["rows"]:
        teachers = ", ".join(
            f"{name} {found['speedup']:.0f}" for name, found in row["teachers"].items()
        )
        lines.append(
            f"{row['tokens']:>7}{row['label_only_ms']:>9.1f} ms{row['reply_ms']:>9.1f} ms"
            f"{row['ratio']:>8.2f}  {teachers}"
        )
    return "\n".join(lines)


def to_markdown(result: Mapping[str, Any]) -> str:
    """Formats an evaluation as the README's table."""
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


def speed_to_markdown(result: Mapping[str, Any]) -> str:
    """Formats a benchmark as the README's table; teachers as multiples of the reply's time."""
    names = list(result["rows"][0]["teachers"])
    lines = [
        f"| tokens | label only | label and rationale | ratio | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row in result["rows"]:
        times = " | ".join(f"{row['teachers'][name]['speedup']:.0f} x" for name in names)
        lines.append(
            f"| {row['tokens']} | {row['label_only_ms']:.1f} ms | {row['reply_ms']:.1f} ms "
            f"| {row['ratio']:.2f} | {times} |"
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
