"""Gradient times input (Shrikumar et al., 2016) on word embeddings, through captum."""

from __future__ import annotations

from captum.attr import InputXGradient
from torch import Tensor

from training.attribution.embeddings import Embedded, EmbeddingTeacher
from training.attribution.perturbation import ENDS

SPENT = 1 + ENDS  # one pass forward and back


def multiply(batch: Embedded, budget: int) -> Tensor:
    """Returns each embedding times its gradient, [documents, windows, tokens, hidden]."""
    found: Tensor = InputXGradient(batch.value).attribute(
        batch.full.clone().requires_grad_(),
        additional_forward_args=(batch.mask, batch.targets),
    )
    return found.detach()


TEACHER = EmbeddingTeacher("gradient", multiply, lambda budget: SPENT)
