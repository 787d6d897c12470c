"""The tools of tests/bench/curve.py, on the tiny recipe."""

import xml.etree.ElementTree as ElementTree

import pytest

from models import SHIPPED, SHIPPED_INT8
from models.bundle import load
from tests.bench import curve
from training.config import RecipeError
from training.evaluation.efficiency import Plan
from training.evaluation.evaluate import Setting
from training.recipe import read_recipe

NAMES = ("all, 192", "last, 192, no block")
SETTINGS = {"fp32": Setting({"lime": 40}, 6, 0, "fp32")}
PLAN = Plan({}, tokens=(8, 16), batches=(1,), repeats=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("curve")


@pytest.fixture(scope="module")
def rows(recipe_path, home):
    return {name: point(recipe_path, home, name) for name in NAMES}


def point(recipe_path, home, name, *more, settings=SETTINGS, least=None):
    recipe = read_recipe(recipe_path, [*curve.overrides_of(name), *more])
    return curve.run_point(recipe, home, "dev", settings, PLAN, least)


def test_points_share_all_but_the_explainer(rows, home):
    runs = [home / "all,_192", home / "last,_192,_no_block"]
    for stage in ("blackbox", "attributions"):
        assert {(run / stage).resolve() for run in runs} == {home / stage}
    assert rows["all, 192"]["parameters"] > rows["last, 192, no block"]["parameters"]
    found = [row["precisions"]["fp32"] for row in rows.values()]
    assert found[0]["reference_log_odds_drop"] == found[1]["reference_log_odds_drop"]
    for row in found:
        assert row["share"] == row["log_odds_drop"] / row["reference_log_odds_drop"]
        assert row["n"] == 6
        assert set(row["ratio"]) == set(row["reply_ms"]) == {"8", "16"}
        assert min(row["reply_ms"].values()) > 0


def test_a_finished_point_is_not_measured_again(rows, recipe_path, home):
    assert point(recipe_path, home, "last, 192, no block") == rows["last, 192, no block"]


def test_other_questions_get_other_numbers(rows, recipe_path, home):
    settings = {"fp32": Setting({"lime": 20}, 4, 0, "fp32")}
    other, before = (
        point(recipe_path, home, "last, 192, no block", settings=settings),
        rows["last, 192, no block"],
    )
    drops = [row["precisions"]["fp32"]["reference_log_odds_drop"] for row in (other, before)]
    assert other["precisions"]["fp32"]["n"] == 4
    assert drops[0] != drops[1]
    assert other["seconds"] == before["seconds"]  # nothing was distilled again


def test_in_int8_the_graph_that_is_served_is_measured(rows, recipe_path, home):
    """And what answers too differently in int8 is a row that says so."""
    settings = {**SETTINGS, "int8": Setting({"lime": 40}, 6, 0, "graph")}
    asked = (recipe_path, home, "last, 192, no block")  # whose few steps of training leave ties
    found = point(*asked, settings=settings, least=(0.0, 0.0))["precisions"]
    assert found["fp32"] == rows["last, 192, no block"]["precisions"]["fp32"]
    assert set(found["int8"]) == set(found["fp32"])
    assert found["int8"]["log_odds_drop"] != found["fp32"]["log_odds_drop"]
    other = point(recipe_path, home, "all, 192", settings=settings, least=(1.1, 1.1))["precisions"]
    assert "in int8 this bundle answers too differently" in other["int8"]["refused"]


def test_what_points_share_is_not_taken_for_another_recipe(rows, recipe_path, home):
    with pytest.raises(RecipeError, match=r"made with another recipe .blackbox differ"):
        point(recipe_path, home, "0 6, 192, no block", "blackbox.fit.epochs=9")


def test_the_table_and_the_picture_have_every_point(rows):
    found = [{"name": name, "shipped": name == NAMES[0], **row} for name, row in rows.items()]
    for row in found:
        row["precisions"] = {**row["precisions"], "int8": {"refused": "too coarse"}}
    found[0]["precisions"]["int8"] = found[0]["precisions"]["fp32"]
    result = {"rows": found, "reference": {"lime": 40}}
    lines = curve.curve_to_markdown(result).splitlines()
    assert len(lines) == 2 + 2 * len(NAMES)
    assert lines[2].startswith("| all, 192 (shipped) | ")
    assert lines[4].startswith("| last, 192, no block | ")
    assert lines[5].endswith(" | int8 | too coarse | - | - | - |")
    drawn = curve.draw_curve(result)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for name in (
        *NAMES,
        "fp32, 8 tokens",
        "int8, 16 tokens",
        "log-odds drop over that of lime, 40",
    ):
        assert f"<!-- {name} -->" in drawn


def test_every_point_is_a_recipe(recipe_path):
    for name, values in curve.POINTS.items():
        explainer = read_recipe(recipe_path, curve.overrides_of(name)).explainer
        assert explainer.width == values["width"]
        assert list(explainer.layers) == values.get("layers", [])


def test_the_point_that_is_marked_is_the_one_that_ships():
    chosen = read_recipe(curve.RECIPE, curve.overrides_of(curve.CHOSEN)).explainer
    assert chosen == read_recipe(curve.RECIPE).explainer
    for path in (SHIPPED, SHIPPED_INT8):
        shipped = load(path).config["explainer"]
        for key, value in curve.POINTS[curve.CHOSEN].items():
            assert shipped[key] == value, (path, key)
