"""A run's folder belongs to one recipe, one set of data and one process at a time."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from training.commands import run_recipe
from training.config import RecipeError
from training.guard import DATA, LOCK, guard_data, hold

HOLDER = """
import sys, time
from pathlib import Path
from training.guard import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of the tiny data."""
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def moved(recipe, data):
    """The tiny recipe on that copy."""
    return replace(recipe, data=replace(recipe.data, root=str(data)))


def test_one_process_at_a_time(recipe_path, tmp_path):
    run = tmp_path / "tiny"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match=r"tiny: another process works there: .*--runs DIR"):
            run_recipe(recipe_path, [], tmp_path, "train")
        assert [path.name for path in run.iterdir()] == [LOCK]
        holder.send_signal(signal.SIGKILL)
    with hold(run):  # what was killed holds nothing
        pass
    with hold(run):
        pass


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    left = [
        tmp_path / "blackbox" / ".checkpoint.pt.4711",
        tmp_path / ".recipe.json.1",
        tmp_path / "bundle.tmp-4711-0a1b2c3d" / "model.onnx",
        tmp_path / "bundle.tmp-4711-0a1b2c3d-old" / "model.onnx",
    ]
    kept = [
        tmp_path / "bundle" / "model.onnx",
        tmp_path / "row-0" / LOCK,  # a run of its own
        tmp_path / "row-0" / ".recipe.json.4711",
        tmp_path / "blackbox" / "checkpoint.pt",
        tmp_path / "blackbox" / ".hidden",
        tmp_path / "feedback-1.json",
        tmp_path / "notes.tmp-1",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with hold(tmp_path):
        assert not any(path.exists() for path in left)
        assert not (tmp_path / "bundle.tmp-4711-0a1b2c3d").exists()
        assert all(path.exists() for path in kept)


def test_a_bundle_whose_place_nothing_took_gets_it_back(tmp_path):
    """Killed between the two renames of `models.bundle.save`."""
    old = tmp_path / "bundle.tmp-4711-0a1b2c3d-old"
    old.mkdir()
    (old / "model.onnx").write_text("whole")
    with hold(tmp_path):
        assert (tmp_path / "bundle" / "model.onnx").read_text() == "whole"
        assert not old.exists()


def test_what_is_being_written_by_the_holder_stays(tmp_path):
    """Somebody who is turned away clears nothing."""
    writing = tmp_path / ".checkpoint.pt.4711"
    with hold(tmp_path):
        writing.write_text("")
        with pytest.raises(RecipeError, match="another process"), hold(tmp_path):
            pass
        assert writing.exists()


@pytest.fixture
def run(tmp_path):
    """A folder in which something has been learnt."""
    path = tmp_path / "run" / "blackbox" / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    return tmp_path / "run"


def test_before_anything_is_learnt_the_data_may_be_mended(moved, data, tmp_path):
    guard_data(moved, tmp_path)
    known = (tmp_path / DATA).read_bytes()
    (data / "dev.tsv").write_text("a great film\t1\n")
    guard_data(moved, tmp_path)
    assert (tmp_path / DATA).read_bytes() != known


def test_data_that_change_under_a_run_are_named(moved, data, run):
    guard_data(moved, run)
    guard_data(moved, run)
    known = (run / DATA).read_bytes()
    dev = data / "dev.tsv"
    lines = dev.read_text().splitlines(keepends=True)
    dev.write_text("".join(reversed(lines)))
    with pytest.raises(
        RecipeError,
        match=r"run began with other texts or labels .data.validation.0. dev.tsv changed.: put",
    ):
        guard_data(moved, run)
    assert (run / DATA).read_bytes() == known
    dev.write_text("".join(lines))
    guard_data(moved, run)


def test_a_label_is_part_of_the_data(moved, data, run):
    guard_data(moved, run)
    train = data / "train.tsv"
    text, label = train.read_text().splitlines()[0].split("\t")
    rest = train.read_text().split("\n", 1)[1]
    train.write_text(f"{text}\t{1 - int(label)}\n{rest}")
    with pytest.raises(RecipeError, match=r"data.train.0. train.tsv changed"):
        guard_data(moved, run)


def test_where_they_lie_does_not_matter(recipe, moved, run):
    guard_data(recipe, run)
    guard_data(moved, run)
