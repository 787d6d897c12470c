"""`l2e compare` on the tiny bundle."""

import json

import numpy as np
import pytest

from l2e import main
from training.attribution.reliability import split_half
from training.attribution.teachers import teacher_named
from training.data import Example
from training.evaluation.compare import compare_teachers
from training.evaluation.faithfulness import measure_faithfulness

MEASURES = {"comprehensiveness", "sufficiency", "log_odds_drop", "agreement"}
ROW = MEASURES | {"reliability", "residual", "seconds_per_text", "budget", "texts"}
ENSEMBLE = "ensemble:occlusion+lime"
TEACHERS = {"occlusion": 0, "integrated_gradients": 6, "lime": 16, ENSEMBLE: 16}
RECIPE = """
name = "few"
blackbox = "{bundle}"
root = "{root}"
seed = 2
[evaluation.dev]
limit = 5
[evaluation.dev.teachers]
occlusion = 0
gradient = 0
kernel_shap = 14
"{ensemble}" = 12
[evaluation.dev.source]
path = "dev.tsv"
text_column = "0"
label_column = "1"
[evaluation.whole.source]
path = "few.csv"
label_column = "label"
[evaluation.whole.teachers]
lime = 9
"""
TEXTS = {"a": "the film was great .", "b": "a dull plot , i hated it", "c": "funny"}


class Calls:
    """Counts the rows that a network evaluates."""

    def __init__(self, model):
        self.rows = 0
        model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, model, args, kwargs, output):
        self.rows += len(output.logits)


@pytest.fixture
def compare(lively_black_box, tmp_path):
    def run(teachers=TEACHERS, **changes):
        examples = [Example(name, text, "any") for name, text in TEXTS.items()]
        settings = {"seed": 1, "work": tmp_path, **changes}
        return compare_teachers(lively_black_box, examples, teachers, **settings)

    return run


def test_rows_are_means_over_texts(compare, lively_black_box):
    black_box = lively_black_box
    found = compare()
    assert list(found) == [*TEACHERS, "random"]
    documents = [black_box.encoder.encode(text) for text in TEXTS.values()]
    targets = black_box.logits(documents).argmax(axis=1)
    for name, budget in TEACHERS.items():
        teacher = teacher_named(name)
        records = teacher.attribute(black_box, documents, targets, budget=budget, seed=1)
        row = found[name]
        assert row["budget"] == np.mean([record.budget for record in records])
        measured = [
            measure_faithfulness(black_box, document, target, [record.weights])[0]
            for document, target, record in zip(documents, targets, records, strict=True)
        ]
        for mine, theirs in (
            ("comprehensiveness", "aopc_comprehensiveness"), ("sufficiency", "aopc_sufficiency"),
            ("log_odds_drop", "log_odds_drop"), ("agreement", "agreement"),
        ):  # fmt: skip
            expected = np.mean([part[theirs] for part in measured])
            assert row[mine] == pytest.approx(expected, abs=1e-5), (name, mine)
        reliability = split_half(teacher, documents, records).reliability
        assert row["reliability"] == pytest.approx(reliability, abs=1e-6)
        assert row["seconds_per_text"] > 0
        assert row["texts"] == 3
        gaps = np.array([record.value - record.null_value for record in records])
        sums = np.array([record.weights.sum() for record in records])
        residual = None if name == ENSEMBLE else float(np.median(np.abs(sums / gaps - 1)))
        assert row["residual"] == (None if residual is None else pytest.approx(residual, abs=1e-4))


def test_random_words_have_no_cost_and_no_reliability(compare):
    row = compare({})["random"]
    assert {name: row[name] for name in ROW - MEASURES} == {
        "reliability": None, "residual": None, "seconds_per_text": None, "budget": 0.0, "texts": 3,
    }  # fmt: skip
    assert 0 <= row["agreement"] <= 1


def test_a_killed_comparison_resumes(compare, lively_black_box, tmp_path):
    """With another teacher only its work is new; without, none but the predicted classes."""
    calls = Calls(lively_black_box.model)
    few = compare({"lime": 16})
    calls.rows = 0
    assert compare({"lime": 16}) == few
    assert calls.rows == 3
    more = compare({"lime": 16, "occlusion": 0})
    assert more["lime"] == few["lime"]
    assert more["random"] == few["random"]
    other = compare({"lime": 16}, seed=2)
    assert other["lime"] != few["lime"]


def test_undefined_is_none(compare):
    found = compare({"lime": 3})
    assert found["lime"]["reliability"] is None
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def comparison(torch_bundle, tiny_data, tmp_path):
    (tmp_path / "dev.tsv").write_bytes((tiny_data / "dev.tsv").read_bytes())
    rows = "".join(f'"{text}",x\n' for text in TEXTS.values())
    (tmp_path / "few.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    path = tmp_path / "few.toml"
    text = RECIPE.format(bundle=torch_bundle.path, root=tmp_path, ensemble=ENSEMBLE)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_gives_the_agreed_json_and_resumes(comparison, tmp_path, capsys):
    arguments = ["compare", str(comparison), "--runs", str(tmp_path / "runs")]
    assert main([*arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["dev", "whole"]
    assert list(found["dev"]) == ["occlusion", "gradient", "kernel_shap", ENSEMBLE, "random"]
    assert list(found["whole"]) == ["lime", "random"]
    for rows in found.values():
        for row in rows.values():
            assert set(row) == ROW
            assert all(value is None or isinstance(value, (int, float)) for value in row.values())
    assert {row["texts"] for row in found["dev"].values()} == {5}
    assert {row["texts"] for row in found["whole"].values()} == {3}
    assert found["dev"]["occlusion"]["reliability"] == 1.0
    assert found["dev"]["gradient"]["budget"] == 3
    assert found["dev"]["kernel_shap"]["budget"] <= 14
    written = tmp_path / "out" / "teachers.json"
    assert main([*arguments, "--json", str(written)]) == 0
    shown = capsys.readouterr()
    assert json.loads(written.read_text("utf-8")) == found  # seconds too: nothing ran again
    assert shown.out.startswith("dev\n| teacher |")
    drops = [float(line.split("|")[5]) for line in shown.out.split("\n\n")[0].splitlines()[3:]]
    assert drops == sorted(drops, reverse=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.dev.teachers.tarot=3", ["no teacher 'tarot'"]),
        ("evaluation.dev.teachers.lime=-3", ["--teacher lime=-3"]),
        ("evaluation.whole.source.path=gone.csv", ["no data at", "gone.csv"]),
        ("blackbox=no/such/folder", ["no checkpoint no/such/folder"]),
        ("evaluation.dev.limit=0", ["limit"]),
    ],
)
def test_what_cannot_be_compared_is_one_line(override, words, comparison, tmp_path, capsys):
    arguments = ["compare", str(comparison), "--runs", str(tmp_path / "runs"), "--set", override]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    line = shown.err.splitlines()[-1]
    for word in words:
        assert word in line
