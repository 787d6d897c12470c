"""Integrated gradients (Sundararajan et al., ICML 2017) from a [MASK] baseline, through captum.

The path runs in the space of word embeddings from the text with every word masked (special tokens
kept) to the text. A budget is the steps and one evaluation for each end.
"""

from __future__ import annotations

from captum.attr import IntegratedGradients
from torch import Tensor

from training.attribution.embeddings import TOKEN_BUDGET, Embedded, EmbeddingTeacher, gradient
from training.attribution.perturbation import ENDS


def integrate(batch: Embedded, budget: int) -> Tensor:
    """Returns integrated gradients, [documents, windows, tokens, hidden]."""
    way = batch.full - batch.null
    if budget == ENDS + 1:  # captum refuses a single step
        return way * gradient(batch, batch.null + way / 2)
    documents, windows, tokens = batch.mask.shape
    found: Tensor = IntegratedGradients(batch.value).attribute(
        batch.full,
        baselines=batch.null,
        additional_forward_args=(batch.mask, batch.targets),
        n_steps=budget - ENDS,
        method="riemann_middle",
        internal_batch_size=max(documents, TOKEN_BUDGET // (windows * tokens)),
    )
    return found


TEACHER = EmbeddingTeacher("integrated_gradients", integrate, lambda budget: budget, least=ENDS + 1)
