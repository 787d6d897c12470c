"""The training verbs on a tiny bundle and a tiny recipe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2e import main
from training.arguments import parse_label_map, with_budgets
from training.config import RecipeError
from training.export.precision import derive
from training.runtime import native_precision, progress

ROOT = Path(__file__).resolve().parents[2]
MEASURES = {"aopc_comprehensiveness", "aopc_sufficiency", "log_odds_drop", "agreement"}
ROWS = [
    ("the story was wonderful and moving .", "1"),
    ("the ending was awful , dull and boring .", "0"),
    ("a clever film that i loved .", "1"),
    ("i hated the weak script .", "0"),
    ("the music was great in every scene .", "1"),
    ("terrible , and never funny .", "0"),
]


def check(result, n, explained, teachers):
    """What `l2e evaluate` promises about its JSON."""
    assert (result["n"], result["n_explained"]) == (n, explained)
    assert 0 <= result["accuracy"] <= 1
    assert result["labels"] == ["NEG", "POS"]
    assert set(result["explainer"]) == MEASURES | {"ms_per_text"}
    assert set(result["teachers"]) == set(teachers)
    for row in result["teachers"].values():
        assert set(row) == MEASURES | {"ms_per_text"}
    assert set(result["random"]) == MEASURES
    assert result["label_only_ms_per_text"] > 0


@pytest.fixture
def table(tmp_path):
    """A .tsv without header."""
    path = tmp_path / "unseen.tsv"
    path.write_text("".join(f"{text}\t{label}\n" for text, label in ROWS), encoding="utf-8")
    return path


def test_evaluate_prints_json_and_nothing_else(torch_bundle, table, tmp_path):
    """In a process of its own, so that what libraries print would be seen."""
    command = [sys.executable, "-m", "l2e", "evaluate", "--bundle", torch_bundle.path]
    command += ["--data", table, "--text-column", "0", "--label-column", "1"]
    command += ["--label-map", "0=NEG,1=POS", "--teacher", "lime", "--budget", "10"]
    command += ["--limit", "4", "--runs", tmp_path / "runs", "--json", "-"]
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), 6, 4, ["lime"])
    assert done.stdout.endswith("}\n")
    assert "\r" not in done.stderr  # no bar where there is no terminal
    assert "Traceback" not in done.stderr


def test_evaluate_on_a_directory_writes_a_file_and_prints_a_table(torch_bundle, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    lines = []
    for number, (text, label) in enumerate(ROWS):
        (tmp_path / "docs" / f"d{number}").write_text(text, encoding="utf-8")
        piece = {"docid": f"d{number}", "start_token": 0, "end_token": 2, "text": ""}
        record = {"annotation_id": f"d{number}", "evidences": [[piece]]}
        lines.append(json.dumps(record | {"classification": ("NEG", "POS")[int(label)]}))
    (tmp_path / "val.jsonl").write_text("\n".join(lines), encoding="utf-8")
    written = tmp_path / "out" / "result.json"
    status = main(
        [
            *("evaluate", "--bundle", str(torch_bundle.path), "--data", str(tmp_path)),
            *("--runs", str(tmp_path / "runs"), "--json", str(written)),
        ]
    )
    shown = capsys.readouterr().out
    assert status == 0
    check(json.loads(written.read_text(encoding="utf-8")), 6, 6, [])
    assert shown.startswith("6 texts, accuracy ")
    assert "random" in shown


def test_a_bundle_in_int8_is_measured_as_it_is_served(torch_bundle, table, tmp_path, capsys):
    texts = [text for text, _ in ROWS]
    path = tmp_path / "int8"
    derive(torch_bundle, "int8", calibration=texts, validation=texts, path=path, least=(0.5, 0.5))
    flags = ["--data", str(table), "--text-column", "0", "--label-column", "1"]
    flags += ["--label-map", "0=NEG,1=POS", "--runs", str(tmp_path / "runs"), "--json", "-"]
    for bundle, more, expected in (
        (path, [], "graph"),
        (path, ["--precision", "fp32"], "fp32"),
        (torch_bundle.path, [], native_precision()),
    ):
        assert main(["evaluate", "--bundle", str(bundle), *flags, *more]) == 0
        assert json.loads(capsys.readouterr().out)["setting"]["precision"] == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("attribution.teacher=tarot", ["no teacher 'tarot'"]),
        ("attribution.budget=2", ["lime needs a budget of at least 3, not 2"]),
        ("evaluation.dev.teachers={ runes = 3 }", ["no teacher 'runes'"]),
        ("evaluation.dev.teachers={ lime = 2 }", ["lime needs a budget of at least 3, not 2"]),
        ("evaluation.dev.source.path=gone.tsv", ["no data at", "gone.tsv"]),
        ("evaluation.dev.source.label_map={}", ["dev.tsv has labels 0", "expected NEG, POS"]),
    ],
)
def test_what_a_later_stage_needs_is_looked_at_before_the_first(
    recipe_path, tmp_path, capsys, override, words
):
    status = main(["run", str(recipe_path), "--set", override, "--runs", str(tmp_path)])
    [line] = capsys.readouterr().err.splitlines()
    assert status == 2
    for word in words:
        assert word in line
    assert [*tmp_path.iterdir()] == []


def test_a_stage_out_of_order_is_bad_input(recipe_path, tmp_path, capsys):
    assert main(["distill", str(recipe_path), "--runs", str(tmp_path)]) == 2
    assert "run the stage train first" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="stage train first"):
        main(["distill", str(recipe_path), "--runs", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("0=NEG,1=POS", {"0": "NEG", "1": "POS"}),
        (" 0 = NEG , 1 = POS ,", {"0": "NEG", "1": "POS"}),
        ("a b=c=d", {"a b": "c=d"}),
    ],
)
def test_label_maps(text, found):
    assert parse_label_map(text) == found


@pytest.mark.parametrize("text", ["NEG", "0=", "=NEG", "0=NEG,1", "0=NEG,0=POS"])
def test_label_maps_that_say_nothing(text):
    with pytest.raises(ValueError, match=r"--label-map .* write OLD=NEW,OLD=NEW"):
        parse_label_map(text)


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    assert [*progress(range(3), total=5, done=2, what="steps", every=0)] == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "steps: 3/5, about 0:00:00 left",
        "steps: 4/5, about 0:00:00 left",
        "steps: 5/5 in 0:00:00",
    ]


def test_quick_work_is_one_line_and_no_work_none(capsys):
    assert [*progress(range(3), total=3, what="steps")] == [0, 1, 2]
    assert [*progress([], total=3, done=3, what="others")] == []
    assert capsys.readouterr().err.splitlines() == ["steps: 3/3 in 0:00:00"]


def test_teachers_carry_their_own_budgets():
    found = with_budgets(["lime=500", "occlusion", "integrated_gradients"], 20)
    assert found == {"lime": 500, "occlusion": 0, "integrated_gradients": 20}


def test_a_teacher_has_a_budget_where_nobody_names_one():
    names = ["lime", "integrated_gradients", "lrp", "ensemble:lrp+integrated_gradients"]
    names += ["kernel_shap=50", "ensemble:lime+integrated_gradients"]
    assert [*with_budgets(names, None).values()] == [200, 22, 0, 22, 50, 200]


def test_a_budget_that_is_too_small_for_any_text_is_refused():
    with pytest.raises(ValueError, match="integrated_gradients needs a budget of at least 3"):
        with_budgets(["lime", "integrated_gradients=2"], None)


def test_a_teacher_with_two_budgets_is_refused_not_overwritten():
    with pytest.raises(ValueError, match="lime is given twice"):
        with_budgets(["lime=50", "lime=20"], 20)


@pytest.mark.parametrize("given", ["tarot", "lime=", "lime=many", "lime=-3"])
def test_a_teacher_that_cannot_be_used_is_refused(given):
    with pytest.raises(ValueError, match=r"teacher"):
        with_budgets([given], 20)
