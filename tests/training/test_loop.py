import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from training.config import Optimization
from training.loop import Loop, _schedule

STEPS = 5  # in each epoch


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def module():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)
    )


def batches(epoch):
    generator = torch.Generator().manual_seed(100 + epoch)
    return list(torch.randn(STEPS, 16, 4, generator=generator))


class Training:
    """A loop on a small network with dropout, whose scores and whose death can be set."""

    def __init__(self, folder, *, scores=None, die_at=None, save_seconds=-1.0, **changes):
        settings = {"epochs": 4, "learning_rate": 0.01, "patience": 9, "precision": "fp32"}
        self.module = module()
        self.scores, self.die_at, self.steps = scores, die_at, 0
        self.snapshots: list[dict] = []
        self.was_training: list[bool] = []
        self.loop = Loop(
            module=self.module,
            batches=batches,
            loss=self.loss,
            validate=self.validate,
            settings=Optimization(**{**settings, "save_seconds": save_seconds, **changes}),
            folder=folder,
            seed=3,
            what="small network",
        )

    def loss(self, batch):
        if self.steps == self.die_at:
            raise Killed
        self.steps += 1
        assert self.module.training
        return (self.module(batch)[:, 0] - batch.sum(1)).square().mean()

    def validate(self):
        if self.steps == self.die_at:
            raise Killed
        assert not self.module.training
        self.snapshots.append({k: v.clone() for k, v in self.module.state_dict().items()})
        if self.scores is not None:
            return {"score": self.scores[len(self.snapshots) - 1]}
        with torch.no_grad():
            batch = batches(99)[0]
            error = (self.module(batch)[:, 0] - batch.sum(1)).square().mean().item()
        return {"score": -error}


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    training = Training(tmp_path_factory.mktemp("whole"))
    return training.loop.run(), training


def test_it_learns(uninterrupted):
    progress, _ = uninterrupted
    assert (progress.epoch, progress.step, len(progress.history)) == (4, 0, 4)
    assert progress.best == max(row["score"] for row in progress.history)
    assert progress.history[-1]["train_loss"] < progress.history[0]["train_loss"]


def test_the_same_run_twice_ends_alike(uninterrupted, tmp_path):
    again = Training(tmp_path)
    again.loop.run()
    assert same(again.module.state_dict(), uninterrupted[1].module.state_dict())


def test_another_seed_drops_other_units(uninterrupted, tmp_path):
    other = Training(tmp_path)
    other.loop.seed = 4
    other.loop.run()
    assert not same(other.module.state_dict(), uninterrupted[1].module.state_dict())


@pytest.mark.parametrize("save_seconds", [-1.0, 1e9])
@pytest.mark.parametrize("die_at", [1, 4, 5, 6, 12, 19, 20])
def test_killed_and_resumed_it_ends_alike(die_at, save_seconds, uninterrupted, tmp_path):
    """In an epoch, in a validation (5, 20); saved at each step or at epochs' ends only.

    What else used the random generator in between makes no difference.
    """
    whole, reference = uninterrupted
    with pytest.raises(Killed):
        Training(tmp_path, die_at=die_at, save_seconds=save_seconds).loop.run()
    torch.manual_seed(12345)
    again = Training(tmp_path, save_seconds=save_seconds)
    torch.rand(7)
    progress = again.loop.run()
    lost = 0 if save_seconds < 0 else die_at - (die_at - 1) // STEPS * STEPS
    assert again.steps == 4 * STEPS - die_at + lost
    assert same(again.module.state_dict(), reference.module.state_dict())
    assert progress.history == whole.history
    assert (progress.best, progress.epoch, progress.stale) == (whole.best, 4, whole.stale)


def test_killed_many_times_it_ends_alike(uninterrupted, tmp_path):
    for _ in range(6):
        with pytest.raises(Killed):
            Training(tmp_path, die_at=3).loop.run()
    last = Training(tmp_path)
    last.loop.run()
    assert last.steps == 2
    assert same(last.module.state_dict(), uninterrupted[1].module.state_dict())


def test_the_best_epoch_is_kept(tmp_path):
    training = Training(tmp_path, scores=[0.5, 0.9, 0.7, 0.9])
    progress = training.loop.run()
    assert progress.best == 0.9
    assert same(training.module.state_dict(), training.snapshots[1])  # the first of equals
    assert not same(training.snapshots[1], training.snapshots[3])
    assert not training.module.training


def test_the_best_epoch_survives_a_kill(tmp_path):
    first = Training(tmp_path, scores=[0.9], die_at=STEPS + 2)
    with pytest.raises(Killed):
        first.loop.run()
    again = Training(tmp_path, scores=[0.1, 0.2, 0.3])
    assert again.loop.run().best == 0.9
    assert same(again.module.state_dict(), first.snapshots[0])


def test_it_stops_early_and_stays_stopped(tmp_path):
    training = Training(tmp_path, scores=[0.5, 0.4, 0.3, 0.9], patience=2)
    progress = training.loop.run()
    assert (progress.epoch, progress.stale, len(progress.history)) == (3, 2, 3)
    assert same(training.module.state_dict(), training.snapshots[0])
    again = Training(tmp_path, scores=[], patience=2)
    assert again.loop.run().epoch == 3
    assert again.steps == 0
    assert same(again.module.state_dict(), training.module.state_dict())


def test_patience_starts_anew_after_a_better_epoch(tmp_path):
    training = Training(tmp_path, scores=[0.5, 0.4, 0.6, 0.5], patience=2)
    assert training.loop.run().epoch == 4


def test_frozen_parameters_stay(tmp_path):
    training = Training(tmp_path, epochs=1)
    training.module[0].requires_grad_(False)
    before = training.module[0].weight.clone()
    training.loop.run()
    assert torch.equal(training.module[0].weight, before)


def test_decay_is_for_matrices_only(tmp_path):
    training = Training(tmp_path)
    training.loop.parameters = list(training.module.parameters())
    decayed, others = training.loop._groups()
    assert [tuple(p.shape) for p in decayed["params"]] == [(8, 4), (1, 8)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert sum(len(group["params"]) for group in (decayed, others)) == 6


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [_schedule(step / 1000, 0.06) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-3 / 0.061)
    assert max(rates) == rates[60] == 1.0
    assert all(later > earlier for earlier, later in pairwise(rates[:61]))
    assert all(later < earlier for earlier, later in pairwise(rates[60:]))
    assert rates[530] == pytest.approx(0.5)
    assert rates[1000] == pytest.approx(0.0, abs=1e-15)


def test_gradients_are_clipped(tmp_path):
    """One step of AdamW moves by the learning rate whatever the gradient; its memory tells."""
    training = Training(tmp_path, clip=1e-3)
    training.loop.parameters = list(training.module.parameters())
    training.loop.optimizer = torch.optim.AdamW(training.loop._groups())
    training.module.train()
    training.loop._step(0, 0, STEPS, 100 * batches(0)[0])
    first = [state["exp_avg"].square().sum() for state in training.loop.optimizer.state.values()]
    assert math.sqrt(sum(first)) == pytest.approx(0.1 * 1e-3, rel=1e-3)
