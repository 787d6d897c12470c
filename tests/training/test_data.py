"""Readers of data: what they return, and one line with place and cure for what they refuse."""

import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import DataSource
from training.data import DataError, Example, load, sample
from training.data.eraser import read_eraser
from training.data.load import cut_part, package_path
from training.data.tables import read_table


@pytest.fixture
def write(tmp_path):
    """Writes a file; strings as UTF-8, nothing translated."""

    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def rows(path, text_column="text", label_column="label", **where):
    """The texts and labels of a table."""
    examples = read_table(path, text_column, label_column, where)
    return [(example.text, example.label) for example in examples]


def refusal(function, *arguments):
    with pytest.raises(DataError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Tables

EXPECTED = [("A warm, clever film", "1"), ("never dull — ça va 👍", "0")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\nA warm, clever film\t1\nnever dull — ça va 👍\t0\n"),
        ("a.tsv", "label\tid\ttext\n1\tx\tA warm, clever film\n0\ty\tnever dull — ça va 👍"),
        ("a.TSV", "text\tlabel\r\nA warm, clever film\t1\r\nnever dull — ça va 👍\t0\r\n"),
        ("a.csv", 'text,label\n"A warm, clever film",1\nnever dull — ça va 👍,0\n'),
        ("a.csv", 'label,text\r\n1,"A warm, clever film"\r\n0,"never dull — ça va 👍"\r\n'),
        (
            "a.jsonl",
            '{"text": "A warm, clever film", "label": 1}\n'
            '{"label": "0", "text": "never dull \\u2014 ça va \\ud83d\\udc4d", "more": [1]}',
        ),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_with_names(write, name, content, mark):
    assert rows(write(name, mark + content)) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "A warm, clever film\t1\nnever dull — ça va 👍\t0\n"),
        ("a.csv", '"A warm, clever film",1\r\nnever dull — ça va 👍,0\r\n'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_without_header(write, name, content, mark):
    assert rows(write(name, mark + content), "0", "1") == EXPECTED


def test_several_columns_are_joined_by_a_blank(write):
    path = write("news.csv", '3,"Oil, again","Prices rose."\n1,Peace,Talks began.\n')
    assert rows(path, "1,2", "0") == [("Oil, again Prices rose.", "3"), ("Peace Talks began.", "1")]
    path = write("news.jsonl", '{"head": "Peace", "body": "Talks began.", "label": "World"}\n')
    assert rows(path, "head,body") == [("Peace Talks began.", "World")]


def test_csv_quotes_hold_commas_quotes_and_lines(write):
    path = write("a.csv", 'text,label\r\n"He said ""dull"",\r\ntwice\nover.",1\r\nfine,0\r\n')
    assert rows(path) == [('He said "dull",\r\ntwice\nover.', "1"), ("fine", "0")]


def test_tsv_quotes_are_only_characters(write):
    path = write("a.tsv", 'text\tlabel\n"dull\t1\na "great" film"\t0\n')
    assert rows(path) == [('"dull', "1"), ('a "great" film"', "0")]


def test_a_line_ends_at_a_line_feed_and_nowhere_else(write):
    text = "one\rtwo\x0bthree\x0cfour\x1cfive\x85six\u2028seven\u2029eight"
    assert rows(write("a.tsv", f"{text}\t1\n"), "0", "1") == [(text, "1")]
    line = json.dumps({"text": text, "label": 1}, ensure_ascii=False)
    assert rows(write("a.jsonl", f"{line}\n")) == [(text, "1")]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\x00"))
TABLES = st.lists(st.tuples(CELLS.map("a{}".format), st.sampled_from("01")), min_size=1)


@given(TABLES)
def test_what_was_written_is_read(tmp_path_factory, table):
    import csv

    folder = tmp_path_factory.mktemp("tables")
    (folder / "a.tsv").write_bytes("".join(f"{text}\t{label}\n" for text, label in table).encode())
    assert rows(folder / "a.tsv", "0", "1") == table
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *table])
    assert rows(folder / "a.csv") == table
    lines = [json.dumps({"text": text, "label": label}) for text, label in table]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert rows(folder / "a.jsonl") == table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "\ntext\tlabel\n\nfine\t1\n \t \n\t\n\r\ndull\t0\n\n"),
        ("a.csv", '\ntext,label\n\nfine,1\n , \n,\n"",""\r\ndull,0\n\n'),
        ("a.jsonl", '\n{"text": "fine", "label": 1}\n  \n\r\n{"text": "dull", "label": 0}\n\n'),
    ],
)
def test_blank_rows_are_skipped_and_not_counted(write, name, content):
    examples = read_table(write(name, content), "text", "label", {})
    assert examples == [Example("0", "fine", "1"), Example("1", "dull", "0")]


def test_a_column_of_ids_is_used(write):
    path = write("a.csv", "id,text,label\nq-7,fine,1\nq-9,dull,0\n")
    assert [example.id for example in read_table(path, "text", "label", {})] == ["q-7", "q-9"]


def test_rows_are_chosen_by_value_and_keep_their_numbers(write):
    path = write("a.csv", "text,label,source\nfine,1,imdb\ndull,0,rt\nwarm,1,imdb\n")
    chosen = read_table(path, "text", "label", {"source": "imdb"})
    assert [(example.id, example.text) for example in chosen] == [("0", "fine"), ("2", "warm")]
    assert "no rows with {'source': 'tv'}" in refusal(
        read_table, path, "text", "label", {"source": "tv"}
    )


def test_a_row_that_is_not_chosen_may_be_broken(write):
    path = write("a.tsv", "text\tlabel\tsource\n\t\trt\nfine\t1\timdb\n")
    assert rows(path, source="imdb") == [("fine", "1")]


def test_json_values_other_than_strings(write):
    lines = '{"text": 7, "label": true}\n{"text": "b", "label": 2.5}\n{"text": "c", "label": false}'
    assert rows(write("a.jsonl", lines)) == [("7", "true"), ("b", "2.5"), ("c", "false")]


@pytest.mark.parametrize(
    ("name", "content", "columns", "words"),
    [
        # A column that the file does not have
        ("a.tsv", "text\tstars\nfine\t1\n", (), ["a.tsv:2", "'label'", "text, stars", "--label-c"]),
        ("a.csv", "body,label\nfine,1\n", (), ["a.csv:2", "'text'", "body, label", "--text-c"]),
        ("a.jsonl", '\n{"text": "fine"}', (), ["a.jsonl:2", "'label'", "found: text"]),
        ("a.tsv", "fine\t1\n", ("0", "2"), ["a.tsv:1", "no column '2'", "found: 0, 1"]),
        ("a.tsv", "fine\t1\n", ("0", "label"), ["no rows"]),
        ("a.tsv", "fine\t1\ndull\t0\n", ("text", "label"), ["a.tsv:2", "'text'", "fine, 1"]),
        # A row that lacks what the others have
        ("a.tsv", "text\tlabel\nfine\t1\nso so\n", (), ["a.tsv:3", "'label'", "fill or remove"]),
        ("a.tsv", "fine\t1\nso so\n", ("0", "1"), ["a.tsv:2", "'1'", "fill or remove"]),
        ("a.csv", 'text,label\n"a\nb",1\nc\n', (), ["a.csv:4", "'label'", "fill or remove"]),
        ("a.jsonl", '{"text": null, "label": 1}', (), ["a.jsonl:1", "'text'", "fill or remove"]),
        ("a.jsonl", '{"text": ["a"], "label": 1}', (), ["a.jsonl:1", "'text'", "fill or"]),
        # Nothing in it
        ("a.tsv", "text\tlabel\n  \t1\n", (), ["a.tsv:2", "empty text or label"]),
        ("a.tsv", "text\tlabel\nfine\t \n", (), ["a.tsv:2", "empty text or label"]),
        ("a.csv", 'text,label\n"",1\n', (), ["a.csv:2", "empty text or label"]),
        ("a.jsonl", '{"text": "\\u3000", "label": 1}', (), ["a.jsonl:1", "empty text"]),
        ("a.tsv", "", (), ["a.tsv has no rows"]),
        ("a.csv", "text,label\n", (), ["a.csv has no rows"]),
        ("a.jsonl", "\n\n", (), ["a.jsonl has no rows"]),
        # Something else
        ("a.tsv", "text\tlabel\nfine\ttab\t1\n", (), ["a.tsv:2", "3 fields", "header of 2"]),
        ("a.csv", "text,label\nwell, well,1\n", (), ["a.csv:2", "3 fields", "header of 2"]),
        ("a.csv", 'text,label\nfine,1\n"dull"er,0\n', (), ["a.csv:3", "RFC 4180", "quote"]),
        ("a.csv", 'text,label\nfine,1\n"dull,0\n', (), ["a.csv:3", "RFC 4180"]),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ', (), ["a.jsonl:2", "not JSON"]),
        ("a.jsonl", '["a", 1]', (), ["a.jsonl:1", "one object a line"]),
        ("a.txt", "fine\t1\n", (), ["a.txt", "neither .csv, .tsv nor .jsonl"]),
        ("a.jsonl.gz", "", (), ["a.jsonl.gz", "rename or convert"]),
        ("a", "", (), ["neither .csv, .tsv nor .jsonl"]),
        ("a.tsv", "text\tlabel\ncafé\t1\n".encode("latin-1"), (), ["a.tsv", "not UTF-8"]),
        ("a.csv", "text,label\ncafé,1\n".encode("utf-16"), (), ["a.csv", "not UTF-8"]),
        ("a.jsonl", b'{"text": "caf\xe9", "label": 1}', (), ["a.jsonl", "not UTF-8", "convert"]),
    ],
)
def test_a_bad_table_is_refused_in_one_line(write, name, content, columns, words):
    message = refusal(rows, write(name, content), *columns)
    for word in words:
        assert word in message
    assert "so so" not in message


def test_a_megabyte_in_a_cell(write):
    text = "x" * 1_000_000
    assert rows(write("a.csv", f'text,label\n"{text}",1\n')) == [(text, "1")]


# ERASER

DOCUMENT = "A great  story ,\nnever dull .\n\nI loved\tit !"
TOKENS = ["A", "great", "story", ",", "never", "dull", ".", "I", "loved", "it", "!"]


def evidence(start, end, docid="d1"):
    return {"docid": docid, "start_token": start, "end_token": end, "text": "unused"}


def annotation(groups, **changes):
    record = {"annotation_id": "a1", "classification": "POS", "evidences": groups, "query": "?"}
    return json.dumps(record | changes, ensure_ascii=False) + "\n"


@pytest.fixture
def eraser(write, tmp_path):
    """Writes a directory with val.jsonl of these lines."""

    def write_directory(*lines):
        write("docs/d1", DOCUMENT)
        write("val.jsonl", "".join(lines))
        return tmp_path

    return write_directory


def test_evidence_becomes_spans_of_characters(eraser):
    directory = eraser(annotation([[evidence(4, 6)], [evidence(1, 3), evidence(0, 11)]]))
    [example] = read_eraser(directory, "val")
    assert (example.id, example.text, example.label) == ("a1", DOCUMENT, "POS")
    spans = [*(example.rationale or ())]
    cut = [DOCUMENT[start:end] for start, end in spans]
    assert cut == [DOCUMENT, "great  story", "never dull"]
    assert spans == sorted(spans)


@given(st.data())
def test_evidence_covers_its_tokens_exactly(tmp_path_factory, data):
    start = data.draw(st.integers(0, len(TOKENS) - 1))
    end = data.draw(st.integers(start + 1, len(TOKENS)))
    directory = tmp_path_factory.mktemp("eraser")
    (directory / "docs").mkdir()
    (directory / "docs" / "d1").write_text(DOCUMENT, encoding="utf-8")
    (directory / "val.jsonl").write_text(annotation([[evidence(start, end)]]), encoding="utf-8")
    [example] = read_eraser(directory, "val")
    [(first, last)] = example.rationale or ()
    assert DOCUMENT[first:last].split() == TOKENS[start:end]
    assert DOCUMENT[first:last] == DOCUMENT[first:last].strip()


def test_without_evidence_the_document_is_named_by_docids_or_the_annotation(eraser, write):
    write("docs/other", "another text")
    directory = eraser(
        annotation([], annotation_id="d1"),
        annotation([], annotation_id="a2", docids=["other"]),
        annotation([], annotation_id="d1", docids=None),
    )
    texts = [(example.text, example.rationale) for example in read_eraser(directory, "val")]
    assert texts == [(DOCUMENT, ()), ("another text", ()), (DOCUMENT, ())]


def test_line_separators_inside_a_json_line_do_not_end_it(eraser):
    line = annotation([[evidence(0, 1)]], query="one\u2028two\x85three\x1cfour")
    directory = eraser(f"\n{line}\r\n")
    assert len(read_eraser(directory, "val")) == 1


def test_labels_and_text_of_a_directory_through_load(eraser):
    directory = eraser(annotation([[evidence(0, 1)]]), annotation([], annotation_id="d1"))
    source = DataSource(str(directory), split="val", label_map={"POS": "good"})
    assert [example.label for example in load(source, ["good", "bad"])] == ["good", "good"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (annotation([[evidence(5, 12)]]), ["val.jsonl:1", "evidence 5:12", "11 tokens"]),
        (annotation([[evidence(3, 3)]]), ["val.jsonl:1", "evidence 3:3"]),
        (annotation([[evidence(-1, 2)]]), ["evidence -1:2"]),
        (annotation([[evidence(0, 1, "gone")]]), ["val.jsonl:1", "gone", "restore the docs"]),
        (annotation([], annotation_id="gone"), ["val.jsonl:1", "gone", "does not exist"]),
        (annotation([[evidence(0, 1), evidence(0, 1, "d2")]]), ["2 documents", "only one"]),
        (annotation([[{"docid": "d1"}]]), ["val.jsonl:1", "not an ERASER line", "start_token"]),
        (annotation([[evidence("first", 2)]]), ["not an ERASER line"]),
        (annotation([["great"]]), ["not an ERASER line"]),
        (annotation(None), ["not an ERASER line"]),
        ('{"annotation_id": "a1", "evidences": []}\n', ["not an ERASER line", "classification"]),
        ("[1]\n", ["val.jsonl:1", "not an ERASER line"]),
        ("\n{\n", ["val.jsonl:2", "not JSON", "repair or remove"]),
        ("\n\n", ["val.jsonl has no rows"]),
    ],
)
def test_a_bad_line_of_a_directory(eraser, line, words):
    message = refusal(read_eraser, eraser(line), "val")
    for word in words:
        assert word in message


def test_a_missing_split_lists_those_that_there_are(eraser, write):
    write("train.jsonl", "")
    message = refusal(read_eraser, eraser(), "test")
    assert "no test.jsonl; splits found: train, val" in message
    assert "--split" in message


def test_a_folder_that_is_no_data(tmp_path):
    assert "splits found: none" in refusal(load, DataSource(str(tmp_path)))


def test_a_document_in_another_encoding(eraser, write):
    directory = eraser(annotation([[evidence(0, 1, "d2")]]))
    write("docs/d2", "café".encode("latin-1"))
    assert "d2 is not UTF-8" in refusal(read_eraser, directory, "val")


def test_rows_of_a_directory_cannot_be_chosen_by_column(eraser):
    source = DataSource(str(eraser(annotation([]))), split="val", where={"source": "imdb"})
    assert "leave `where` out" in refusal(load, source)


# Loading


def test_labels_are_translated_and_texts_cleaned(write, tmp_path):
    write("a.tsv", "fine<br />film\t1\ndull\t0\n")
    source = DataSource(
        "a.tsv",
        text_column="0",
        label_column="1",
        label_map={"0": "NEG", "1": "POS"},
        replace={"<br />": " "},
    )
    assert load(source, ["NEG", "POS"], str(tmp_path)) == [
        Example("0", "fine film", "POS"),
        Example("1", "dull", "NEG"),
    ]


def test_labels_that_nobody_expects(write):
    path = write("a.csv", "text,label\nfine,POS\nso so,MEH\nodd,?\nsame,MEH\n")
    message = refusal(load, DataSource(str(path)), ["NEG", "POS"])
    for word in ("a.csv", "? (first: id 2)", "MEH (first: id 1)", "expected NEG, POS"):
        assert word in message
    assert "--label-map OLD=NEW" in message
    assert len(load(DataSource(str(path)))) == 4  # without expectations all are welcome


def test_a_text_in_the_place_of_the_label_is_not_repeated_in_full(write):
    path = write("a.csv", f"1,fine\n0,{'dull ' * 500}\n")
    message = refusal(load, DataSource(str(path), text_column="0", label_column="1"), ["0", "1"])
    assert len(message) < 400


def test_a_text_that_cannot_be_encoded(write):
    path = write("a.jsonl", '{"text": "ok", "label": 1}\n{"text": "\\ud800 canary", "label": 1}\n')
    message = refusal(load, DataSource(str(path)))
    for word in ("a.jsonl", "id 1", "lone surrogate at character 0"):
        assert word in message
    assert "canary" not in message


def test_a_text_that_cleaning_empties(write):
    path = write("a.csv", "text,label\n<br />,1\n")
    message = refusal(load, DataSource(str(path), replace={"<br />": " "}))
    assert "id 0" in message
    assert "empty or blank" in message


def test_no_file_says_how_to_get_it(tmp_path):
    message = refusal(load, DataSource("a.tsv", obtain="ask a friend"), None, str(tmp_path))
    assert message == f"no data at {tmp_path / 'a.tsv'}; ask a friend"


def test_an_absolute_path_and_the_home_folder(write, tmp_path, monkeypatch):
    path = write("a.csv", "text,label\nfine,1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    for source in (str(path), "~/a.csv"):
        assert len(load(DataSource(source), root="/nowhere")) == 1
    assert len(load(DataSource("a.csv"), root="~")) == 1


def test_ids_that_are_not_unique_give_way_to_row_numbers(write):
    path = write("a.csv", "id,text,label\nfilm,fine,1\nfilm,dull,0\nbook,warm,1\n")
    assert [example.id for example in load(DataSource(str(path)))] == ["0", "1", "2"]


# Samples


def population(**counts):
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [Example(str(row), f"text {row}", label) for row, label in enumerate(labels)]


def test_a_sample_has_each_labels_share_and_the_order_of_the_input():
    examples = population(NEG=60, POS=30, MEH=10)
    drawn = sample(examples, 20, seed=0)
    assert Counter(example.label for example in drawn) == {"NEG": 12, "POS": 6, "MEH": 2}
    rows = [int(example.id) for example in drawn]
    assert rows == sorted(set(rows))


def test_a_sample_depends_on_its_seed_only():
    examples = population(NEG=50, POS=50)
    assert sample(examples, 10, seed=3) == sample(examples, 10, seed=3)
    assert sample(examples, 10, seed=3) != sample(examples, 10, seed=4)


def test_a_sample_is_spread_over_a_file_sorted_by_label():
    drawn = sample(population(NEG=500, POS=500), 10, seed=0)
    assert Counter(example.label for example in drawn) == {"NEG": 5, "POS": 5}


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 40), min_size=1),
    st.integers(1, 210),
    st.integers(0, 5),
)
def test_a_sample_has_the_size_asked_for_and_no_label_is_off_by_one(counts, limit, seed):
    examples = population(**counts)
    drawn = sample(examples, limit, seed)
    assert len(drawn) == min(limit, len(examples))
    assert len({example.id for example in drawn}) == len(drawn)
    found = Counter(example.label for example in drawn)
    for label, count in counts.items():
        assert abs(found[label] - count * len(drawn) / len(examples)) < 1


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**32))
def test_parts_that_follow_each_other_share_and_miss_nothing(count, share, seed):
    examples = [Example(str(row), "text", "AB"[row % 2]) for row in range(count)]
    first, last = (cut_part(examples, part, seed) for part in ((0, share), (share, 1)))
    assert {*first} | {*last} == {*examples}
    assert len(first) + len(last) == count
    assert len(first) == round(share * count)
    assert [*first] == [example for example in examples if example in first]


def test_a_part_is_of_the_shuffled_rows():
    """A file sorted by label has both labels in each part."""
    examples = [Example(str(row), "text", "AB"[row >= 100]) for row in range(200)]
    part = cut_part(examples, (0.8, 1.0), 0)
    assert 10 <= sum(example.label == "A" for example in part) <= 30
    assert part != cut_part(examples, (0.8, 1.0), 1)


def test_the_part_of_a_source_comes_before_its_sample(write):
    path = write("data.tsv", "".join(f"text {row}\tA\n" for row in range(10)))
    source = DataSource(str(path), text_column="0", label_column="1", part=(0.5, 1.0), limit=3)
    half = DataSource(str(path), text_column="0", label_column="1", part=(0.5, 1.0))
    assert len(load(half)) == 5
    assert len(load(source)) == 3
    assert {*load(source)} < {*load(half)}


def test_an_empty_part_is_refused(write):
    path = write("data.tsv", "".join(f"text {row}\tA\n" for row in range(5)))
    source = DataSource(str(path), text_column="0", label_column="1", part=(0.72, 0.8))
    assert refusal(load, source).endswith("part [0.72, 0.8] of 5 rows is empty: give a larger one")


def test_a_replacement_that_would_move_a_rationale_is_refused(write, tmp_path):
    write("docs/a.txt", "so<br />great a film")
    piece = {"docid": "a.txt", "start_token": 1, "end_token": 2}
    record = {"annotation_id": "a", "evidences": [[piece]], "classification": "POS"}
    write("train.jsonl", json.dumps(record) + "\n")
    source = DataSource(str(tmp_path), replace={"<br />": " "})
    message = refusal(load, source)
    assert "id a" in message
    assert "rationale" in message
    [kept] = load(DataSource(str(tmp_path), replace={"<br />": "      ", "missing": ""}))
    assert kept.text == "so      great a film"


def test_the_limit_of_a_source_is_a_seeded_sample(write):
    lines = "".join(f"text {row},{row % 2}\n" for row in range(40))
    path = str(write("a.csv", f"text,label\n{lines}"))
    drawn = load(DataSource(path, limit=10, seed=5))
    assert drawn == sample(load(DataSource(path)), 10, 5)
    assert Counter(example.label for example in drawn) == {"0": 5, "1": 5}


def test_a_sample_of_nothing_is_refused():
    assert "at least 1" in refusal(sample, population(NEG=3), 0, 0)


# Packages and the hub


def test_a_file_of_an_installed_package(write, tmp_path, monkeypatch):
    write("tiny_reviews/__init__.py", "")
    write("tiny_reviews/data/all.csv", "text,label\nfine,1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_path("tiny_reviews/data/all.csv") == tmp_path / "tiny_reviews/data/all.csv"
    assert load(DataSource("package:tiny_reviews/data/all.csv")) == [Example("0", "fine", "1")]
    source = DataSource("package:tiny_reviews/none.csv", obtain="reinstall it")
    assert "none.csv; reinstall it" in refusal(load, source)


@pytest.mark.parametrize(
    "name", ["no_such_package/a.csv", "no.such.package/a.csv", "textwrap/a", "/a"]
)
def test_a_package_that_is_not_installed(name):
    message = refusal(load, DataSource(f"package:{name}"))
    assert "is not installed" in message
    if name.startswith("no_such"):
        assert "pip install no-such-package" in message


def test_the_hub_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    assert "pip install 'l2e[hub]'" in refusal(load, DataSource("hub:someone/reviews"))


class Table(list):
    """Rows with what a table of the `datasets` library says about them."""

    def __init__(self, rows, names=None):
        super().__init__(rows)
        self.column_names = ["text", "title", "label"]
        self.features = {"label": SimpleNamespace(names=names) if names else SimpleNamespace()}


@pytest.fixture
def hub(monkeypatch):
    """Stands for the `datasets` library, which needs the network."""
    good = {"text": "fine", "title": "A", "label": 1}
    bad = {"text": "dull", "title": "B", "label": 0}
    tables = {
        ("reviews", "train"): Table([good, bad], names=["NEG", "POS"]),
        ("reviews", "test"): Table([{**good, "label": -1}], names=["NEG", "POS"]),
        ("stars", "train"): Table([{**good, "label": "5"}]),
    }

    def load_dataset(name, split):
        if (name, split) not in tables:
            raise ConnectionError(f"{name} is\nout of reach")
        return tables[name, split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset():
    assert load(DataSource("hub:reviews"), ["NEG", "POS"]) == [
        Example("0", "fine", "POS"),
        Example("1", "dull", "NEG"),
    ]
    assert load(DataSource("hub:stars", text_column="title,text")) == [Example("0", "A fine", "5")]
    assert len(load(DataSource("hub:reviews", where={"title": "B"}))) == 1


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (DataSource("hub:nothing"), ["hub:nothing split train", "nothing is out of reach"]),
        (DataSource("hub:reviews", label_column="stars"), ["no column 'stars'", "text, title"]),
        (DataSource("hub:reviews", where={"year": "1"}), ["no column 'year'"]),
        (DataSource("hub:reviews", split="test"), ["row 0 has no label", "another split"]),
    ],
)
def test_a_hub_dataset_that_cannot_be_used(source, words):
    message = refusal(load, source)
    for word in words:
        assert word in message
