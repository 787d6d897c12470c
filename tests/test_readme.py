"""The README and the pages in docs quote the files in docs/results, and nothing older than them."""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from models import SHIPPED, SHIPPED_INT8
from models.bundle import load
from tests.bench.curve import CHOSEN, curve_to_markdown
from tests.bench.precision import precision_to_markdown
from training.evaluation.report import (
    alignment_to_markdown,
    packages_to_markdown,
    summary,
    teachers_to_markdown,
    to_markdown,
)
from training.evaluation.speed_report import (
    bench_to_markdown,
    peers_to_markdown,
    serving_to_markdown,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    page: page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = "\n".join(PAGES.values())
TABLES: dict[str, Callable[[Any], str]] = {
    "speed.json": bench_to_markdown,
    "speed_fp32.json": bench_to_markdown,
    "curve.json": curve_to_markdown,
    "peers.json": peers_to_markdown,
    "precision.json": precision_to_markdown,
    "serving.json": serving_to_markdown,
    "attribution_speed.json": packages_to_markdown,
}


def read(name: str) -> Any:
    """A file of docs/results."""
    return json.loads((ROOT / "docs/results" / name).read_text(encoding="utf-8"))


def measured() -> dict[str, str]:
    """Which bundle, or graph of one, each file that names one is of."""
    found = {path.name: read(path.name) for path in sorted((ROOT / "docs/results").glob("*.json"))}
    named = {
        name: result.get("bundle") or result.get("setting", {}).get("model_sha256")
        for name, result in found.items()
    }
    return {name: digest for name, digest in named.items() if digest}


MEASURED = measured()
ALIGNED = re.findall(r"<!-- alignment: (\S+\.json) -->", TEXT)
QUOTED = re.findall(r"<!-- results: (\S+\.json) -->", TEXT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        name, _, heading = target.partition("#")
        if "://" in name:
            continue
        place = page.parent / name if name else page
        assert place.exists(), target
        if heading:
            titles = re.findall(r"(?m)^#+ (.+)$", place.read_text(encoding="utf-8"))
            assert heading in [title.lower().replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_can_be_read_in_a_terminal(page):
    """But for tables, commands and comments, which cannot be folded."""
    code = False
    for line in PAGES[page].splitlines():
        code ^= line.startswith("```")
        assert len(line) <= 120 or code or line.startswith(("|", "<!--", "![")), line


def test_the_pages_quote_results():
    assert {"sst2_dev.json", "movies_val.json"} <= {Path(name).name for name in QUOTED}


@pytest.mark.parametrize("name", QUOTED)
def test_a_table_of_the_readme_is_that_of_its_file(name):
    result = json.loads((ROOT / name).read_text(encoding="utf-8"))
    section = TEXT.partition(f"<!-- results: {name} -->")[2]
    assert section.lstrip().startswith(summary(result))
    assert to_markdown(result) in section


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_pages_is_that_of_its_file(name):
    assert TABLES[name](read(name)) in TEXT


def test_the_curve_marks_what_ships():
    [shipped] = [row["name"] for row in read("curve.json")["rows"] if row["shipped"]]
    assert shipped == CHOSEN


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_quoted_was_measured_with_what_ships(name):
    """Bundles, or their graphs, that are in this repository."""
    shipped = [load(folder) for folder in (SHIPPED, SHIPPED_INT8)]
    known = {one.digest for one in shipped}
    known |= {sha256(one.model_bytes()).hexdigest() for one in shipped}
    assert MEASURED[name] in known


def test_every_quoted_command_line_flag_exists():
    from l2e import build_parser

    parser: Any = build_parser()  # argparse publishes no list of its options
    [verbs] = parser._subparsers._group_actions
    known = {flag for verb in verbs.choices.values() for flag in verb._option_string_actions}
    commands = " ".join(re.findall(r"l2e [^`\n]*(?:\n--[^`\n]*)?", TEXT))
    assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", commands)) - {"--build", "--build-arg"} <= known


def test_the_tables_of_teachers_are_those_of_their_file():
    results = json.loads((ROOT / "docs/results/teachers.json").read_text(encoding="utf-8"))
    assert results
    for rows in results.values():
        assert teachers_to_markdown(rows) in TEXT


def test_the_tables_of_alignment_are_those_of_their_files():
    for name in ALIGNED:
        result = json.loads((ROOT / name).read_text(encoding="utf-8"))
        section = TEXT.partition(f"<!-- alignment: {name} -->")[2]
        assert section.lstrip().startswith(f"{alignment_to_markdown(result)}\n")


def test_the_neutral_numbers_are_those_of_their_file():
    result = json.loads((ROOT / "docs/results/movies_neutral.json").read_text(encoding="utf-8"))
    [found] = result["neutral"].values()
    [accuracy] = result["accuracy"].values()
    said = " ".join(TEXT.partition("docs/results/movies_neutral.json")[2].split())
    assert f"an accuracy of {accuracy:.2f} on the 200 validation reviews" in said
    assert (
        f"of the {found['texts']} that it classifies correctly {found['without_rationale']:.0%}"
        f" turn neutral without their rationale, and {found['random_spans']:.0%} without"
    ).replace("%", " %") in said
