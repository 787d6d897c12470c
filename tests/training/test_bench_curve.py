"""The tools of tests/bench/curve.py, on the tiny recipe."""

import xml.etree.ElementTree as ElementTree

import pytest

from tests.bench import curve
from training.config import RecipeError
from training.evaluation.efficiency import Plan
from training.evaluation.evaluate import Setting
from training.recipe import read_recipe

NAMES = ("all, 192", "last, 192")
SETTING = Setting({"lime": 40}, 6, 0, "fp32")
PLAN = Plan({}, tokens=(8, 16), batches=(1,), repeats=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("curve")


@pytest.fixture(scope="module")
def rows(recipe_path, home):
    return {name: point(recipe_path, home, name) for name in NAMES}


def point(recipe_path, home, name, *more, setting=SETTING):
    recipe = read_recipe(recipe_path, [*curve.overrides_of(name), *more])
    return curve.run_point(recipe, home, "dev", setting, PLAN)


def test_points_share_all_but_the_explainer(rows, home):
    runs = [home / "all,_192", home / "last,_192"]
    for stage in ("blackbox", "attributions"):
        assert {(run / stage).resolve() for run in runs} == {home / stage}
    assert rows["all, 192"]["parameters"] > rows["last, 192"]["parameters"]
    drops = [row["reference_log_odds_drop"] for row in rows.values()]
    assert drops[0] == drops[1]
    for row in rows.values():
        assert row["share"] == row["log_odds_drop"] / row["reference_log_odds_drop"]
        assert row["n"] == 6
        assert set(row["ratio"]) == set(row["reply_ms"]) == {"8", "16"}
        assert min(row["reply_ms"].values()) > 0


def test_a_finished_point_is_not_measured_again(rows, recipe_path, home):
    assert point(recipe_path, home, "last, 192") == rows["last, 192"]


def test_other_questions_get_other_numbers(rows, recipe_path, home):
    other = point(recipe_path, home, "last, 192", setting=Setting({"lime": 20}, 4, 0, "fp32"))
    assert other["n"] == 4
    assert other["reference_log_odds_drop"] != rows["last, 192"]["reference_log_odds_drop"]
    assert other["seconds"] == rows["last, 192"]["seconds"]  # nothing was distilled again


def test_what_points_share_is_not_taken_for_another_recipe(rows, recipe_path, home):
    with pytest.raises(RecipeError, match=r"made with another recipe .blackbox differ"):
        point(recipe_path, home, "3 6, 192", "blackbox.fit.epochs=9")


def test_the_table_and_the_picture_have_every_point(rows):
    found = [{"name": name, "shipped": name == NAMES[0], **row} for name, row in rows.items()]
    result = {"rows": found, "reference": {"lime": 40}}
    lines = curve.curve_to_markdown(result).splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert lines[2].startswith("| all, 192 (shipped) | ")
    assert lines[3].startswith("| last, 192 | ")
    drawn = curve.draw_curve(result)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for name in (*NAMES, "8 tokens", "16 tokens", "log-odds drop over that of lime, 40"):
        assert f"<!-- {name} -->" in drawn


def test_every_point_is_a_recipe(recipe_path):
    for name, values in curve.POINTS.items():
        explainer = read_recipe(recipe_path, curve.overrides_of(name)).explainer
        assert explainer.width == values["width"]
        assert list(explainer.layers) == values.get("layers", [])
