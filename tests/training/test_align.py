"""`l2e align`: a study of tiny classifiers on a tiny folder in ERASER's format."""

import contextlib
import copy
import dataclasses
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from torch.nn.modules.module import register_module_forward_hook

from l2e import main
from training.config import (
    AlignmentRow,
    AlignmentStudy,
    BlackBox,
    DataSource,
    RationaleLayer,
    RecipeError,
)
from training.evaluation.align_plan import Texts, plan_trials
from training.evaluation.align_plot import draw_alignment
from training.evaluation.align_request import decisive, request
from training.evaluation.align_result import TESTED, collect, compare_rows, to_json
from training.evaluation.machine import machine_digest
from training.evaluation.plausibility import PLAUSIBILITY
from training.evaluation.report import alignment_to_markdown
from training.evaluation.significance import compare_systems, holm
from training.guard import hold
from training.recipe import read_study

WORDS = {"NEG": ("awful", "dull", "weak"), "POS": ("great", "moving", "funny")}
RECIPE = """
name = "tiny"
[data]
labels = ["NEG", "POS"]
[[data.train]]
path = "reviews"
[[data.validation]]
path = "reviews"
split = "val"
[blackbox]
architecture = "mlp"
max_tokens = 64
overlap = 4
vocabulary = { least = 1 }
fit = { epochs = 2, learning_rate = 1e-2, precision = "fp32" }
[evaluation.table.source]
path = "table.csv"
"""
STUDY = """
name = "few"
root = "ROOT"
seeds = [0, 1]
[source]
path = "reviews"
split = "val"
[rows.bag]
recipe = "tiny.toml"
seeds = [3]
[rows.plain]
recipe = "tiny.toml"
teachers = { lime = 12, occlusion = 0 }
limit = 8
[rows.ours]
recipe = "tiny.toml"
set = ["blackbox.copies={ only_rationale = 0.5 }"]
teachers = { lime = 12, occlusion = 0 }
limit = 8
against = ["plain"]
"""
TEACHERS = {"lime": 64, "occlusion": 0}
KEPT = {name for name in PLAUSIBILITY if not name.endswith(("_precision", "_recall"))}


@dataclasses.dataclass(frozen=True)
class Run:
    """What one call of the command has left."""

    status: int
    result: dict
    shown: str
    said: str
    plot: str


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with reviews, a table without rationales, a recipe and a study."""
    folder = tmp_path_factory.mktemp("study")
    docs = folder / "reviews" / "docs"
    docs.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 12)):
        lines = []
        for number in range(count):
            label = ("NEG", "POS")[number % 2]
            name, [first, second] = f"{split}{number}", chance.choice(WORDS[label], 2)
            text = f"the plot was {first} , and in the end it was {second} for us ."
            (docs / name).write_text(text, encoding="utf-8")
            spans = [{"docid": name, "start_token": n, "end_token": n + 1} for n in (3, 11)]
            line = {"annotation_id": name, "classification": label, "evidences": [spans]}
            lines.append(json.dumps(line))
        (folder / "reviews" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "table.csv").write_text("text,label\na great film,POS\nso dull,NEG\n", "utf-8")
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    (folder / "few.toml").write_text(STUDY.replace("ROOT", str(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def align(home):
    """Runs the command in this process: `align(runs, *more)`."""

    def run(runs, *more, stderr=None):
        out, err = io.StringIO(), stderr or io.StringIO()
        written, drawn = runs / "out" / "few.json", runs / "out" / "few.svg"
        files = ("--json", str(written), "--plot", str(drawn))
        arguments = ["align", str(home / "few.toml"), "--runs", str(runs), *files, *more]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        result = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        plot = drawn.read_text(encoding="utf-8") if drawn.exists() else ""
        return Run(status, result, out.getvalue(), err.getvalue(), plot)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(align, runs):
    """The whole study, run once."""
    return align(runs)


def times(folder):
    """When each file was last written; the recipe's is checked and written on every run."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "recipe.json"]
    return {path: path.stat().st_mtime_ns for path in files if "out" not in path.parts}


def timeless(result):
    """A result without what the clock said."""
    rows = [
        {key: value for key, value in row.items() if not key.endswith("_seconds")}
        for row in result["rows"]
    ]
    return {**result, "rows": rows}


def test_the_command_gives_the_agreed_json(whole):
    assert whole.status == 0
    assert set(whole.result) == {"rows", "comparisons"}
    rows = whole.result["rows"]
    assert [(row["name"], row["seed"]) for row in rows] == [
        ("bag", 3), ("plain", 0), ("plain", 1), ("ours", 0), ("ours", 1),
    ]  # fmt: skip
    bag, *explained = rows
    assert (bag["metrics"], bag["documents"]) == ({}, [])
    assert bag["setting"]["source"] == "table.csv"
    assert bag["setting"]["classified"] == 2
    for row in explained:
        assert row["recipe"] == "tiny.toml"
        assert row["accuracy"] == row["measures"]["accuracy"]
        assert row["measures"]["confusion"]
        assert row["train_seconds"] > 0 == row["feedback_seconds"]
        assert row["machine"] == machine_digest()
        assert row["setting"]["classified"] == 12
        assert row["setting"]["texts"] == len(row["documents"]) == 8
        assert row["setting"]["teachers"] == {"lime": 12, "occlusion": 0}
        assert row["setting"]["budgets"]["lime"] == 12
        assert row["setting"]["share"] == pytest.approx(2 / 15)
        assert set(row["metrics"]) == {"lime", "occlusion", "random", "oracle"}
        assert row["metrics"]["oracle"]["ap@10"] == 1
        for document in row["documents"]:
            assert set(document) == {"id", "lime", "occlusion"}
            assert set(document["lime"]) == KEPT
        for measure in KEPT:
            values = [document["lime"][measure] for document in row["documents"]]
            assert row["metrics"]["lime"][measure] == pytest.approx(np.mean(values), abs=1e-4)
    assert len({tuple(d["id"] for d in row["documents"]) for row in explained}) == 1


def test_the_file_has_a_line_for_each_document(whole, runs):
    lines = (runs / "out" / "few.json").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith('{"id": ') for line in lines) == 4 * 8
    assert sum(line.startswith('{"row": ') for line in lines) == 1 + 2 * len(TESTED)


def test_rows_are_tested_against_the_row_they_name(whole):
    found = whole.result["comparisons"]
    assert {(each["row"], each["against"]) for each in found} == {("ours", "plain")}
    accuracy, *tested = found
    means = {
        name: np.mean([row["accuracy"] for row in whole.result["rows"] if row["name"] == name])
        for name in ("plain", "ours")
    }
    assert accuracy["measure"] == "accuracy"
    assert accuracy["difference"] == means["ours"] - means["plain"]
    assert {accuracy[name] for name in ("teacher", "low", "high", "p", "p_holm")} == {None}
    assert [(each["teacher"], each["measure"]) for each in tested] == [
        (teacher, measure) for teacher in ("lime", "occlusion") for measure in TESTED
    ]
    for each in tested:
        assert each["low"] <= each["difference"] <= each["high"]
        assert each["p"] <= each["p_holm"] <= 1
        assert each["n"] == 8


def test_a_second_run_trains_and_explains_nothing(whole, align, runs):
    before, calls = times(runs), []
    hook = register_module_forward_hook(lambda *call: calls.append(call))
    try:
        again = align(runs)
    finally:
        hook.remove()
    assert calls == []
    assert times(runs) == before
    assert again == dataclasses.replace(whole, said=again.said)
    assert [line.split(": ")[1] for line in again.said.splitlines()] == [
        "bag, seed 3 (1 of 5)", "plain, seed 0 (2 of 5)", "plain, seed 1 (3 of 5)",
        "ours, seed 0 (4 of 5)", "ours, seed 1 (5 of 5)",
    ]  # fmt: skip


def test_what_another_machine_has_finished_is_taken(whole, align, home, runs, tmp_path):
    known = runs / "out" / "few.json"
    calls = []
    hook = register_module_forward_hook(lambda *call: calls.append(call))
    try:
        again = align(tmp_path, "--from", str(known))
    finally:
        hook.remove()
    assert calls == []
    assert not (tmp_path / "few").exists()
    assert (tmp_path / "out" / "few.json").read_bytes() == known.read_bytes()
    assert (again.shown, again.plot) == (whole.shown, whole.plot)
    assert again.said.count(": is there\n") == 5


def test_of_what_is_known_only_the_same_is_taken(whole, align, runs, tmp_path):
    known = ("--from", str(runs / "out" / "few.json"))
    changed = ("--set", "rows.plain.limit=4", "--set", "rows.ours.limit=4")
    found = align(tmp_path, *known, *changed, "--only", "bag")
    assert [row["name"] for row in found.result["rows"]] == ["bag"]
    assert "plain, seed 0: the known result is of other settings or data\n" in found.said
    assert "not tested: plain: no result of seed 0, 1\n" in found.said


OLDER = '{"rows": [{"name": "plain", "seed": 0, "accuracy": 1.0, "documents": []}]}'


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": [{}]}', '{"rows": 3}', OLDER])
def test_a_file_that_holds_no_results_is_refused(content, align, tmp_path):
    path = tmp_path / "known.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    found = align(tmp_path / "runs", "--from", str(path))
    assert found.status == 2
    [line] = found.said.splitlines()
    assert f"--from {path}" in line
    assert not (tmp_path / "runs").exists()


BASED = (
    "--set", 'rows.ours.set=["blackbox.architecture=trained", '
    '"blackbox.checkpoint={runs}/bag-3/blackbox"]',
)  # fmt: skip


def test_the_classifier_that_a_row_goes_on_from_is_trained_first(align, tmp_path):
    found = align(tmp_path, *BASED, "--set", "seeds=[0]", "--only", "ours")
    assert found.status == 0
    assert [row["name"] for row in found.result["rows"]] == ["ours"]
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"bag-3", "ours-0"}
    assert not (tmp_path / "few" / "bag-3" / "alignment.json").exists()
    # Another process may be explaining it meanwhile.
    with hold(tmp_path / "few" / "bag-3"):
        again = align(tmp_path, *BASED, "--set", "seeds=[1]", "--only", "ours")
        assert again.status == 0
    (tmp_path / "few" / "ours-0" / "alignment.json").unlink()
    with hold(tmp_path / "few" / "ours-0"):
        assert "another process works there" in align(tmp_path, *BASED, "--only", "ours").said


def test_a_request_is_known_before_training_and_by_all_that_matters(home, tmp_path):
    def requests(*overrides, folder=home, runs="runs"):
        changed = [word for word in (*BASED, *overrides) if word != "--set"]
        study = read_study(
            folder / "few.toml", [*changed, "rows.ours.against=[]", f"root={folder}"]
        )
        trials = plan_trials(study, folder, tmp_path / runs)
        return {trial.row: request(trial, trials, Texts()) for trial in trials if trial.seed != 1}

    first = requests()
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    assert requests(folder=moved, runs="others") == first

    def changed(*overrides):
        found = requests(*overrides, folder=moved)
        return {name for name in found if found[name] != first[name]}

    assert changed("rows.plain.limit=9") == {"plain"}
    assert changed("rows.plain.tokens=9") == {"plain"}
    assert changed("rows.plain.precision=bf16") == {"plain"}
    assert changed("rows.plain.teachers={ lime = 13 }") == {"plain"}
    assert changed("rows.plain.set=['blackbox.fit.epochs=3']") == {"plain"}
    assert changed("rows.plain.set=['description=Other']") == set()
    # What goes on from a row changes with it.
    assert changed("rows.bag.set=['blackbox.fit.epochs=3']") == {"bag", "ours"}
    text = moved / "reviews" / "docs" / "train0"
    text.write_text(text.read_text("utf-8").replace("plot", "tale"), encoding="utf-8")
    assert changed() == {"bag", "plain", "ours"}


def test_what_was_asked_before_an_option_was_there_is_still_asked():
    """Published results are known by digests of these."""
    plain = decisive(BlackBox())
    assert "power" not in plain["rationale"]
    assert "save_seconds" not in plain["fit"]
    sharp = decisive(BlackBox(rationale=RationaleLayer(power=2.0)))
    assert sharp == {**plain, "rationale": {**plain["rationale"], "power": 2.0}}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Deadly(io.StringIO):
    """Standard error whose reader kills the process when it reads certain words."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def write(self, text):
        if self.words in text:
            raise Killed
        return super().write(text)


def test_a_study_killed_between_seeds_goes_on_row_by_row(whole, align, tmp_path):
    with pytest.raises(Killed):
        align(tmp_path, "--only", "plain", stderr=Deadly("plain, seed 1"))
    done = times(tmp_path)
    assert {path.parent.name for path in done if path.name == "alignment.json"} == {"plain-0"}
    first = align(tmp_path, "--only", "plain")
    assert [row["name"] for row in first.result["rows"]] == ["plain", "plain"]
    assert first.result["comparisons"] == []
    assert "not tested: bag: no result of seed 3\n" in first.said
    assert "not tested: ours: no result of seed 0, 1\n" in first.said
    assert not (tmp_path / "few" / "ours-0").exists()
    second = align(tmp_path, "--only", "ours", "bag")
    assert timeless(second.result) == timeless(whole.result)
    assert "not tested" not in second.said
    assert done.items() <= times(tmp_path).items()


def test_what_a_result_depends_on_changes_it_and_nothing_is_trained_again(whole, align, runs):
    changes = ("--set", "rows.plain.limit=4", "--set", "rows.ours.limit=4")
    few = align(runs, *changes, "--only", "plain")
    assert "not tested: ours: no result of seed 0, 1" in few.said  # of eight texts, not of four
    few = align(runs, *changes)
    weights = [path for path in times(runs) if path.name == "model.safetensors"]
    before = times(runs)
    assert {len(row["documents"]) for row in few.result["rows"][1:]} == {4}
    names = [document["id"] for document in few.result["rows"][1]["documents"]]
    assert sorted(name[-1] in "13579" for name in names) == [False, False, True, True]
    # The four of plain's are among its eight or not: LIME has them in any case, in files of old.
    again = align(runs)
    assert timeless(again.result) == timeless(whole.result)
    after = times(runs)
    assert all(before[path] == after[path] for path in weights)
    assert {path for path in after if path.suffix == ".parquet"} == {
        path for path in before if path.suffix == ".parquet"
    }


def test_a_classifier_of_other_data_is_refused(align, home, tmp_path):
    """Its weights alone would not tell what they were trained on."""
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    more = ("--set", f"root={json.dumps(str(moved))}", "--only", "bag")
    runs = tmp_path / "runs"
    assert align(runs, *more).status == 2  # nothing to draw
    text = moved / "reviews" / "docs" / "train0"
    text.write_text(text.read_text("utf-8").replace("plot", "tale"), encoding="utf-8")
    found = align(runs, *more)
    assert found.status == 2
    [line] = found.said.splitlines()
    assert "bag-3 was trained on other data or from another classifier: remove" in line


def test_a_damaged_result_is_made_again(whole, align, runs):
    path = runs / "few" / "plain-0" / "alignment.json"
    path.write_text('{"key": ', encoding="utf-8")
    assert align(runs).result == whole.result


def test_the_first_tokens_alone_are_judged(align, tmp_path):
    """So many that the second of the two marked words is left out."""
    cut = [f"rows.{row}.tokens=12" for row in ("plain", "ours")]
    more = [word for override in (*cut, "seeds=[0]") for word in ("--set", override)]
    found = align(tmp_path, *more, "--only", "plain")
    [row] = found.result["rows"]
    assert row["setting"]["tokens"] == 12
    assert row["metrics"]["oracle"]["auprc"] == 1
    assert 6 <= row["setting"]["budgets"]["occlusion"] <= 14
    assert "reviews val, 8 texts of 12 tokens, lime 12, occlusion" in found.shown


def test_a_row_may_be_trained_on_texts_without_rationales(whole, align, tmp_path):
    data = ["rows.plain.set=['data.train=[{ path = \"table.csv\" }]']", "seeds=[0]"]
    more = [word for override in data for word in ("--set", override)]
    training = ("--set", "training={ path = 'reviews' }")
    found = align(tmp_path, *more, *training, "--only", "plain")
    assert found.status == 0
    assert found.result["rows"][0]["setting"]["share"] == pytest.approx(2 / 15)


def test_the_seed_and_the_folder_of_runs_can_stand_in_an_override(home, align, tmp_path):
    folder = tmp_path / "few"
    override = 'rows.bag.set=["description={runs} {seed}"]'
    assert align(tmp_path, "--set", override, "--only", "bag").status == 2  # nothing to draw
    written = json.loads((folder / "bag-3" / "recipe.json").read_text(encoding="utf-8"))
    assert written["description"] == f"{folder} 3"
    assert written["name"] == "bag-3"
    assert written["seed"] == 3
    assert written["data"]["root"] == str(home)


def test_json_on_standard_output_is_alone_there(whole, home, runs, capsys):
    arguments = ["align", str(home / "few.toml"), "--runs", str(runs), "--json", "-"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == whole.result


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ['rows.ours.set=["blackbox.checkpoint={runs}/ours-0/blackbox"]'],
            ["rows.ours: set:", "ours-0/blackbox goes on from itself"],
        ),
        (["rows.ours.recipe=gone.toml"], ["no recipe at", "gone.toml"]),
        (['rows.ours.against=["theirs"]'], ["rows.ours: against", "no other row 'theirs'"]),
        (['rows.ours.against=["ours"]'], ["no other row 'ours'"]),
        (['rows.ours.against=["plain", "plain"]'], ["rows.ours: against", "each row once"]),
        (["rows.ours.limit=3"], ["rows.ours: against plain", "the same source"]),
        (["rows.ours.teachers={ lime = 9 }"], ["rows.ours: against plain", "teachers"]),
        (["rows.bag.teachers={ tarot = 3 }"], ["rows.bag: no teacher 'tarot'"]),
        (["rows.bag.teachers={ lime = 2 }"], ["rows.bag: lime needs a budget of at least 3"]),
        (
            ["rows.bag.teachers={ permutation_shap = 9 }"],
            ["rows.bag: permutation_shap needs a budget of at least", "for a text of 15 words"],
        ),
        (
            ["rows.bag.teachers={ occlusion = 0 }", "source.path=table.csv", "seeds=[0]"],
            ["no text of table.csv has a human rationale"],
        ),
        (
            ["rows.plain.set=['data.train=[{ path = \"table.csv\" }]']"],
            ["rows.plain: no text of table.csv has a human rationale", "[training]"],
        ),
        (["rows.plain.tokens=7"], ["rows.plain: tokens", "at least 8"]),
        (["rows.plain.limit=0"], ["rows.plain: limit"]),
        (["rows.plain.set=['seed=3']"], ["rows.plain: set: seed is for the study to say"]),
        (["rows.plain.set=['sede=3']"], ["unknown key 'sede'"]),
        (["rows.bag.seeds=[1, 1]"], ["rows.bag: seeds"]),
        (["seeds=[]"], ["seeds"]),
        (["seeds=[-1]"], ["seeds"]),
        (["name=a/b"], ["plain folder name"]),
        (["rows={}"], ["rows: give at least one"]),
        (["source.path=gone"], ["rows.plain: no data at", "gone"]),
        (["source.part=[1, 0]"], ["part of a source"]),
        (["rows.plain.precision=fp16"], ["precision", "fp16"]),
        (["rows.bag.recipe=bare.toml"], ["rows.bag: source: bare.toml has no evaluation"]),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_trained(
    overrides, words, home, align, tmp_path
):
    bare = RECIPE.partition("[evaluation")[0]
    (home / "bare.toml").write_text(bare, encoding="utf-8")
    found = align(tmp_path, *(word for override in overrides for word in ("--set", override)))
    assert found.status == 2
    [line] = found.said.splitlines()
    for word in words:
        assert word in line
    assert found.shown == ""
    assert [*tmp_path.iterdir()] == []


def test_the_shipped_studies_can_be_planned(tmp_path):
    recipes = Path(__file__).resolve().parents[2] / "training" / "recipes"
    studies = [path for path in recipes.glob("*.toml") if "[rows." in path.read_text("utf-8")]
    assert studies
    for path in studies:
        study = read_study(path)
        assert study.name == path.stem
        assert plan_trials(study, recipes, tmp_path)


def test_a_row_that_is_explained_needs_texts(tmp_path):
    path = tmp_path / "few.toml"
    path.write_text(
        'name = "few"\n[rows.cnn]\nrecipe = "a.toml"\nteachers = { lime = 9 }\n', encoding="utf-8"
    )
    with pytest.raises(RecipeError, match=r"rows\.cnn: source: say where the judged texts are"):
        read_study(path)
    assert read_study(path, ["source.path=movies"]).seeds_of("cnn") == (0, 1, 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--only", "plain", "other"), ["--only other", "bag, plain, ours"]),
        (("--plot", "a.png"), ["--plot a.png", ".svg"]),
    ],
)
def test_flags_that_cannot_be_used(flags, words, align, tmp_path):
    found = align(tmp_path, *flags)
    assert found.status == 2
    for word in words:
        assert word in found.said
    assert [*tmp_path.iterdir()] == []


def test_a_folder_of_another_recipe_is_refused_before_anything_is_trained(whole, align, runs):
    before = times(runs)
    found = align(runs, "--set", 'rows.ours.set=["blackbox.fit.epochs=3"]', "--only", "plain")
    assert found.status == 2
    [line] = found.said.splitlines()
    assert "rows.ours" in line
    assert "made with another recipe (blackbox differ)" in line
    assert times(runs) == before


# The tests of significance, the tables and the picture, on numbers made up.


def measured(level):
    """The measures of one explanation that is right to a degree."""
    return {"ap@10": level, "mr@10": 1 - level, "auprc": level, "token_f1": level}


def made_up(level, *, accuracy=0.9, seconds=120.0, seed=0):
    """A result whose documents lie about a level."""
    chance = np.random.default_rng([seed, round(100 * level)])
    values = np.clip(level + chance.normal(0, 0.1, (40, 2)), 0, 1).tolist()
    documents = [
        {"id": str(row), "lime": measured(first), "occlusion": measured(second)}
        for row, (first, second) in enumerate(values)
    ]
    means = [measured(float(np.mean(column))) for column in zip(*values, strict=True)]
    metrics = dict(zip(("lime", "occlusion"), means, strict=True))
    return {
        "accuracy": accuracy,
        "measures": {},
        "train_seconds": seconds,
        "feedback_seconds": seconds - 120.0,
        "metrics": {**metrics, "random": measured(0.1), "oracle": measured(0.95)},
        "setting": {
            "source": "movies", "split": "val", "classified": 50, "texts": 40, "tokens": 0,
            "teachers": TEACHERS,
        },
        "documents": documents,
    }  # fmt: skip


MADE_UP = AlignmentStudy(
    "made_up",
    {
        "plain": AlignmentRow("a.toml", teachers=TEACHERS),
        "ours": AlignmentRow("a.toml", teachers=TEACHERS, against=("plain",)),
        "theirs": AlignmentRow("a.toml", teachers=TEACHERS, against=("plain", "ours")),
    },
    source=DataSource("movies", "val"),
    seeds=(0, 1),
)
LEVELS = {"plain": (0.3, 120.0), "ours": (0.5, 180.0), "theirs": (0.31, 120.0)}


@pytest.fixture
def results():
    return {
        (name, seed): made_up(level, accuracy=level + seed / 50, seconds=seconds, seed=seed)
        for name, (level, seconds) in LEVELS.items()
        for seed in (0, 1)
    }


def test_a_row_without_all_its_seeds_says_so(results):
    del results["ours", 1]
    found = collect(MADE_UP, results)
    first, _ = alignment_to_markdown(found).split("\n\n")
    table = {cells(line)[0]: cells(line)[1] for line in first.splitlines()}
    assert (table["ours"], table["plain"]) == ("1 of 2", "2")
    drawn = draw_alignment(found)
    assert "ours (1 of 2 seeds)" in drawn
    assert "plain (" not in drawn


def test_a_baseline_that_was_not_trained_has_no_ratio(results):
    for seed in (0, 1):
        results["plain", seed]["train_seconds"] = 0.0
    lines = alignment_to_markdown(collect(MADE_UP, results)).splitlines()
    assert cells(next(line for line in lines if line.startswith("| ours ")))[-1] == "-"


def test_times_are_compared_on_one_machine_seed_by_seed(results):
    for name, seed in results:
        results[name, seed]["machine"] = "abc"
    results["plain", 0]["train_seconds"] = 90.0
    ratio = ratios(results)
    assert (ratio["ours"], ratio["theirs"]) == ("1.71", "1.14")
    results["ours", 0]["machine"] = "def"
    ratio = ratios(results)
    assert (ratio["ours"], ratio["theirs"]) == ("1.50", "1.14")
    del results["theirs", 1]
    results["ours", 1]["machine"] = "def"
    ratio = ratios(results)
    assert (ratio["ours"], ratio["theirs"]) == ("-", "1.33")


def ratios(results):
    first, _, _ = alignment_to_markdown(collect(MADE_UP, results)).partition("\n\n")
    return {cells(line)[0]: cells(line)[-1] for line in first.splitlines()}


def test_every_test_is_that_of_systems_and_holm_is_over_all(results):
    found = [each for each in compare_rows(MADE_UP, results) if each["teacher"]]
    assert len(found) == 3 * 2 * len(TESTED)
    assert {(each["row"], each["against"]) for each in found} == {
        ("ours", "plain"), ("theirs", "plain"), ("theirs", "ours"),
    }  # fmt: skip
    for each in found:
        values = [
            {
                seed: {
                    part["id"]: part[each["teacher"]][each["measure"]]
                    for part in results[name, seed]["documents"]
                }
                for seed in (0, 1)
            }
            for name in (each["row"], each["against"])
        ]
        expected = compare_systems(*values)
        assert each["difference"] == expected.difference
        assert (each["low"], each["high"]) == (expected.low, expected.high)
        assert (each["p"], each["n"]) == (expected.p, 40)
    corrected = holm({str(row): each["p"] for row, each in enumerate(found)})
    assert [each["p_holm"] for each in found] == [*corrected.values()]
    assert max(each["p_holm"] for each in found if each["row"] == "ours") < 1e-4
    theirs = [each for each in found if each["row"] == "theirs"]
    assert min(each["p_holm"] for each in theirs if each["against"] == "plain") > 1e-4
    assert max(each["p_holm"] for each in theirs if each["against"] == "ours") < 1e-4


def test_an_unfinished_row_is_not_tested_and_counts_in_the_family(results):
    every = collect(MADE_UP, results)["comparisons"]
    del results["theirs", 1]
    part = collect(MADE_UP, results)
    assert [(row["name"], row["seed"]) for row in part["rows"] if row["name"] != "plain"] == [
        ("ours", 0), ("ours", 1), ("theirs", 0),
    ]  # fmt: skip
    kept = [each for each in part["comparisons"] if each["teacher"]]
    assert {each["row"] for each in kept} == {"ours"}
    known = {(each["teacher"], each["measure"]): each for each in every if each["row"] == "ours"}
    smallest = min(kept, key=lambda each: each["p"])
    assert smallest["p_holm"] == smallest["p"] * 3 * 2 * len(TESTED)
    for each in kept:
        assert each["p_holm"] >= known[each["teacher"], each["measure"]]["p_holm"]
    del results["plain", 0]
    assert collect(MADE_UP, results)["comparisons"] == []


def test_texts_that_one_of_two_rows_lacks_are_left_out_of_their_test(results):
    del results["ours", 1]["documents"][7]
    assert {each["n"] for each in compare_rows(MADE_UP, results) if each["row"] == "ours"} == {
        50, 39,
    }  # fmt: skip


def test_the_file_holds_what_it_was_made_of(results):
    found = collect(MADE_UP, results)
    assert json.loads(to_json(found)) == found
    value = found["rows"][0]["documents"][0]["lime"]["auprc"]
    assert value == round(results["plain", 0]["documents"][0]["lime"]["auprc"], 4)
    assert found["rows"][0]["metrics"] == results["plain", 0]["metrics"]
    assert json.loads(to_json({"rows": [], "comparisons": []})) == {"rows": [], "comparisons": []}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables(results):
    """As the README quotes them after `<!-- alignment: FILE -->`."""
    for seed in (0, 1):
        results["bag", seed] = {
            **made_up(0.2, accuracy=0.5), "metrics": {}, "documents": [],
            "setting": {"source": "t.csv", "split": "train", "classified": 2, "texts": 0,
                        "teachers": {}},
        }  # fmt: skip
    rows = {"bag": AlignmentRow("b.toml", against=("plain",)), **MADE_UP.rows}
    study = dataclasses.replace(MADE_UP, rows=rows)
    text = alignment_to_markdown(collect(study, results))
    first, second = (part.splitlines() for part in text.split("\n\n"))
    assert cells(first[0]) == [
        "classifier", "seeds", "judged on", "accuracy",
        "lime AP@10", "lime MR@10", "lime AUPRC", "lime token F1",
        "occlusion AP@10", "occlusion MR@10", "occlusion AUPRC", "occlusion token F1",
        "training", "feedback", "ratio",
    ]  # fmt: skip
    table = {cells(line)[0]: cells(line)[1:] for line in first[2:]}
    assert list(table) == ["bag", "plain", "ours", "theirs", "random words", "oracle"]
    assert table["bag"] == ["2", "-", "0.500 ± 0.000", *["-"] * 8, "2.0 min", "-", "1.00"]
    seeds, where, accuracy, ap, mr, *_, training, feedback, ratio = table["ours"]
    assert seeds == "2"
    assert where == "movies val, 40 texts, lime 64, occlusion"
    assert accuracy == "0.510 ± 0.014"
    means = [results["ours", seed]["metrics"]["lime"]["ap@10"] for seed in (0, 1)]
    assert (ap, mr) == (f"{np.mean(means):.3f}", f"{1 - np.mean(means):.3f}")
    assert (training, feedback, ratio) == ("3.0 min", "1.0 min", "1.50")
    assert table["plain"][-3:] == ["2.0 min", "-", "-"]
    assert table["random words"][3:7] == ["0.100", "0.900", "0.100", "0.100"]
    assert table["oracle"][7:11] == ["0.950", "0.050", "0.950", "0.950"]
    assert cells(second[0]) == [
        "difference, 95 % interval, p after Holm", "accuracy", "by",
        "AP@10", "MR@10", "AUPRC", "texts",
    ]  # fmt: skip
    assert len(second) == 2 + 1 + 3 * 2
    assert cells(second[2]) == ["bag less plain", "+0.190", "-", "-", "-", "-", "2"]
    name, accuracy, teacher, ap, mr, _, count = cells(second[3])
    assert (name, accuracy, teacher, count) == ("ours less plain", "+0.200", "lime", "40")
    pattern = r"\+(0\.\d{3}), \+0\.\d{3} to \+0\.\d{3}, p < 0\.001"
    assert re.fullmatch(pattern, ap)
    assert re.fullmatch(pattern.replace(r"\+", "-"), mr)
    assert re.search(r"p [01]\.\d{3}$", cells(second[5])[3])
    alone = dataclasses.replace(MADE_UP, rows={"plain": MADE_UP.rows["plain"]})
    assert "\n\n" not in alignment_to_markdown(collect(alone, results))


def test_rows_on_other_texts_have_chance_and_oracle_of_their_own(results):
    for seed in (0, 1):
        results["theirs", seed]["setting"]["tokens"] = 512
    lines = alignment_to_markdown(collect(MADE_UP, results)).split("\n\n")[0].splitlines()
    assert [cells(line)[0] for line in lines[2:]] == [
        "plain", "ours", "random words", "oracle", "theirs", "random words", "oracle",
    ]  # fmt: skip
    assert cells(lines[-1])[2] == "movies val, 40 texts of 512 tokens"


def test_the_picture_is_the_same_every_time_and_names_all(results):
    found = collect(MADE_UP, results)
    first = draw_alignment(found)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):  # of the user's own
        assert draw_alignment(copy.deepcopy(found)) == first
    assert ElementTree.fromstring(first).tag.endswith("svg")
    for word in ("plain", "ours", "theirs", "lime", "occlusion", "oracle"):
        assert word in first  # in comments: the letters are drawn
    assert "<dc:date>" not in first
    results["ours", 0] = made_up(0.8)
    assert draw_alignment(collect(MADE_UP, results)) != first


def test_a_picture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_alignment({"rows": [], "comparisons": []})


def test_the_plot_of_the_command_is_that_of_its_json(whole):
    assert draw_alignment(whole.result) == whole.plot
