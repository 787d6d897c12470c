"""The README quotes the files in docs/results, and nothing older than them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.bench.precision import precision_to_markdown
from training.evaluation.report import (
    alignment_to_markdown,
    packages_to_markdown,
    summary,
    teachers_to_markdown,
    to_markdown,
)
from training.evaluation.speed_report import bench_to_markdown, serving_to_markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALIGNED = re.findall(r"<!-- alignment: (\S+\.json) -->", README)
QUOTED = re.findall(r"<!-- results: (\S+\.json) -->", README)


def test_the_readme_quotes_results():
    assert {Path(name).name for name in QUOTED} >= {"sst2_dev.json", "movies_val.json"}


@pytest.mark.parametrize("name", QUOTED)
def test_a_table_of_the_readme_is_that_of_its_file(name):
    result = json.loads((ROOT / name).read_text(encoding="utf-8"))
    section = README.partition(f"<!-- results: {name} -->")[2]
    assert section.lstrip().startswith(summary(result))
    assert to_markdown(result) in section


def test_the_speed_table_is_that_of_its_file():
    result = json.loads((ROOT / "docs/results/speed.json").read_text(encoding="utf-8"))
    assert bench_to_markdown(result) in README


def test_the_table_of_precisions_is_that_of_its_file():
    result = json.loads((ROOT / "docs/results/precision.json").read_text(encoding="utf-8"))
    assert precision_to_markdown(result) in README


def test_the_table_of_the_service_is_that_of_its_file():
    result = json.loads((ROOT / "docs/results/serving.json").read_text(encoding="utf-8"))
    assert serving_to_markdown(result) in README


def test_the_table_of_packages_is_that_of_its_file():
    result = json.loads((ROOT / "docs/results/attribution_speed.json").read_text(encoding="utf-8"))
    assert packages_to_markdown(result) in README


def test_every_quoted_command_line_flag_exists():
    from l2e import build_parser

    parser: Any = build_parser()  # argparse publishes no list of its options
    [verbs] = parser._subparsers._group_actions
    known = {flag for verb in verbs.choices.values() for flag in verb._option_string_actions}
    commands = " ".join(re.findall(r"l2e [^`\n]*(?:\n--[^`\n]*)?", README))
    assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", commands)) - {"--build", "--build-arg"} <= known


def test_the_tables_of_teachers_are_those_of_their_file():
    results = json.loads((ROOT / "docs/results/teachers.json").read_text(encoding="utf-8"))
    assert results
    for rows in results.values():
        assert teachers_to_markdown(rows) in README


def test_the_tables_of_alignment_are_those_of_their_files():
    for name in ALIGNED:
        result = json.loads((ROOT / name).read_text(encoding="utf-8"))
        section = README.partition(f"<!-- alignment: {name} -->")[2]
        assert section.lstrip().startswith(f"{alignment_to_markdown(result)}\n")


def test_the_neutral_numbers_are_those_of_their_file():
    result = json.loads((ROOT / "docs/results/movies_neutral.json").read_text(encoding="utf-8"))
    [found] = result["neutral"].values()
    [accuracy] = result["accuracy"].values()
    said = " ".join(README.partition("docs/results/movies_neutral.json")[2].split())
    assert f"an accuracy of {accuracy:.2f} on the 200 validation reviews" in said
    assert (
        f"of the {found['texts']} that it classifies correctly {found['without_rationale']:.0%}"
        f" turn neutral without their rationale, and {found['random_spans']:.0%} without"
    ).replace("%", " %") in said
