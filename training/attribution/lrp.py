"""Layer-wise relevance propagation for transformers (Ali et al., ICML 2022), on word embeddings.

captum's LRP has no rule for attention and layer norm. Here each layer is made locally linear:

- attention weights and the standard deviation of a layer norm are constants;
- an activation f(x) is x times the constant (f(x) - f(0)) / x; its f(0) counts as a bias;
- linear layers follow the 0-rule, which is their own gradient; a maximum gives all to its winner,
  those that tie share it;
- of a product of two activations the second factor is a gate and constant, which makes a gelu
  written as x times a gate of x the same as one in a single call (signal-take-all: Arras et al.,
  WASSA 2017);
- of more than two classes, z_c - sum p_j z_j is explained, p the softmax over the others, which is
  what the gradient of the log-odds starts from.

Relevance is embedding times gradient of that model. It is linear in the word embeddings and in all
that is added on the way (biases, position and type embeddings). By Euler's theorem the relevances
of all tokens and what these constants absorb sum to the explained difference; those of the words
alone do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.attribution.embeddings import Embedded, EmbeddingTeacher, gradient
from training.attribution.perturbation import ENDS
from training.attribution.propagation import Bilinear, Operation, Propagation, follow, slope

SPENT = 1 + ENDS  # one pass forward and back


class LrpRules:
    """See the module; what is constant has no gradient."""

    def elementwise(self, function: Operation, x: Tensor) -> Tensor:
        """Takes the slope between 0 and x for constant."""
        if not x.requires_grad:
            return function(x)
        return follow(function(x), slope(function, torch.zeros_like(x), x), x)

    def product(self, function: Bilinear, a: Tensor, b: Tensor) -> Tensor:
        """Takes the second of two activations for constant."""
        return function(a, b.detach() if a.requires_grad else b)

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        """Returns constants."""
        return x.detach().softmax(dim)

    def logsumexp(self, x: Tensor, dim: int) -> Tensor:
        """Keeps its own gradient, the softmax."""
        return x.logsumexp(dim)

    def inverse_root(self, x: Tensor) -> Tensor:
        """Returns constants."""
        return x.detach().rsqrt()

    def maximum(self, x: Tensor, dim: int) -> Tensor:
        """Keeps its own gradient."""
        return x.amax(dim)


def relevances(batch: Embedded, budget: int) -> Tensor:
    """Returns the relevance of each embedding, [documents, windows, tokens, hidden]."""
    with Propagation(LrpRules()):
        return batch.full * gradient(batch, batch.full)


TEACHER = EmbeddingTeacher("lrp", relevances, lambda budget: SPENT, tokens=2048, exact=True)
