"""`l2e attribute` as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l2e import main
from training.attribution.teachers import TEACHERS

ROOT = Path(__file__).resolve().parents[2]
# A linear function: great 1.5, dull -1.25, ☕ 0.5; it prints where nothing should be printed.
MODULE = """
import numpy as np
print("loading the weights")
VALUES = {"great": 1.5, "dull": -1.25, "\\u2615": 0.5}
def predict_proba(texts):
    print("asked", len(texts))
    odds = np.array([sum(VALUES.get(word, 0.0) for word in text.split()) for text in texts])
    chance = 1 / (1 + np.exp(-odds))
    return np.stack([1 - chance, chance], axis=1)
def three(texts):
    return [[0.2, 0.5, 0.3]] * len(texts)
def fail(texts):
    raise RuntimeError("the disk is\\nfull")
def logits(texts):
    return [[-3.0, 3.0]] * len(texts)
class Model:
    predict_proba = staticmethod(predict_proba)
model = Model()
constant = 3
"""
TEXTS = {"a": "a great plot", "b": "so dull , a dull ☕ !", "c": "great great  great"}
WEIGHTS = {"a": [0, 1.5, 0], "b": [0, 1.25, 0, 0, 1.25, -0.5, 0], "c": [1.5, 1.5, 1.5]}
TARGETS = {"a": "1", "b": "0", "c": "1"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with mymodule.py and texts.jsonl, the current one; it is forgotten afterwards."""
    (tmp_path / "mymodule.py").write_text(MODULE, encoding="utf-8")
    rows = [json.dumps({"id": name, "text": text}) for name, text in TEXTS.items()]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    path = [*sys.path]
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("mymodule", None)


@pytest.fixture
def attribute(here, capsys):
    """`l2e attribute --blackbox mymodule:predict_proba --data texts.jsonl …` in this process."""

    def run(*flags, blackbox="mymodule:predict_proba", data="texts.jsonl"):
        arguments = ["attribute", "--blackbox", str(blackbox), "--data", str(data)]
        status = main([*arguments, *map(str, flags)])
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(done, *words, status=2):
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("l2e attribute: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line


def start(folder, *flags, **environment):
    """The command in a process of its own, with nothing of ours on its path but `l2e`."""
    command = [sys.executable, "-m", "l2e", "attribute", *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(line):
    return [word["weight"] for word in line["words"]]


# A process


def test_a_function_of_the_current_folder_is_explained(here):
    """JSON lines on standard output and nothing else, though the function prints; two processes
    that share a folder do not disturb each other."""
    flags = ["--blackbox", "mymodule:predict_proba", "--data", "texts.jsonl"]
    flags += ["--teacher", "kernel_shap", "--budget", "130", "--json", "-"]
    both = [start(here, *flags) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    found = [json.loads(line) for line in outputs[0][0].splitlines()]
    assert [line["id"] for line in found] == ["a", "b", "c"]
    for line in found:
        np.testing.assert_allclose(weights(line), WEIGHTS[line["id"]], atol=1e-9)
    for _, shown in outputs:
        assert "loading the weights" in shown
        assert "\r" not in shown  # no bar where there is no terminal
    # At least one of them found nothing done yet.
    assert any("kernel_shap attributions: 3/3 texts in" in shown for _, shown in outputs)


# The line


def test_a_line_is_what_was_agreed(attribute):
    found = lines(attribute("--teacher", "occlusion", "--seed", "7", "--json", "-"))
    for line, (name, text) in zip(found, TEXTS.items(), strict=True):
        assert [*line] == [
            "id", "text", "target", "teacher", "budget", "seed", "value", "null_value", "words",
            "eps",
        ]  # fmt: skip
        assert (line["id"], line["text"], line["target"]) == (name, text, TARGETS[name])
        assert (line["teacher"], line["seed"], line["eps"]) == ("occlusion", 7, 1e-6)
        assert line["budget"] == len(WEIGHTS[name]) + 2
        assert line["value"] == pytest.approx(sum(WEIGHTS[name]), abs=1e-9)
        assert line["null_value"] == pytest.approx(0, abs=1e-12)
        for word in line["words"]:
            assert [*word] == ["start", "end", "weight"]
            assert not set(text[word["start"] : word["end"]]) & set(" \n")
        np.testing.assert_allclose(weights(line), WEIGHTS[name], atol=1e-9)
    assert found[1]["text"][found[1]["words"][5]["start"]] == "☕"


def test_a_file_gets_the_same_lines_and_the_terminal_a_table(attribute, here):
    ask = ("--teacher", "occlusion", "--teacher", "lime=30", "--budget", "9")
    expected = attribute(*ask, "--json", "-").stdout
    done = attribute(*ask, "--json", here / "new" / "out.jsonl")
    assert (here / "new" / "out.jsonl").read_text("utf-8") == expected
    header, occlusion, lime = done.stdout.splitlines()
    assert header.split() == ["teacher", "texts", "evaluations", "seconds/text", "reliability"]
    assert occlusion.split()[:3] == ["occlusion", "3", "6.3"]
    assert lime.split()[:3] == ["lime", "3", "30.0"]
    assert lime.split()[4] == "-"
    assert attribute(*ask).stdout.splitlines()[1:] != []


def test_several_teachers_each_with_its_budget(attribute):
    found = lines(
        attribute(
            *("--teacher", "occlusion", "--teacher", "lime=30", "--teacher", "kernel_shap"),
            *("--teacher", "ensemble:occlusion+lime=20", "--budget", "12", "--json", "-"),
        )
    )
    assert [line["teacher"] for line in found[::3]] == [
        "occlusion", "lime", "kernel_shap", "ensemble:occlusion+lime",
    ]  # fmt: skip
    assert [line["budget"] for line in found[3:6]] == [30] * 3
    assert [line["budget"] for line in found[6:9]] == [8, 12, 8]
    assert [line["budget"] for line in found[9:]] == [5 + 20, 9 + 20, 5 + 20]
    assert [line["id"] for line in found] == [*TEXTS] * 4


def test_the_teacher_is_lime_unless_it_is_named(attribute):
    found = lines(attribute("--json", "-"))
    assert {(line["teacher"], line["budget"], line["seed"]) for line in found} == {("lime", 200, 0)}


def test_integrated_gradients_take_twenty_steps_unless_it_is_said(attribute, torch_bundle):
    """Their budget is not that of samples."""
    teachers = ("--teacher", "integrated_gradients", "--teacher", "lime")
    ask = (*teachers, "--precision", "fp32", "--json", "-")
    found = lines(attribute(*ask, blackbox=torch_bundle.path))
    assert [line["budget"] for line in found] == [22] * 3 + [200] * 3
    found = lines(attribute(*ask, "--budget", "6", blackbox=torch_bundle.path))
    assert [line["budget"] for line in found] == [6] * 6


def test_a_method_is_a_function(attribute):
    ask = ("--teacher", "occlusion", "--json", "-")
    found = attribute(*ask, blackbox="mymodule:model.predict_proba")
    assert found.stdout == attribute(*ask).stdout != ""


def test_reliability_is_in_the_lines_and_in_the_table(attribute):
    ask = ("--teacher", "occlusion", "--teacher", "lime=20", "--reliability")
    found = lines(attribute(*ask, "--json", "-"))
    assert {line["reliability"] for line in found[:3]} == {1.0}
    [value] = {line["reliability"] for line in found[3:]}
    assert -1 <= value < 1
    exact = lines(attribute("--teacher", "kernel_shap=60", "--reliability", "--json", "-"))
    # Of a sum halves differ by rounding alone, which is a tie.
    assert [line["reliability"] for line in exact] == [pytest.approx(1)] * 3
    table = attribute(*ask).stdout.splitlines()
    assert table[1].split()[-1] == "1.000"
    assert table[2].split()[-1] == f"{value:.3f}"


def test_reliability_that_is_undefined_is_null(attribute):
    found = lines(attribute("--teacher", "lime=3", "--reliability", "--json", "-"))
    assert {line["reliability"] for line in found} == {None}
    shown = attribute("--teacher", "lime=3", "--reliability").stdout
    assert "undefined for 3 texts" in shown


def test_a_second_run_asks_only_what_is_new(attribute):
    """A few copies of each text, to see whether the function still is what it was."""
    first = attribute("--teacher", "permutation_shap=64", "--json", "-")
    assert "asked" in first.stderr
    again = attribute("--teacher", "permutation_shap=64", "--json", "-")
    assert again.stdout == first.stdout
    assert [line for line in again.stderr.splitlines() if "asked" in line] == ["asked 1", "asked 9"]


def test_a_function_whose_file_changed_starts_anew(attribute, here):
    first = attribute("--teacher", "occlusion", "--json", "-").stdout
    (here / "mymodule.py").write_text(MODULE.replace("1.5", "2.50"), encoding="utf-8")
    del sys.modules["mymodule"]
    found = lines(attribute("--teacher", "occlusion", "--json", "-"))
    assert weights(found[0])[1] == pytest.approx(2.5)
    assert len(first.splitlines()) == 3


# What is explained


def test_a_target_and_labels(attribute):
    found = lines(
        attribute(
            *("--labels", "NEG,POS", "--target", "NEG", "--teacher", "occlusion", "--json", "-")
        )
    )
    assert [line["target"] for line in found] == ["NEG"] * 3
    np.testing.assert_allclose(weights(found[0]), [0, -1.5, 0], atol=1e-9)
    assert lines(attribute("--labels", "NEG,POS", "--json", "-"))[1]["target"] == "NEG"


def test_another_mask_string_reaches_the_function(attribute):
    """With `great` in place of each word, dropping a dull one is a gain of two."""
    ask = ("--teacher", "occlusion", "--target", "1", "--json", "-")
    found = lines(attribute(*ask, "--mask-string", "great"))
    np.testing.assert_allclose(weights(found[0]), [-1.5, 0, -1.5], atol=1e-9)


def test_gold_labels_decide_nothing(attribute, here):
    """Wrong ones in the file, or none: the predicted class is explained."""
    rows = [json.dumps({"id": n, "text": t, "gold": "x"}) for n, t in TEXTS.items()]
    (here / "gold.jsonl").write_text("\n".join(rows), encoding="utf-8")
    plain = attribute("--teacher", "occlusion", "--json", "-")
    labelled = attribute(
        "--teacher", "occlusion", "--json", "-", "--label-column", "gold", data="gold.jsonl"
    )
    assert labelled.stdout == plain.stdout != ""


@pytest.mark.parametrize(
    ("name", "content", "flags"),
    [
        ("a.csv", 'text\n"a great plot"\n"so dull , a dull ☕ !"\ngreat great  great\n', ()),
        ("a.tsv", "n\twords\n1\ta great plot\n2\tso dull , a dull ☕ !\n3\tgreat great  great\n",
         ("--text-column", "words")),
        ("a.tsv", "1\ta great plot\n2\tso dull , a dull ☕ !\n3\tgreat great  great\n",
         ("--text-column", "1")),
        ("a.csv", 'a,great plot\nso dull,", a dull ☕ !"\ngreat,great  great\n',
         ("--text-column", "0,1")),
    ],
)  # fmt: skip
def test_tables_without_labels(attribute, here, name, content, flags):
    (here / name).write_text(content, encoding="utf-8")
    found = lines(attribute("--teacher", "occlusion", "--json", "-", *flags, data=name))
    assert [line["id"] for line in found] == ["0", "1", "2"]
    assert [line["text"] for line in found] == [*TEXTS.values()]
    for line, expected in zip(found, WEIGHTS.values(), strict=True):
        np.testing.assert_allclose(weights(line), expected, atol=1e-9)


def test_a_folder_in_eraser_format(attribute, here):
    (here / "docs").mkdir()
    records = []
    for name, text in TEXTS.items():
        (here / "docs" / name).write_text(text, encoding="utf-8")
        piece = {"docid": name, "start_token": 0, "end_token": 2, "text": ""}
        records.append({"annotation_id": name, "evidences": [[piece]], "classification": "POS"})
    (here / "test.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    found = lines(attribute("--teacher", "occlusion", "--split", "test", "--json", "-", data=here))
    assert [line["id"] for line in found] == ["a", "b", "c"]
    assert weights(found[2]) == pytest.approx(WEIGHTS["c"])


def test_a_sample_in_the_proportions_of_a_column(attribute, here):
    rows = [{"text": f"{n} great", "kind": "x" if n < 30 else "y"} for n in range(40)]
    (here / "many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ask = ("--teacher", "occlusion", "--limit", "8", "--json", "-")
    found = lines(attribute(*ask, "--label-column", "kind", data="many.jsonl"))
    assert sum(int(line["id"]) < 30 for line in found) == 6
    assert sum(int(line["id"]) >= 30 for line in found) == 2
    plain, again, other = (
        [line["id"] for line in lines(attribute(*ask, "--seed", seed, data="many.jsonl"))]
        for seed in (0, 0, 1)
    )
    assert plain == again != other
    assert len({*plain}) == 8


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_teacher_explains_a_bundle(teacher, attribute, torch_bundle):
    ask = ("--teacher", teacher, "--budget", "70", "--precision", "fp32", "--json", "-")
    found = lines(attribute(*ask, blackbox=torch_bundle.path))
    assert [line["target"] in ("NEG", "POS") for line in found] == [True] * 3
    assert all("eps" not in line for line in found)
    assert np.abs(weights(found[0])).max() > 1e-3


# What is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--teacher", "tarot"), ["no teacher 'tarot'", "lime", "ensemble:NAME+NAME"]),
        (("--teacher", "lime=many"), ["--teacher lime=many", "NAME=BUDGET"]),
        (("--teacher", "lime", "--budget", "2"), ["lime needs a budget of at least 3, not 2"]),
        (("--teacher", "permutation_shap=3"), ["permutation_shap needs a budget of at least"]),
        (("--teacher", "gradient"), ["gradient needs a torch black box"]),
        (("--budget", "0"), ["--budget 0", "at least 1"]),
        (("--limit", "0"), ["--limit 0", "at least 1"]),
        (("--workers", "0"), ["--workers 0", "at least 1"]),
        (("--target", "POS"), ["--target POS: the black box knows 0, 1"]),
        (("--labels", "A,B,C"), ["2 classes, but 3 labels", "--labels"]),
        (("--label-column", "gold"), ["no column 'gold'"]),
        (("--text-column", "body"), ["no column 'body'", "--text-column"]),
    ],
)
def test_bad_values(attribute, flags, words):
    refused(attribute(*flags, "--json", "-"), *words)


@pytest.mark.parametrize(
    ("blackbox", "words", "status"),
    [
        ("nomodule:f", ["nomodule:f: no module nomodule"], 2),
        ("mymodule:g", ["mymodule has no function g"], 2),
        ("mymodule:model.predict", ["model, a Model, has no attribute predict"], 2),
        ("mymodule:constant", ["mymodule:constant is a int"], 2),
        ("mymodule:logits", ["mymodule:logits returned numbers outside 0 … 1"], 2),
        ("mymodule:fail", ["RuntimeError: the disk is"], 1),
        ("no/such/folder", ["no checkpoint no/such/folder"], 2),
    ],
)
def test_a_black_box_that_cannot_be_used(attribute, blackbox, words, status):
    refused(attribute("--json", "-", blackbox=blackbox), *words, status=status)


@pytest.mark.parametrize(
    ("data", "words"),
    [("gone.jsonl", ["no data at gone.jsonl", "--data"]), ("mymodule.py", ["neither .csv"])],
)
def test_data_that_cannot_be_read(attribute, data, words):
    refused(attribute("--json", "-", data=data), *words)


def test_either_data_or_a_recipe(here, capsys):
    for arguments in (["attribute"], ["attribute", "a.toml", "--data", "texts.jsonl"]):
        assert main(arguments) == 2
        assert "either --data PATH or a RECIPE.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--teacher", "lime=5"), "--teacher"),
        (("--budget", "100"), "--budget"),
        (("--seed", "0"), "--seed"),  # the default says no less
        (("--engine=local",), "--engine"),
        (("--prec", "auto"), "--precision"),
        (("--reliability",), "--reliability"),
        (("--text-column", "text"), "--text-column"),
        (("--blackbox", "mymodule:f", "--set", "seed=1"), "--blackbox"),
        (("--json", "-"), "--json"),
    ],
)
def test_a_recipe_leaves_no_say_to_other_flags(here, capsys, flags, named):
    for arguments in (["a.toml", *flags], [*flags, "a.toml"]):
        assert main(["attribute", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line == (
            f"l2e attribute: {named} has no say beside a.toml: change the recipe, there or with "
            f"--set KEY=VALUE, or leave {named} out"
        )


def test_flags_of_a_recipe_are_taken_with_one_and_refused_without(here, capsys):
    flags = ["--set", "seed=1", "--runs", "here", "--debug"]
    with pytest.raises(ValueError, match=r"no recipe at a\.toml"):
        main(["attribute", "a.toml", *flags])
    assert main(["attribute", "--data", "texts.jsonl", "--set", "seed=1"]) == 2
    assert "--set changes a recipe: name the RECIPE.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("teachers", "words"),
    [
        (("lime", "kernel_shap=3"), ["kernel_shap needs a budget of at least 4, not 3"]),
        (("lime", "permutation_shap=9"), ["at least 14 for a text of 7 words, not 9"]),
        (("lime", "ensemble:lime+permutation_shap=9"), ["at least 14 for a text of 7 words"]),
        (("lime", "gradient"), ["gradient needs a torch black box"]),
    ],
)
def test_a_later_teacher_is_refused_before_the_first_works(attribute, here, teachers, words):
    done = attribute(*(part for name in teachers for part in ("--teacher", name)))
    refused(done, *words)
    assert [line for line in done.stderr.splitlines() if "asked" in line] in ([], ["asked 1"])
    assert [*here.rglob("*.parquet")] == []
