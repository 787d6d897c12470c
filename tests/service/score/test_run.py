"""`l2e score`: every row of a file, in any format, killed and resumed at any moment."""

import csv
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from l2e import main
from models import bundle
from service.score.columns import Columns
from service.score.run import run_locally, score
from service.score.shards import Counts, WorkError, open_work
from service.score.tables import MAX_CHARS, MAX_LINE, read_rows
from service.score.work import SHARD_CHARS, ScoreOptions, survey

ROOT = Path(__file__).resolve().parents[3]
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
FLAT = ("index", "id", "status", "label", "score", "target", "rationale", "windows", "error")
ROWS = [
    {"id": "a", "text": "A great story, but boring."},
    {"id": "b", "text": " "},
    {"id": "c, d", "text": 'He said "dull", she loved it – naïve 👩‍👩‍👧'},
    {"id": "e", "text": "wonderful " * 60},
]
BLANK = "text is empty or blank: send at least one non-blank character"


def write_table(path, rows):
    """Writes rows as people have them."""
    names = [*rows[0]]
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".tsv":
        lines = [names, *([row[name] for name in names] for row in rows)]
        path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read_records(path):
    """Reads an output; .csv and .tsv know texts only."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".parquet":
        return parquet.read_table(path, use_threads=False, pre_buffer=False).to_pylist()
    text = path.read_bytes().decode()
    if path.suffix == ".csv":
        return [*csv.DictReader(io.StringIO(text, newline=""), strict=True)]
    names, *rows = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    return [dict(zip(names, row, strict=True)) for row in rows]


def flat(record):
    """The columns of a JSON record in a flat format; those without a value are None."""
    cells = {name: record.get(name) for name in FLAT}
    if cells["rationale"] is not None:
        cells["rationale"] = json.dumps(
            cells["rationale"], ensure_ascii=False, separators=(",", ":")
        )
    return cells


def as_text(cells):
    return {name: "" if cell is None else str(cell) for name, cell in cells.items()}


def expected(explanation):
    """What JSONL says of an answer."""
    found = explanation.to_dict()
    return {name: value for name, value in found.items() if name not in ("text", "words")}


@pytest.fixture
def run(tiny_bundle, capsys):
    """Runs the command in this process: `run(IN, OUT, *flags) -> (status, standard error)`."""

    def run(*arguments, bundle=tiny_bundle):
        flags = ("--bundle", bundle, "--device", "cpu", "--threads", "1")
        status = main(["score", *map(str, (*arguments, *flags))])
        captured = capsys.readouterr()
        assert captured.out == ""
        return status, captured.err

    return run


@pytest.fixture
def refused(run):
    """Asserts that the command is refused in one line with these words."""

    def refused(*arguments, words, status=2, **given):
        found, shown = run(*arguments, **given)
        assert (found, shown.count("\n")) == (status, 1), shown
        assert shown.startswith("l2e score: ")
        for word in words:
            assert word in shown
        return shown

    return refused


# What is answered


@pytest.mark.parametrize("out", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_every_format_becomes_every_other(run, tiny_explainer, tmp_path, source, out):
    table, output = write_table(tmp_path / f"in{source}", ROWS), tmp_path / f"out{out}"
    status, shown = run(table, output)
    assert status == 0
    assert shown.splitlines() == [
        f"in{source}: 4/4 texts in 0:00:00",
        f"{output}: 4 rows, 1 of them errors",
    ]
    answers = tiny_explainer.explain([row["text"] for row in ROWS if row["id"] != "b"])
    good = [{"status": "ok", **expected(answer)} for answer in answers]
    bodies = [good[0], {"status": "error", "error": BLANK}, *good[1:]]
    wanted = [
        {"index": index, "id": row["id"], **body}
        for index, (row, body) in enumerate(zip(ROWS, bodies, strict=True))
    ]
    if out != ".jsonl":
        wanted = [flat(record) for record in wanted]
    if out in (".csv", ".tsv"):
        wanted = [as_text(cells) for cells in wanted]
    assert read_records(output) == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{source}", f"out{out}"]


def test_rows_are_answered_as_alone_whatever_their_company(
    run, tiny_explainer, mixed_texts, tmp_path
):
    table = write_table(tmp_path / "in.jsonl", [{"text": text} for text in mixed_texts])
    assert run(table, tmp_path / "out.jsonl")[0] == 0
    alone = [tiny_explainer.explain([text])[0] for text in mixed_texts]
    found = read_records(tmp_path / "out.jsonl")
    assert found == [
        {"index": index, "status": "ok", **expected(answer)} for index, answer in enumerate(alone)
    ]
    assert max(record["windows"] for record in found) > 1


def test_order_is_kept_over_shards(run, tmp_path):
    texts = [f"{'great ' * (number % 7)}story {number}" for number in range(1_100)]
    table = write_table(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    assert run(table, tmp_path / "out.jsonl")[0] == 0
    records = read_records(tmp_path / "out.jsonl")
    assert [record["index"] for record in records] == [*range(1_100)]
    for text, record in zip(texts, records, strict=True):
        for span in record["rationale"]:
            assert text[span["start"] : span["end"]] == span["text"]


def test_options_reach_the_explainer(run, tiny_explainer, tmp_path):
    text = ROWS[0]["text"]
    table = write_table(tmp_path / "in.jsonl", [{"text": text}])
    run(table, tmp_path / "target.jsonl", "--target", "NEG", "--max-words", "1")
    run(table, tmp_path / "label.jsonl", "--no-explain", "--target", "NEG")
    [one], [label] = map(read_records, (tmp_path / "target.jsonl", tmp_path / "label.jsonl"))
    head = {"index": 0, "status": "ok"}
    assert one == head | expected(tiny_explainer.explain([text], "NEG", max_words=1)[0])
    assert label == head | expected(tiny_explainer.predict([text], "NEG")[0])
    assert (len(one["rationale"]), label["rationale"]) == (1, [])


def test_a_file_without_rows(run, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    for suffix, content in ((".jsonl", ""), (".tsv", "\t".join(FLAT) + "\n")):
        assert run(tmp_path / "in.jsonl", tmp_path / f"out{suffix}")[0] == 0
        assert (tmp_path / f"out{suffix}").read_text() == content
    assert run(tmp_path / "in.jsonl", tmp_path / "out.parquet")[0] == 0
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 0


def test_parquet_has_types(run, tmp_path):
    run(write_table(tmp_path / "in.jsonl", ROWS), tmp_path / "out.parquet")
    types = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "out.parquet")}
    assert types == dict.fromkeys(FLAT, "string") | {
        "index": "int64", "score": "double", "windows": "int32",
    }  # fmt: skip


# How a table is read


def rows_of(path, content, text="text", name=None):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.id, row.text or row.error) for row in read_rows(path, Columns(text, name))]


def test_csv_is_rfc_4180_and_tsv_is_unquoted(tmp_path):
    content = '\ufeffid,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,plain\r\n3,a\u2028b'
    assert rows_of(tmp_path / "in.csv", content) == [
        ("1", 'two\r\nlines, "quoted"'), ("2", "plain"), ("3", "a\u2028b"),
    ]  # fmt: skip
    content = 'text\tid\n"He said, ""so\t1\r\n  \n\rold\t2\n\n'
    assert rows_of(tmp_path / "in.tsv", content) == [("1", '"He said, ""so'), ("2", "\rold")]


def test_empty_cells_are_a_row_and_blank_lines_are_none(tmp_path):
    """Or the index of every later row would be another's."""
    assert rows_of(tmp_path / "in.csv", 'text\ngreat\n""\n\ndull\n') == [
        (None, "great"), (None, None), (None, "dull"),
    ]  # fmt: skip
    assert rows_of(tmp_path / "in.csv", "id,text\n1,great\n,\n3,dull\n") == [
        ("1", "great"), ("", None), ("3", "dull"),
    ]  # fmt: skip
    assert rows_of(tmp_path / "in.tsv", "id\ttext\n \t\n\n3\tdull\n") == [
        (" ", None), ("3", "dull"),
    ]  # fmt: skip


def test_numbers_mean_no_header_and_several_columns_are_joined(tmp_path):
    assert rows_of(tmp_path / "in.tsv", "7\tA\tB\n8\tC\n", "1,2", "0") == [
        ("7", "A B"), ("8", "no text in column '2'"),
    ]  # fmt: skip
    assert rows_of(tmp_path / "in.csv", "title,text\nA,B\n", "title,text") == [(None, "A B")]
    assert rows_of(tmp_path / "in.csv", "0,1\nA,B\n", "1", None) == [(None, "1"), (None, "B")]
    assert rows_of(tmp_path / "in.jsonl", '{"0": "A", "1": "B"}\n', "1", "0") == [("A", "B")]


def test_scalars_are_texts_as_json_writes_them(tmp_path):
    content = '{"id": 7, "text": true}\n{"id": null, "text": 1.50}\n{"id": [1], "text": "a"}\n'
    assert rows_of(tmp_path / "in.jsonl", content) == [("7", "true"), (None, "1.5"), (None, "a")]
    table = pa.table({"id": [7, None], "text": pa.array(["a", None]).dictionary_encode()})
    parquet.write_table(table, tmp_path / "in.parquet")
    found = read_rows(tmp_path / "in.parquet", Columns())
    assert [(row.id, row.text or row.error) for row in found] == [
        ("7", "a"), (None, "no text in column 'text'"),
    ]  # fmt: skip


CANARY = "zanzibar"
BAD_LINES = {
    f'{{"text": "{CANARY}" "': "line 2 is not JSON (Expecting ',' delimiter at column 21)",
    f'{{"text": "{CANARY}': "line 2 is not JSON (Invalid control character at column 19)",
    f'["{CANARY}"]': "line 2 is not a JSON object",
    f'{{"{CANARY}": 1}}': "no text in column 'text'",
    f'{{"text": ["{CANARY}"]}}': "no text in column 'text'",
    f'{{"text": "{CANARY} \\ud800"}}': "text has a lone surrogate at character 9",
    f'{{"text": "{CANARY}", "id": "\\ud800"}}': "id has a lone surrogate",
    f'{{"text": "{CANARY} {"x" * MAX_CHARS}"}}': "text has 1,000,009 characters: give at most",
    f'{{"text": "{CANARY} {"x" * MAX_LINE}"}}': "line 2 has more than 16,777,216 characters",
    "[" * 100_000: "line 2 is JSON that is too large or too deep",
    f'{{"text": "{CANARY}", "n": {"1" * 5_000}}}': "line 2 is JSON that is too large or too deep",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_fails_alone_and_is_not_repeated(run, tmp_path, line):
    table, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    table.write_text(f'{{"text": "great"}}\n{line}\n{{"text": "dull"}}\n')
    status, shown = run(table, output)
    assert status == 0
    assert shown.endswith(": 3 rows, 1 of them errors\n")
    first, bad, last = read_records(output)
    assert (first["label"], last["label"]) == ("POS", "NEG")
    assert bad.keys() == {"index", "status", "error"}
    assert (bad["index"], bad["status"]) == (1, "error")
    assert bad["error"].startswith(BAD_LINES[line])
    assert CANARY not in output.read_text() + shown


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.jsonl", b'{"text": "great"}\n{"text": "\xff"}\n'),
        ("in.tsv", b"text\tid\ngreat\t1\n\xff\t2\n"),
        ("in.csv", b"id,text\n1,great\n2,\xff\n"),
    ],
)
def test_bytes_that_are_no_utf8_fail_alone(tmp_path, name, content):
    good, bad = rows_of(tmp_path / name, content)
    assert good[1] == "great"
    assert bad[1].endswith(" is not UTF-8")


def test_a_parquet_string_that_is_no_utf8_fails_alone(tmp_path):
    texts = pa.array([b"great", b"\xff"]).view(pa.string())
    parquet.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    good, bad = read_rows(tmp_path / "in.parquet", Columns())
    assert (good.text, bad.error) == ("great", "a value of the row is not UTF-8")


def test_a_row_wider_than_its_header_fails_alone(tmp_path):
    assert rows_of(tmp_path / "in.csv", "id,text\n1,a,b\n2,c\n") == [
        (None, "line 2 has 3 fields under a header of 2"), ("2", "c"),
    ]  # fmt: skip


def test_an_id_that_tsv_cannot_hold_is_an_error_of_its_row(run, tmp_path):
    table = write_table(tmp_path / "in.jsonl", [{"id": "a\tb", "text": "great"}])
    run(table, tmp_path / "out.tsv")
    [record] = read_records(tmp_path / "out.tsv")
    assert (record["id"], record["status"]) == ("", "error")
    assert record["error"].startswith("id has a tab or a line end")


# What is refused before any work


@pytest.mark.parametrize(
    ("name", "content", "flags", "words"),
    [
        ("in.txt", "a", (), ["in.txt is none of .jsonl, .csv, .tsv, .parquet"]),
        ("in.csv", "id,review\n1,a\n", (), ["no column 'text'", "id, review", "--text-column"]),
        ("in.csv", "id,text\n1,a\n", ("--id-column", "key"), ["no column 'key'", "--id-column"]),
        ("in.tsv", "a\tb\n", ("--text-column", "2"), ["no column '2'", "found: 0, 1"]),
        ("in.jsonl", '[]\n{"review": "a"}\n', (), ["no column 'text'", "found: review"]),
        ("in.csv", 'text\n"a"b\nc\n', (), ["in.csv:2 is not RFC 4180", "name the file .tsv"]),
        ("in.csv", 'text\nc\n"a\n', (), ["in.csv:3 is not RFC 4180"]),
        ("in.parquet", "text\na\n", (), ["in.parquet is not a Parquet file"]),
        ("in.jsonl", '{"text": "a"}', ("--target", "so so"), ["unknown target", "NEG, POS"]),
        ("in.jsonl", '{"text": "a"}', ("--max-words", "0"), ["give at least 1"]),
        ("in.jsonl", '{"text": "a"}', ("--workers", "0"), ["--workers 0: give at least 1"]),
        ("in.jsonl", '{"text": "a"}', ("--no-explain", "--max-words", "3"), ["leave one of them"]),
    ],
)
def test_bad_input_leaves_nothing_behind(refused, tmp_path, name, content, flags, words):
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, tmp_path / "out.jsonl", *flags, words=words)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_paths_that_cannot_be(refused, tmp_path):
    table = write_table(tmp_path / "in.jsonl", ROWS)
    refused(tmp_path / "no.jsonl", tmp_path / "out.jsonl", words=["no.jsonl: no such file"])
    refused(table, tmp_path / "no" / "out.jsonl", words=["no: no such folder; make it first"])
    refused(table, tmp_path / "out.xlsx", words=["out.xlsx is none of .jsonl"])
    refused(table, tmp_path / "out.csv", bundle=tmp_path, words=["no bundle here"])


def test_an_output_that_exists_is_not_touched(refused, tmp_path):
    table = write_table(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "out.csv").write_text("mine")
    refused(table, tmp_path / "out.csv", words=["out.csv exists already: remove it"])
    refused(table, table, words=["in.jsonl exists already"])
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_without_pyarrow_parquet_is_refused_and_the_rest_works(tiny_bundle, tmp_path):
    table = write_table(tmp_path / "in.jsonl", ROWS)
    code = (
        "import sys; from importlib import util; find = util.find_spec; "
        "sys.modules['pyarrow'] = None; "
        "util.find_spec = lambda name: None if name == 'pyarrow' else find(name); "
        "import l2e; sys.exit(l2e.main(sys.argv[1:]))"
    )
    flags = ("--bundle", tiny_bundle)
    for suffix, status in ((".parquet", 2), (".csv", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, *("score", table, tmp_path / f"out{suffix}"), *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert ("needs pyarrow: pip install 'l2e[parquet]'" in done.stderr) == (status == 2)


# Killed and resumed


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_explainer):
    """A file of three shards that takes no time, and the bytes that an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("shards")
    table = write_table(folder / "in.jsonl", [{"text": "great"}, {"text": " " * SHARD_CHARS}] * 3)
    assert score(table, folder / "out.csv", tiny_explainer, ScoreOptions()) == (6, 3)
    return table, (folder / "out.csv").read_bytes()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, tiny_explainer):
    """A file of four shards that takes a while, likewise."""
    folder = tmp_path_factory.mktemp("rows")
    texts = [f"{'great ' * (row % 5)}story" if row % 8 == 0 else "" for row in range(4_000)]
    table = write_table(folder / "in.jsonl", [{"text": text} for text in texts])
    assert score(table, folder / "out.jsonl", tiny_explainer, ScoreOptions()) == (4_000, 3_500)
    return table, (folder / "out.jsonl").read_bytes()


# Runs the command again and again: each time in a process of its own (a fork after the imports, to
# save their time), killed before its n-th change to the disk, then once more to its end.
KILLER = """
import os, shutil, signal, sys
import l2e, onnxruntime, models.explainer, service.score.run

output, *arguments = sys.argv[1:]
CHANGES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir")

def run(kill_before):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    changes = 0

    def watch(event, details):
        nonlocal changes
        written = event == "open" and "w" in str(details[1])
        where = details[1] if event == "os.link" else details[0]
        if (written or event in CHANGES) and os.path.basename(output) in str(where):
            changes += 1
            if changes == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    os._exit(l2e.main(["score", *arguments]))

def state():
    with open(output, "rb") as file:
        return file.read(), os.path.exists(output + ".part")

moment, bytes_of = 0, set()
while True:
    moment += 1
    status = run(moment)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    left = os.path.exists(output)
    status = run(0)
    # Where the last traces of a finished run were being removed, the next is told that it is done.
    assert status == 0 or (status == 2 and left), (moment, status)
    if status == 0:
        assert not os.path.exists(output + ".part")
    bytes_of.add(state()[0])
    os.remove(output)
    shutil.rmtree(output + ".part", ignore_errors=True)
bytes_of.add(state()[0])
[content] = bytes_of
os.remove(output)

# And killed again and again in one and the same work.
for kills in range(100):
    status = run(8)
    if status != -signal.SIGKILL:
        break
assert state()[0] == content
print(moment, kills)
"""


def test_killed_before_any_change_to_the_disk(shards, tiny_bundle, tmp_path):
    (table, undisturbed), output = shards, tmp_path / "out.csv"
    flags = ["--bundle", tiny_bundle, "--device", "cpu", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, output, table, output, *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == undisturbed
    moments, kills = map(int, done.stdout.split())
    assert (moments > 15, kills > 1) == (True, True), done.stdout


@pytest.fixture
def started(tiny_bundle):
    """Starts the command and waits for a shard: `started(IN, OUT, shard) -> Popen`."""
    running = []
    flags = ("--bundle", tiny_bundle, "--threads", "1")

    def start(table, output, shard):
        process = subprocess.Popen(
            [sys.executable, "-m", "l2e", "score", table, output, *flags],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        running.append(process)
        end = time.monotonic() + 30
        while not (output.with_name(f"{output.name}.part") / f"{shard:06d}.shard").exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.001)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait(10)


def test_killed_twice_while_it_works(run, started, rows, tmp_path):
    (table, undisturbed), output = rows, tmp_path / "out.jsonl"
    for shard in (0, 2):
        process = started(table, output, shard)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert not output.exists()
    status, shown = run(table, output)
    assert status == 0
    assert shown.startswith("in.jsonl: 3000/4000 texts done already\n")
    assert output.read_bytes() == undisturbed
    assert not output.with_name("out.jsonl.part").exists()


def test_an_engine_that_leaves_out_shards_is_noticed(shards, tiny_explainer, tmp_path):
    def careless(explainer, work):
        yield from list(run_locally(explainer, work))[1:]

    with pytest.raises(RuntimeError, match=r"^1 shards of .* are missing: repeat"):
        score(shards[0], tmp_path / "out.csv", tiny_explainer, ScoreOptions(), careless)
    assert not (tmp_path / "out.csv").exists()
    score(shards[0], tmp_path / "out.csv", tiny_explainer, ScoreOptions())
    assert (tmp_path / "out.csv").read_bytes() == shards[1]


def test_an_engine_is_closed_where_its_results_are_no_longer_wanted(
    shards, tiny_explainer, tmp_path
):
    table = tmp_path / "in.jsonl"
    table.write_bytes(shards[0].read_bytes())
    engines = []  # which keeps them from being closed for want of references

    def spoiled(explainer, work):
        for done in run_locally(explainer, work):
            os.utime(table, ns=(1, 1))  # behind the run's back
            yield done

    def kept(explainer, work):
        engines.append(spoiled(explainer, work))
        return engines[0]

    with pytest.raises(WorkError, match="changed while it was read"):
        score(table, tmp_path / "out.csv", tiny_explainer, ScoreOptions(), kept)
    assert inspect.getgeneratorstate(engines[0]) == inspect.GEN_CLOSED


def test_a_second_process_on_the_same_output_is_refused(refused, started, rows, tmp_path):
    (table, undisturbed), output = rows, tmp_path / "out.jsonl"
    process = started(table, output, 0)
    process.send_signal(signal.SIGSTOP)
    refused(table, output, words=["another process writes", "out.jsonl: wait for it"])
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0
    assert output.read_bytes() == undisturbed


# Unfinished work

POISONED = 1_500  # the row at which the explainer breaks: one shard is done by then


@pytest.fixture
def unfinished(breaking_explainer, tmp_path):
    """An input, an output and the folder of a run that failed in its second shard."""
    texts = ["great" if row % 100 == 0 else "" for row in range(2_000)]
    texts[POISONED] = "poison"
    table = write_table(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    output = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError, match="cannot explain"):
        score(table, output, breaking_explainer, ScoreOptions())
    assert [path.name for path in (tmp_path / "out.jsonl.part").glob("*.shard")] == ["000000.shard"]
    return table, output


def test_what_failed_goes_on(run, unfinished):
    table, output = unfinished
    assert run(table, output) == (
        0,
        "in.jsonl: 1000/2000 texts done already\nin.jsonl: 2000/2000 texts in 0:00:00\n"
        f"{output}: 2,000 rows, 1,980 of them errors\n",
    )


def test_another_bundle_is_refused(refused, unfinished, tiny_fields, tmp_path):
    other = bundle.save(tmp_path / "other", **{**tiny_fields, "temperature": 3.0})
    shown = refused(*unfinished, bundle=other.path, words=["another bundle: repeat the command"])
    assert f"{unfinished[1]}.part" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target", "POS"), ["another --target:"]),
        (("--no-explain",), ["another --no-explain:"]),
        (("--max-words", "2"), ["another --max-words:"]),
    ],
)
def test_other_options_are_refused(refused, unfinished, flags, words):
    refused(*unfinished, *flags, words=words)


def test_an_input_that_would_be_read_otherwise_is_refused(refused, unfinished):
    table, output = unfinished
    other = table.rename(table.with_suffix(".tsv"))
    refused(other, output, "--text-column", "0", words=["another format of the input"])


def test_an_output_that_appears_meanwhile_is_not_touched(tmp_path):
    output = tmp_path / "out.jsonl"
    with open_work(output) as work:
        work.claim({})
        work.scratch.write_bytes(b"ours")
        output.write_bytes(b"theirs")
        with pytest.raises(WorkError, match="exists already"):
            work.publish(Counts(1, 0))
    assert output.read_bytes() == b"theirs"


def test_a_parquet_column_that_is_no_text_is_named(refused, tmp_path):
    table = pa.table({"id": [date(2026, 1, 2)], "text": ["great"]})
    parquet.write_table(table, tmp_path / "in.parquet")
    refused(
        tmp_path / "in.parquet",
        tmp_path / "out.jsonl",
        words=["column 'id' is of type date32[day]", "write it as a string"],
    )


def test_a_changed_input_is_refused(refused, run, unfinished):
    table, output = unfinished
    before = table.read_bytes()
    table.write_bytes(before.replace(b"great", b"grand", 1))
    refused(table, output, words=["another input", "remove the folder to begin anew"])
    table.write_bytes(before)  # newer by its time stamp, and what it was
    assert run(table, output)[0] == 0


def test_an_input_that_changes_meanwhile_is_noticed(unfinished):
    table, _ = unfinished
    found = survey(table, Columns())
    found.check()
    with table.open("ab") as file:
        file.write(b'{"text": "late"}\n')
    with pytest.raises(WorkError, match="changed while it was read"):
        found.check()


def test_a_damaged_shard_is_computed_anew(run, unfinished, tiny_explainer):
    table, output = unfinished
    shard = output.with_name("out.jsonl.part") / "000000.shard"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert run(table, output)[1].startswith("in.jsonl: 2000/2000 texts in ")
    score(table, output.with_name("again.jsonl"), tiny_explainer, ScoreOptions())
    assert output.read_bytes() == output.with_name("again.jsonl").read_bytes()


def test_a_damaged_manifest_is_named(refused, unfinished):
    folder = unfinished[1].with_name("out.jsonl.part")
    (folder / "manifest.json").write_text("{")
    refused(*unfinished, words=["manifest.json is damaged: remove"])


def test_an_output_of_somebody_else_is_not_touched(refused, unfinished):
    table, output = unfinished
    output.write_text("mine")
    refused(table, output, words=["out.jsonl exists already"])
    assert output.read_text() == "mine"


# Memory

MEMORY = """
import sys
from pathlib import Path
from models.explainer import Explainer
from service.score.run import score
from service.score.work import ScoreOptions
from tests.service.conftest import CannedExplainer

folder, bundle = map(Path, sys.argv[1:])
whole = Explainer.load(bundle, device="cpu", threads=1)
explainer = CannedExplainer(whole.bundle, whole.session)

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

found = []
for rows in (10_000, 200_000):
    line = '{"text": "A great story, but boring."}'
    (folder / "in.jsonl").write_text(f"{line}\\n" * rows)
    output = folder / f"{rows}.jsonl"
    assert score(folder / "in.jsonl", output, explainer, ScoreOptions()) == (rows, 0)
    found.append(peak())
print(found[1] - found[0])
"""
BOUND = 16  # MiB


def test_memory_does_not_grow_with_the_file(tiny_bundle, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, tiny_bundle],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "200000.jsonl").stat().st_size > 3 * BOUND * 2**20
    assert float(done.stdout) < BOUND
