"""Benchmarks for people: tables for a terminal and for the README, made from their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bench_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the tables of `l2e bench`: what a reply costs, other ways to explain, HTTP.

    Milliseconds are of one text, as median and quartiles; the others are multiples of the reply.
    """
    parts = [_costs(result["rows"])]
    if any(row["teachers"] for row in result["rows"]):
        parts.append(_rivals(result))
    if "http" in result:
        parts.append(_http(result["http"]["rows"]))
    if result["quick"]:
        parts.append(_left_out(result))
    return "\n\n".join(parts)


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["tokens", "batch", "classifier alone", "label only", "label and rationale"]
    lines = [[*header, "label / classifier", "reply / classifier"]]
    for row in rows:
        times = [_spread(row, name) for name in ("classifier_ms", "label_only_ms", "reply_ms")]
        counts = [str(row["tokens"]), str(row["batch"])]
        parts = [_spread(row, name, "", 3) for name in ("label_ratio", "ratio")]
        lines.append([*counts, *times, *parts])
    return _table(lines)


def _rivals(result: Mapping[str, Any]) -> str:
    """A line for each rival, a column for each row in which one was timed."""
    rows = [row for row in result["rows"] if row["teachers"]]
    lines = [["times a reply", "runs on", *(_heading(row) for row in rows)]]
    for name, told in result["rivals"].items():
        shown = f"{name} ({told['budget']})" if told["budget"] else name
        found = [row["teachers"].get(name) for row in rows]
        cells = [f"{one['speedup']:,.3g} x" if one else "-" for one in found]
        lines.append([shown, told["how"].partition(";")[0], *cells])
    return _table(lines)


def _http(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["tokens", "batch", "through HTTP", "HTTP adds", "the server's own stages"]]
    for row in rows:
        stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in row["server_ms"].items())
        cells = [_spread(row, "http_ms"), _spread(row, "overhead_ms", digits=2), stages]
        lines.append([str(row["tokens"]), str(row["batch"]), *cells])
    return _table(lines)


def _left_out(result: Mapping[str, Any]) -> str:
    rows = ", ".join(_heading(row) for row in result["left_out"]) or "no row"
    count = sum(len(row["skipped"]) for row in result["rows"])
    return f"--quick left out {rows}; and {count} timings of others, --json says why each"


def serving_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the table of `tests.bench.http`: the service under load, against its bars."""
    idle, mixed, batched = result["idle"], result["mixed"], result["batch_of_32_at_24_tokens"]
    lines = [["measured", "found", "against"]]
    lines.append(
        [
            "one short text on an idle server",
            f"{idle['http_ms']:.1f} ms",
            f"{idle['overhead_ms']:.2f} ms over tokenising and running it",
        ]
    )
    for name, found in (("all connections busy", mixed), ("batches of 32 short texts", batched)):
        lines.append(
            [
                name,
                f"{found['http_texts_per_second']:.1f} texts/s",
                f"{found['share']:.2f} of the bare loop's {found['raw_texts_per_second']:.1f}",
            ]
        )
    for name, load in (("constant", "load_70_constant"), ("Poisson", "load_70_poisson")):
        found = result[load]
        lines.append(
            [
                f"99th percentile at 70 % load, {name}",
                f"{found['p99_ms']:,.0f} ms",
                f"{found['p99_over_simulated']:.2f} times the simulated queue's, "
                f"{found['p99_over_idle_p50']:.1f} times the idle median",
            ]
        )
    over = result["load_200"]
    lines.append(["twice the load", f"{over['goodput']:.2f} of the maximum answered", "1"])
    padding = result["padding"]["share_of_tokens"]
    lines.append(["padding", f"{padding:.1%} of the computed tokens", "-"])
    return _table(lines)


def peers_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the table of `tests.bench.peers`: the same load on servers made otherwise."""
    header = ["server", "answers with", "idle, short text", "texts/s, all busy", "p99 at its 70 %"]
    lines = [[*header, "l2e, texts/s"]]
    for name, found in result["servers"].items():
        ours = result["servers"].get("l2e" if found["explains"] else "l2e, label only")
        rate = found["texts_per_second"]
        times = f"{ours['texts_per_second'] / rate:.2f} x" if ours else "-"
        lines.append(
            [
                name,
                "label and rationale" if found["explains"] else "label",
                f"{found['idle_p50_ms']:.1f} ms",
                f"{rate:.1f}",
                f"{found['load_70']['p99_ms']:,.0f} ms" if "p99_ms" in found["load_70"] else "-",
                times,
            ]
        )
    return _table(lines)


def _heading(row: Mapping[str, Any]) -> str:
    return f"{row['tokens']} tokens" + (f" x {row['batch']}" if row["batch"] > 1 else "")


def _spread(row: Mapping[str, Any], name: str, unit: str = " ms", digits: int = 1) -> str:
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:.{digits}f}{unit} ({low:.{digits}f}-{high:.{digits}f})"


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])
