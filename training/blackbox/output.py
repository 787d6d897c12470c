"""What classifiers with a rationale layer answer, and what stands for nothing in them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

LOWEST = -1e30  # stands for a padded position under a maximum; finite, so differences are numbers


@dataclass
class RationaleOutput(ModelOutput):
    """What the model answers.

    Attributes:
        logits: [batch, classes].
        hidden_states: embedding output and each layer's states, [batch, tokens, hidden] each.
        rationale_logits: of each token, special tokens and padding too, of being part of the
            rationale, float32 [batch, tokens]; where evidence is summed, of being part of one for
            each class, float32 [batch, tokens, classes].
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    rationale_logits: Tensor | None = None


def has_rationale_layer(model: nn.Module) -> bool:
    """Says whether a model gives logits of the rationale."""
    return any(getattr(model, name, None) is not None for name in ("rationale", "evidence"))
