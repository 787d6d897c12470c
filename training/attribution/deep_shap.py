"""Deep SHAP (Lundberg and Lee, NeurIPS 2017, section 4.2) from one reference, the masked text.

The rules are DeepLIFT's (Shrikumar et al., ICML 2017). With d the difference between the text and
its reference:

- a function of one element follows the rescale rule, d f(x) = d x * (f(x) - f(x')) / (x - x');
- a product follows its Shapley values, d (a b) = d a (b + b') / 2 + d b (a + a') / 2;
- logsumexp is written out as log(sum(exp)), and softmax(s) as exp(s - logsumexp(s)). No score then
  contributes more to a weight than it changed. The product exp times 1 / sum would answer a shift
  of all scores by k, which leaves a softmax as it is, with contributions of the size of sinh(k)
  that cancel only in sum: on a trained MiniLM they drown everything else;
- a layer norm is (x - mean) times 1 / sqrt(variance);
- a maximum goes by way of max(y, y'), the larger of both results: what the text rises to it is due
  to the text's winner, what it falls from it to the winner of the reference.

Contributions then sum exactly to the value of the text minus that of the reference (captum's
DeepLift, without rules for products and layer norms, loses this in a transformer). The reference
runs first and leaves the input of each operation, which the text meets again in the same order.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from training.attribution.embeddings import Embedded, EmbeddingTeacher, gradient
from training.attribution.perturbation import ENDS
from training.attribution.propagation import Bilinear, Operation, Propagation, follow, slope

SPENT = 2 + ENDS  # the reference forward, the text forward and back


class DeepShapRules:
    """See the module.

    Attributes:
        tape: inputs of the operations of the reference that the text has yet to meet.
        recording: True while the reference runs.
    """

    def __init__(self) -> None:
        self.tape: deque[Tensor] = deque()
        self.recording = True

    def elementwise(self, function: Operation, x: Tensor) -> Tensor:
        """Applies the rescale rule."""
        before = self._before(x)
        if not x.requires_grad:
            return function(x)
        return follow(function(x), slope(function, before, x), x)

    def product(self, function: Bilinear, a: Tensor, b: Tensor) -> Tensor:
        """Applies the Shapley rule of a product."""
        mean_a, mean_b = ((x.detach() + self._before(x)) / 2 for x in (a, b))
        found = function(a.detach(), b.detach())
        if a.requires_grad:
            found = found + function(a - a.detach(), mean_b)
        if b.requires_grad:
            found = found + function(mean_a, b - b.detach())
        return found

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        """Applies the rescale rule to each step of exp(x - log(sum(exp(x))))."""
        before = self._before(x)
        if not x.requires_grad:
            return x.softmax(dim)
        slopes = slope(torch.exp, before.log_softmax(dim), x.log_softmax(dim))
        moved = x - x.detach()
        common = (_shares(before, x, dim) * moved).sum(dim, keepdim=True)
        return x.detach().softmax(dim) + slopes * (moved - common)

    def logsumexp(self, x: Tensor, dim: int) -> Tensor:
        """Applies the rescale rule to each step of log(sum(exp(x)))."""
        before = self._before(x)
        if not x.requires_grad:
            return x.logsumexp(dim)
        moved = x - x.detach()
        return x.detach().logsumexp(dim) + (_shares(before, x, dim) * moved).sum(dim)

    def inverse_root(self, x: Tensor) -> Tensor:
        """Applies the rescale rule; x is positive."""
        before = self._before(x)
        if not x.requires_grad:
            return x.rsqrt()
        return follow(x.rsqrt(), slope(torch.rsqrt, before, x, relative=True), x)

    def maximum(self, x: Tensor, dim: int) -> Tensor:
        """Splits the change between the winners of the text and of the reference."""
        before = self._before(x)
        if not x.requires_grad:
            return x.amax(dim)
        with torch.no_grad():
            new, old = x.max(dim, keepdim=True), before.max(dim, keepdim=True)
            top = torch.maximum(new.values, old.values)
            # Nothing is divided by a change of zero: where a winner has not changed, its side of
            # the difference is zero too.
            change = (x - before).double()
            rise = torch.zeros_like(change).scatter(dim, new.indices, (top - old.values).double())
            fall = torch.zeros_like(change).scatter(dim, old.indices, (new.values - top).double())
            slopes = ((rise + fall) / change.where(change != 0, 1)).to(x.dtype)
        return new.values.squeeze(dim) + (slopes * (x - x.detach())).sum(dim)

    def _before(self, x: Tensor) -> Tensor:
        """Returns the same input of the reference; while that runs, records it."""
        if self.recording:
            self.tape.append(x.detach())
            return x
        before = self.tape.popleft()
        assert before.shape == x.shape, "text and reference run the same operations"
        return before


def _shares(before: Tensor, now: Tensor, dim: int) -> Tensor:
    """Returns how much each element moves the logsumexp, in [0, 1]."""
    with torch.no_grad():
        low, high = before.double(), now.double()
        # Midway, so that neither side overflows; the shares do not depend on it.
        shift = (low.amax(dim, keepdim=True) + high.amax(dim, keepdim=True)) / 2
        low, high = low - shift, high - shift
        sums = (x.exp().sum(dim, keepdim=True) for x in (low, high))
        found = slope(torch.exp, low, high) * slope(torch.log, *sums, relative=True)
        return found.to(now.dtype)


def contributions(batch: Embedded, budget: int) -> Tensor:
    """Returns the contribution of each embedding, [documents, windows, tokens, hidden]."""
    rules = DeepShapRules()
    with Propagation(rules):
        with torch.no_grad():
            batch.value(batch.null, batch.mask, batch.targets)
        rules.recording = False
        multipliers = gradient(batch, batch.full)
    assert not rules.tape, "text and reference run the same operations"
    return (batch.full - batch.null) * multipliers


TEACHER = EmbeddingTeacher(
    "deep_shap", contributions, lambda budget: SPENT, tokens=2048, exact=True
)
