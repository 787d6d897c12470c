"""The training loop shared by black boxes and explainers: seeded, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from training.config import Optimization
from training.runtime import autocast, progress, write_tensors

Batch = TypeVar("Batch")


@dataclass
class Progress:
    """Where a run stands; everything besides weights that the next step depends on."""

    epoch: int = 0
    step: int = 0  # inside the epoch
    loss: float = 0.0  # summed over the steps of the epoch
    best: float = -math.inf
    stale: int = 0  # epochs since the best one
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Loop(Generic[Batch]):
    """Trains one module with AdamW, linear warm-up and cosine decay.

    A run that is killed continues from its last checkpoint and ends with the same weights, bit
    for bit: the batches are a function of the epoch, the random state a function of the step.

    Args:
        module: trained in place; only parameters that require gradients are.
        batches: the batches of an epoch, the same at every call.
        loss: a batch's loss, a scalar.
        validate: metrics of the module in eval mode; the one named `score` is maximised.
        settings: see `Optimization`.
        folder: holds `checkpoint.pt` while running.
        seed: of dropout.
        what: shown beside the progress bar.
    """

    module: nn.Module
    batches: Callable[[int], Sequence[Batch]]
    loss: Callable[[Batch], Tensor]
    validate: Callable[[], Mapping[str, float]]
    settings: Optimization
    folder: Path
    seed: int
    what: str

    def run(self) -> Progress:
        """Trains to the end and leaves the best epoch's weights in the module."""
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self._groups(), lr=self.settings.learning_rate)
        self.best_weights: dict[str, Tensor] = {}
        state = self._restore()
        while state.epoch < self.settings.epochs and state.stale < self.settings.patience:
            self._epoch(state)
        self.module.load_state_dict(self.best_weights)
        self.module.eval()
        return state

    def _epoch(self, state: Progress) -> None:
        batches = self.batches(state.epoch)
        started = saved = time.monotonic()
        self.module.train()
        todo = progress(
            range(state.step, len(batches)),
            total=len(batches),
            done=state.step,
            what=f"{self.what} epoch {state.epoch + 1}/{self.settings.epochs}",
        )
        for step in todo:
            state.loss += self._step(state.epoch, step, len(batches), batches[step])
            state.step = step + 1
            if time.monotonic() - saved > self.settings.save_seconds:
                state.seconds += time.monotonic() - started
                started = saved = time.monotonic()
                self._save(state)
        self.module.eval()
        metrics = dict(self.validate())
        metrics["train_loss"] = state.loss / max(1, len(batches))
        state.history.append(metrics)
        state.stale += 1
        if metrics["score"] > state.best:
            state.best, state.stale = metrics["score"], 0
            self.best_weights = {k: v.clone() for k, v in self.module.state_dict().items()}
        state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
        state.seconds += time.monotonic() - started
        self._save(state)

    def _step(self, epoch: int, step: int, steps: int, batch: Batch) -> float:
        # The state of the generator must not depend on what ran before a restart.
        torch.manual_seed(hash((self.seed, epoch, step)) % 2**63)
        done = (epoch + step / steps) / self.settings.epochs
        rate = self.settings.learning_rate * _schedule(done, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(self.settings.precision):
            loss = self.loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{self.what}: the loss is {value} in epoch {epoch + 1}; lower the learning rate"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _groups(self) -> list[dict[str, Any]]:
        # Decay pulls weights towards zero; for biases and norms that is not a prior anyone wants.
        decayed = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        return [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def _save(self, state: Progress) -> None:
        write_tensors(
            self.folder / "checkpoint.pt",
            {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best_weights": self.best_weights,
                "progress": vars(state),
            },
        )

    def _restore(self) -> Progress:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return Progress()
        saved = torch.load(path, weights_only=True)
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.best_weights = saved["best_weights"]
        return Progress(**saved["progress"])


def _schedule(done: float, warmup: float) -> float:
    """Returns the share of the peak learning rate after a share `done` of all steps."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1e-9, 1 - warmup)))
