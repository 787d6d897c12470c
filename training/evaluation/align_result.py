"""What a study of alignment has found: the JSON file with its tests of significance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.config import AlignmentStudy, RecipeError
from training.evaluation.significance import Values, compare_systems, holm

TESTED = ("ap@10", "mr@10", "auprc")
# Kept for each document; F1 says what its precision and recall would.
LEFT_OUT = ("_precision", "_recall")
DECIMALS = 4  # of a document's values
# What a row has from its study, and what of a result is needed.
OF_THE_STUDY = ("name", "seed", "seeds", "recipe", "set", "against")
NEEDED = (
    "asked",
    "accuracy",
    "train_seconds",
    "feedback_seconds",
    "metrics",
    "setting",
    "documents",
)

Results = Mapping[tuple[str, int], Mapping[str, Any]]  # of `run_trial`, by row and seed


def collect(study: AlignmentStudy, results: Results) -> dict[str, Any]:
    """Returns the JSON of `l2e align`.

    Args:
        study: its rows and seeds.
        results: of its trials, as far as they are finished.

    Returns:
        `rows`: for each row and seed that is finished its `name`, `seed`, all `seeds` that the row
        is to have, the file of its `recipe`, what it `set`s in that, the rows it is tested
        `against`, and the result, with a digest of what was `asked`. Values of single documents
        are those of the teachers, rounded; the means are not of rounded ones.
        `comparisons`: see `compare_rows`; they are of the rounded ones, so that the file
        says all that they were computed from.
    """
    short = {
        (name, seed): {**found, "documents": _short(found["documents"], study.rows[name].teachers)}
        for (name, seed), found in results.items()
        if name in study.rows
    }
    rows = [
        {
            "name": name,
            "seed": seed,
            "seeds": list(study.seeds_of(name)),
            "recipe": row.recipe,
            "set": list(row.set),
            "against": list(row.against),
            **short[name, seed],
        }
        for name, row in study.rows.items()
        for seed in study.seeds_of(name)
        if (name, seed) in short
    ]
    return {"rows": rows, "comparisons": compare_rows(study, short)}


def read_results(path: Path) -> Results:
    """Reads the rows of a file that `l2e align` has written, this one's or another machine's.

    Raises:
        RecipeError: one line: the file cannot be read or is none of these.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if any(name not in row for row in rows for name in NEEDED):
            raise ValueError
        return {
            (row["name"], row["seed"]): {
                key: value for key, value in row.items() if key not in OF_THE_STUDY
            }
            for row in rows
        }
    except OSError as error:
        raise RecipeError(f"--from {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecipeError(
            f"--from {path}: not a file of `l2e align --json`, or of an older version"
        ) from None


def unfinished(study: AlignmentStudy, row: str, results: Results) -> list[int]:
    """Returns the seeds of a row that have no result."""
    return [seed for seed in study.seeds_of(row) if (row, seed) not in results]


def compare_rows(study: AlignmentStudy, results: Results) -> list[dict[str, Any]]:
    """Tests each row against those that it names.

    By document, over the documents that both have (a text cut by another tokenizer may have lost
    its rationale), after averaging over seeds; see `compare_systems`.

    The family of Holm's correction is every test that the study asks for: all pairs of rows
    times their teachers times `TESTED`. Readers look through the whole table and pick the best row
    and measure, and the chance of one false find among all of it is what is to stay below .05; a
    family for each row or teacher would not hold that. Tests whose rows are not finished are
    counted as if they had p = 1: a corrected p of a part of the study is never below the one that
    the whole study will give, so what is significant early stays so.

    Returns:
        For each row, teacher and measure `row`, `against`, `teacher`, `measure`, `difference` of
        the row less the other, its 95 % interval from `low` to `high`, `p`, `p_holm` and `n`
        documents. And for each row the difference of the mean `accuracy` with n texts; it is no
        part of the family and has None for `teacher`, the interval and both p.
    """
    found, p_values = [], {}
    pairs = [(name, other) for name, row in study.rows.items() for other in row.against]
    for pair in pairs:
        finished = not any(unfinished(study, each, results) for each in pair)
        if finished:
            found.append(_accuracy(study, results, *pair))
        for teacher in study.rows[pair[0]].teachers:
            for measure in TESTED:
                key = " ".join([*pair, teacher, measure])
                p_values[key] = 1.0
                if finished:
                    tested = _test(study, results, *pair, teacher, measure)
                    p_values[key] = tested["p"]
                    found.append(tested)
    corrected = holm(p_values)
    for tested in found:
        parts = [tested[part] for part in ("row", "against", "teacher", "measure")]
        tested["p_holm"] = corrected.get(" ".join(map(str, parts)))
    return found


def to_json(result: Mapping[str, Any]) -> str:
    """Returns the file: one line for each document and comparison, so that a diff can be read."""
    rows = []
    for row in result["rows"]:
        rest = {key: value for key, value in row.items() if key != "documents"}
        rows.append(f'{json.dumps(rest)[:-1]}, "documents": {_lines(row["documents"])}}}')
    body = ",\n".join(rows)
    return f'{{"rows": [\n{body}\n], "comparisons": {_lines(result["comparisons"])}}}\n'


def _accuracy(study: AlignmentStudy, results: Results, name: str, other: str) -> dict[str, Any]:
    means = [
        np.mean([results[each, seed]["accuracy"] for seed in study.seeds_of(each)])
        for each in (name, other)
    ]
    texts = results[name, study.seeds_of(name)[0]]["setting"]["classified"]
    return {
        **{"row": name, "against": other, "teacher": None, "measure": "accuracy"},
        **{"difference": float(means[0] - means[1]), "low": None, "high": None},
        **{"p": None, "p_holm": None, "n": texts},
    }


def _test(
    study: AlignmentStudy, results: Results, name: str, other: str, teacher: str, measure: str
) -> dict[str, Any]:
    first, second = (_values(study, results, each, teacher, measure) for each in (name, other))
    common = set.intersection(*({*values} for values in (*first.values(), *second.values())))
    tested = compare_systems(_only(first, common), _only(second, common))
    where = {"row": name, "against": other, "teacher": teacher, "measure": measure}
    numbers = asdict(tested)
    return {
        **where,
        **{key: numbers[key] for key in ("difference", "low", "high", "p")},
        "p_holm": None,
        "n": tested.n,
    }


def _values(
    study: AlignmentStudy, results: Results, name: str, teacher: str, measure: str
) -> Values:
    return {
        seed: {each["id"]: each[teacher][measure] for each in results[name, seed]["documents"]}
        for seed in study.seeds_of(name)
    }


def _only(values: Values, names: set[str]) -> Values:
    return {seed: {name: found[name] for name in sorted(names)} for seed, found in values.items()}


def _short(
    documents: Sequence[Mapping[str, Any]], teachers: Mapping[str, int]
) -> list[dict[str, Any]]:
    return [
        {
            "id": document["id"],
            **{
                teacher: {
                    measure: round(value, DECIMALS)
                    for measure, value in document[teacher].items()
                    if not measure.endswith(LEFT_OUT)
                }
                for teacher in teachers
            },
        }
        for document in documents
    ]


def _lines(items: Sequence[Mapping[str, Any]]) -> str:
    body = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    return f"[\n{body}\n]" if items else "[]"
