import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet as pq

from models import bundle as bundles
from models.explainer import Explainer
from training.commands import run_recipe
from training.config import RecipeError
from training.export.graph import to_torch
from training.guard import DATA
from training.stages import chunk_texts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(recipe_path, tmp_path_factory):
    """A run of the tiny recipe that nothing disturbed."""
    runs = tmp_path_factory.mktemp("runs")
    assert run_recipe(recipe_path, [], runs, "run") == 0
    return runs / "tiny"


def test_a_run_ends_with_a_bundle_that_answers(finished):
    explainer = Explainer.load(finished / "bundle")
    [answer] = explainer.explain(["The plot was awful and very dull."])
    assert answer.label == "NEG"
    assert all(answer.text[span.start : span.end] == span.text for span in answer.rationale)
    assert {span.text for span in answer.rationale if span.effect == "supports"} & {"awful", "dull"}


def test_an_explainer_is_distilled_for_a_classifier_that_stays_as_it_is(
    finished, recipe_path, tiny_data, tmp_path
):
    """`trained` with 0 epochs: the classifier of the bundle, all of its weights, and a student."""
    overrides = [
        "name=own",
        "blackbox.architecture=trained",
        f"blackbox.checkpoint={json.dumps(str(finished / 'bundle'))}",
        "blackbox.fit.epochs=0",
        "explainer.reads=last",
        "evaluation={}",
        f"data.train={write_source(tiny_data / 'train.tsv')}",
        f"data.validation={write_source(tiny_data / 'dev.tsv')}",
    ]
    assert run_recipe(recipe_path, overrides, tmp_path, "run") == 0
    old, new = (Explainer.load(path / "bundle") for path in (finished, tmp_path / "own"))
    documents = [old.encode(text) for text in ("the film was great .", "a dull ending")]
    np.testing.assert_array_equal(old.logits(documents), new.logits(documents))
    assert new.bundle.config["explainer"]["reads"] == "last"
    assert json.loads((tmp_path / "own" / "blackbox" / "metrics.json").read_text())["history"] == []
    # Nothing of this machine is published.
    assert new.bundle.manifest.recipe["blackbox"]["checkpoint"] == "bundle"
    published = (tmp_path / "own" / "bundle" / "manifest.json").read_text("utf-8")
    assert str(finished) not in published
    assert str(tiny_data) not in published
    assert [each["path"] for each in new.bundle.manifest.recipe["data"]["train"]] == ["train.tsv"]


def write_source(path, column="0"):
    """A source in TOML, as one writes it behind `--set`."""
    labels = 'label_column = "1", label_map = { 0 = "NEG", 1 = "POS" }'
    return f"[{{ path = {json.dumps(str(path))}, text_column = {json.dumps(column)}, {labels} }}]"


def test_what_the_teacher_explains_fits_into_a_window(recipe, lively_black_box, tmp_path):
    """However long a recipe wants the chunks; a word that fits into none is left out."""
    window = lively_black_box.encoder.max_tokens
    long = "the ending was dull and i hated it , " * 9
    texts = [long, "a great film", "x" * 90, long]
    rows = "".join(f"{text}\t{row % 2}\n" for row, text in enumerate(texts))
    (tmp_path / "texts.tsv").write_text(rows)
    asked = dataclasses.replace(recipe.attribution, chunk_tokens=(20 * window, 24))
    [source] = recipe.data.train
    data = dataclasses.replace(
        recipe.data, train=(dataclasses.replace(source, path=str(tmp_path / "texts.tsv")),)
    )
    recipe = dataclasses.replace(recipe, attribution=asked, data=data)
    chunks = chunk_texts(recipe, lively_black_box, "train")
    lengths: dict[str, list[int]] = {}
    for name, chunk in chunks.items():
        [only] = lively_black_box.encoder.encode(chunk).windows
        lengths.setdefault(name.rpartition(":")[0], []).append(len(only.input_ids))
    assert sum(len(chunk.split()) for chunk in chunks.values()) == 2 * len(long.split()) + 3
    first, _, last = lengths.values()
    assert 24 < max(first) <= window
    assert max(last) <= 24


def test_the_card_holds_the_evaluation_and_times_are_apart(finished):
    manifest = bundles.load(finished / "bundle").manifest
    card = manifest.card["evaluation"]["dev"]
    assert set(card["teachers"]) == {"lime", "occlusion"}
    assert card["n"] == 24
    assert card["n_explained"] == 8
    assert "ms_per_text" not in card["explainer"]
    assert manifest.times["evaluation"]["dev"]["explainer"]["ms_per_text"] > 0
    assert manifest.card["validation"]["accuracy"] > 0.8


def test_both_torch_modules_are_rebuilt_from_the_bundle(finished):
    explainer = Explainer.load(finished / "bundle")
    black_box, network = to_torch(explainer.bundle)
    texts = ["the film was great .", "the ending was terrible and boring " * 9]
    documents = [explainer.encode(text) for text in texts]
    np.testing.assert_allclose(
        black_box.logits(documents), explainer.logits(documents), atol=1e-4, rtol=0
    )
    stored = json.loads((finished / "explainer" / "config.json").read_text())
    assert network.config.to_dict() == stored


def test_a_finished_stage_is_not_done_again(finished, recipe_path):
    before = (finished / "blackbox" / "model.safetensors").stat().st_mtime_ns
    run_recipe(recipe_path, [], finished.parent, "train")
    assert (finished / "blackbox" / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused(finished, recipe_path):
    with pytest.raises(RecipeError, match="another recipe"):
        run_recipe(recipe_path, ["seed=4"], finished.parent, "run")


def test_a_run_goes_on_with_the_texts_it_began_with_or_not_at_all(finished, recipe_path, tmp_path):
    run = shutil.copytree(finished, tmp_path / "tiny")
    known = json.loads((run / DATA).read_text())
    (run / DATA).write_text(json.dumps(dict.fromkeys(known, "other")))
    # Nothing is learnt any more.
    assert run_recipe(recipe_path, [], tmp_path, "run") == 0
    # The temperature and the numbers of a bundle's card come from validation texts.
    (run / "bundle" / "manifest.json").unlink()
    (run / "explainer" / "metrics.json").unlink()
    for verb in ("run", "distill", "export"):
        with pytest.raises(RecipeError, match="began with other texts"):
            run_recipe(recipe_path, [], tmp_path, verb)
    for verb in ("train", "attribute"):  # which have nothing left to do
        assert run_recipe(recipe_path, [], tmp_path, verb) == 0
    (run / DATA).unlink()  # as of an earlier version
    assert run_recipe(recipe_path, [], tmp_path, "distill") == 0
    assert json.loads((run / DATA).read_text()) == known


def test_copies_without_human_rationales_are_refused(recipe_path, tmp_path):
    """Before anything is trained."""
    with pytest.raises(RecipeError, match="copies need human rationales"):
        run_recipe(recipe_path, ["blackbox.copies.graded=0.5"], tmp_path, "train")
    assert not (tmp_path / "tiny" / "blackbox" / "metrics.json").exists()


def test_a_run_begun_by_an_earlier_version_goes_on(finished, recipe_path, tmp_path):
    """Its recipe.json lacks what has been added since."""
    run = tmp_path / "tiny"
    shutil.copytree(finished, run)
    path = run / "recipe.json"
    recipe = json.loads(path.read_text())
    del recipe["blackbox"]["copies"]
    del recipe["data"]["train"][0]["part"]
    path.write_text(json.dumps(recipe))
    assert run_recipe(recipe_path, [], tmp_path, "train") == 0
    assert json.loads(path.read_text()) == json.loads((finished / "recipe.json").read_text())


def test_stages_out_of_order_say_which_comes_first(recipe_path, tmp_path):
    with pytest.raises(RecipeError, match="stage train first"):
        run_recipe(recipe_path, [], tmp_path, "attribute")
    with pytest.raises(RecipeError, match="stage train first"):
        run_recipe(recipe_path, [], tmp_path, "export")


def test_several_teachers_may_teach_at_once(finished, recipe_path, tmp_path):
    shutil.copytree(finished / "blackbox", tmp_path / "tiny" / "blackbox")
    overrides = ['attribution.teacher="ensemble:occlusion+lime"', "attribution.budget=6"]
    for stage in ("attribute", "distill"):
        assert run_recipe(recipe_path, overrides, tmp_path, stage) == 0
    metrics = json.loads((tmp_path / "tiny" / "explainer" / "metrics.json").read_text())
    assert metrics["history"][-1]["score"] > 0.2  # of three epochs; 0 is chance
    stored = pq.read_table(next((tmp_path / "tiny" / "attributions" / "train").glob("*.parquet")))
    assert {*stored["teacher"].to_pylist()} <= {"occlusion", "lime"}


@pytest.mark.parametrize(
    ("marker", "what"),
    [
        ("blackbox/checkpoint.pt", "training"),
        ("attributions/train/*.parquet", "attribution"),
        ("explainer/checkpoint.pt", "distillation"),
        ("explainer/metrics.json", "export"),
        ("evaluation", "evaluation"),
    ],
)
def test_a_run_killed_in_a_stage_ends_with_the_same_bundle(
    marker, what, finished, recipe_path, tmp_path
):
    """The process is killed with SIGKILL as soon as the stage has left its first trace."""
    command = [sys.executable, "-m", "l2e", "run", str(recipe_path), "--runs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not [*(tmp_path / "tiny").glob(marker)]:
        assert process.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"{what} left no trace"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run_recipe(recipe_path, [], tmp_path, "run") == 0
    mine, theirs = (bundles.load(run / "bundle") for run in (tmp_path / "tiny", finished))
    assert mine.model_bytes() == theirs.model_bytes()
    assert mine.digest == theirs.digest  # the manifest without its times
