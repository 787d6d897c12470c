"""Benchmarks for people: tables for a terminal and for the README, made from their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bench_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the tables of `l2e bench`: what a reply costs, other ways to explain, HTTP.

    Milliseconds are of one text, as median and quartiles; the others are multiples of the reply,
    with how often (n) they were timed.
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
    header = ["tokens", "batch", "runs on", "n"]
    header += ["classifier alone", "label only", "label and rationale"]
    lines = [[*header, "label / classifier", "reply / classifier"]]
    for row in rows:
        times = [_spread(row, name) for name in ("classifier_ms", "label_only_ms", "reply_ms")]
        counts = [str(row["tokens"]), str(row["batch"]), _place(row), str(row["repeats"])]
        parts = [_spread(row, name, "", 3) for name in ("label_ratio", "ratio")]
        lines.append([*counts, *times, *parts])
    return _table(lines)


def _rivals(result: Mapping[str, Any]) -> str:
    """A line for each rival, a column for each row in which one was timed."""
    rows = [row for row in result["rows"] if row["teachers"]]
    reply = _place(rows[0])
    lines = [[f"times a reply on {reply}", "runs on", *(_heading(row) for row in rows)]]
    for name, told in result["rivals"].items():
        shown = f"{name} ({told['budget']})" if told["budget"] else name
        found = [row["teachers"].get(name) for row in rows]
        cells = [f"{one['speedup']:,.3g} x (n = {one['repeats']})" if one else "-" for one in found]
        lines.append([shown, f"{told['how'].partition(';')[0]}, {_place(told)}", *cells])
    table = _table(lines)
    if all(_place(told) == reply for told in result["rivals"].values()):
        return table
    note = "Where a row runs on another device or in another precision than the reply, the multiple"
    return f"{table}\n\n{note} holds that difference, too."


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
    idle, over = result["idle"], result["load_200"]
    added = _shown(idle, "overhead_ms", "{:.2f} ms over tokenising and running it")
    lines = [["measured", "found", "against", "refused"]]
    lines.append(
        ["one short text on an idle server", _shown(idle, "http_ms", "{:.1f} ms"), added,
         _refused(idle)]
    )  # fmt: skip
    for name, key in (
        ("all connections busy", "mixed"),
        ("batches of 32 short texts", "batch_of_32_at_24_tokens"),
    ):
        found = result[key]
        raw = _shown(found, "raw_texts_per_second", "of the bare loop's {:.1f}")
        rate = _shown(found, "http_texts_per_second", "{:.1f} texts/s")
        lines.append([name, rate, f"{_shown(found, 'share', '{:.2f}')} {raw}", _refused(found)])
    loads = {"constant": result["load_70_constant"], "Poisson": result["load_70_poisson"]}
    for tokens, found in result.get("load_70_constant_one_length", {}).items():
        loads[f"constant, all of {tokens} tokens"] = found
    lines += [_latency(name, found) for name, found in loads.items()]
    goodput = _shown(over, "goodput", "{:.2f} of the maximum answered")
    lines.append(["twice the load", goodput, "1", _refused(over)])
    padding = _shown(result["padding"], "share_of_tokens", "{:.1%} of the computed tokens")
    lines.append(["padding", padding, "-", "-"])
    return _table(lines)


def _latency(name: str, found: Mapping[str, Any]) -> list[str]:
    queue = _shown(found, "p99_over_simulated", "{:.2f} times the simulated queue's")
    if found.get("p99_over_simulated_with_python") is not None:
        queue += _shown(found, "p99_over_simulated_with_python", " ({:.2f} with Python)")
    idle = _shown(found, "p99_over_idle_p50", "{:.1f} times the idle median")
    p99 = _shown(found, "p99_ms", "{:,.0f} ms")
    return [f"99th percentile at 70 % load, {name}", p99, f"{queue}, {idle}", _refused(found)]


def peers_to_markdown(result: Mapping[str, Any]) -> str:
    """Returns the table of `tests.bench.peers`: the same load on servers made otherwise.

    They run on the processor; where ours runs is in the last column's title.
    """
    ours_on = _place({"device": result["runtime"]["device"], "precision": result["precision"]})
    header = ["server", "answers with", "as l2e answers", "idle, short text", "texts/s, all busy"]
    lines = [[*header, "p99 at its 70 %", "refused", f"l2e on {ours_on}, texts/s"]]
    for name, found in result["servers"].items():
        ours = result["servers"].get("l2e" if found["explains"] else "l2e, label only")
        rate = found["texts_per_second"]
        times = f"{ours['texts_per_second'] / rate:.2f} x" if ours and rate else "-"
        load = found["load_70"]
        both = {key: found[key] + load[key] for key in ("answered", "refused")}
        lines.append(
            [
                name,
                "label and rationale" if found["explains"] else "label",
                _same(found["same_as_ours"]),
                _shown(found, "idle_p50_ms", "{:.1f} ms"),
                f"{rate:.1f}",
                _shown(load, "p99_ms", "{:,.0f} ms"),
                _refused(both),
                times,
            ]
        )
    return _table(lines)


def _same(found: Mapping[str, Any]) -> str:
    """How many of the texts that were asked before the load got our answer."""
    if found["all"]:
        return "yes"
    counts = [(name, found[name]) for name in ("labels", "rationales") if name in found]
    return "no: " + ", ".join(f"{name} {count} of {found['of']}" for name, count in counts)


def _refused(found: Mapping[str, Any]) -> str:
    """How many requests were refused; a dash where nobody counted or none was sent."""
    sent = found.get("answered", 0) + found.get("refused", 0)
    return f"{found['refused']:,} of {sent:,}" if sent else "-"


def _shown(found: Mapping[str, Any], name: str, form: str) -> str:
    """A number in a sentence; a dash where nothing was answered that could give one."""
    value = found.get(name)
    return "-" if value is None else form.format(value)


def _place(found: Mapping[str, Any]) -> str:
    return f"{found['device']}, {found['precision']}"


def _heading(row: Mapping[str, Any]) -> str:
    return f"{row['tokens']} tokens" + (f" x {row['batch']}" if row["batch"] > 1 else "")


def _spread(row: Mapping[str, Any], name: str, unit: str = " ms", digits: int = 1) -> str:
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:.{digits}f}{unit} ({low:.{digits}f}-{high:.{digits}f})"


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])
