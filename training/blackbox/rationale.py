"""A transformer that decides from the words that its rationale layer picks.

The custom transformer of Kadapala and Borchard ("LIME feedback"): on the states of an encoder a
linear layer gives each token a logit of being part of the rationale, which is trained on what
people marked (see `training.blackbox.rationale_fit`). Here the decision goes through that layer:
the softmax of its logits says how much of each state the classifier gets to see, so that a layer
that has learnt what people point at is what the answer rests on. A state knows of the words around
it, so the words that are picked are what the classifier reads, not all that had a say.

With `pooling` of evidence the classifier reads each state instead, and the answer sums their votes
(see `training.blackbox.evidence`); those votes are then what is trained on the human rationales.

It is a `transformers` model, so that whatever loads, explains, distills or exports a checkpoint
does the same with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from training.blackbox.evidence import Evidence, silence
from training.blackbox.output import LOWEST, RationaleOutput

# What other code reads of a classifier's config; here it is the trunk's.
MIRRORED = ("vocab_size", "hidden_size", "max_position_embeddings", "pad_token_id")


class RationaleConfig(PretrainedConfig):
    """Shape of a `RationaleForSequenceClassification`.

    Args:
        trunk: config of any encoder that `AutoModel` knows, or its values with `model_type`; None
            takes a BERT.
        pooling: `softmax`, of the rationale layer's logits, or `evidence`.
        vote_power: of `evidence`, see `Evidence`.
        dropout: before the classifier.
        prefix_tokens: special tokens before a text, which are never picked.
        suffix_tokens: those after it.
    """

    model_type = "l2e_rationale"
    sub_configs: ClassVar[dict[str, type]] = {"trunk": AutoConfig}

    def __init__(
        self,
        trunk: PretrainedConfig | Mapping[str, Any] | None = None,
        pooling: str = "softmax",
        vote_power: float = 1.0,
        dropout: float = 0.1,
        prefix_tokens: int = 1,
        suffix_tokens: int = 1,
        **rest: Any,
    ) -> None:
        if not isinstance(trunk, PretrainedConfig):
            trunk = AutoConfig.for_model(**{"model_type": "bert", **(trunk or {})})
        self.trunk = trunk
        self.pooling = pooling
        self.vote_power = vote_power
        self.dropout = dropout
        self.prefix_tokens = prefix_tokens
        self.suffix_tokens = suffix_tokens
        super().__init__(**rest)
        for name in MIRRORED:
            if hasattr(self.trunk, name):
                setattr(self, name, getattr(self.trunk, name))


class RationaleForSequenceClassification(PreTrainedModel):
    """See the module. A text's logits do not depend on how far it is padded."""

    config_class = RationaleConfig
    base_model_prefix = "trunk"
    _supports_sdpa = True  # as far as the trunk does

    def __init__(self, config: RationaleConfig) -> None:
        super().__init__(config)
        self.trunk = without_pooler(AutoModel.from_config(config.trunk))
        width = config.trunk.hidden_size
        evidence = config.pooling == "evidence"
        self.rationale = None if evidence else nn.Linear(width, 1)
        self.dropout = nn.Dropout(config.dropout)
        assert config.num_labels is not None
        self.classifier = nn.Linear(width, config.num_labels)
        self.evidence = Evidence(config.num_labels, config.vote_power) if evidence else None
        self.post_init()  # type: ignore[no-untyped-call]
        if self.evidence is not None:
            silence(self.classifier)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the trunk's word embeddings."""
        found: nn.Module = self.trunk.get_input_embeddings()
        return found

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> RationaleOutput:
        """Returns logits, states and the logits of the rationale.

        Args:
            input_ids: int64 [batch, tokens].
            attention_mask: 1 for words, 0 for padding, [batch, tokens]; None takes all.
            inputs_embeds: float [batch, tokens, hidden] in place of ids.
            output_hidden_states: whether the states are wanted.
        """
        output = self.trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        states = output.last_hidden_state
        mask = torch.ones(states.shape[:2]) if attention_mask is None else attention_mask
        allowed = pickable(mask, self.config.prefix_tokens, self.config.suffix_tokens)
        if self.evidence is not None:
            found = self.classifier(self.dropout(states)).float()
            logits = self.evidence(found, allowed)
        else:
            assert self.rationale is not None
            found = self.rationale(states)[:, :, 0].float()
            share = found.masked_fill(~allowed, LOWEST).softmax(-1)
            pooled = torch.matmul(share[:, None, :].to(states.dtype), states)[:, 0]
            logits = self.classifier(self.dropout(pooled))
        return RationaleOutput(
            logits=logits,
            hidden_states=output.hidden_states if output_hidden_states else None,
            rationale_logits=found,
        )


def pickable(mask: Tensor, prefix: int, suffix: int) -> Tensor:
    """Says which tokens an answer may rest on, bool [batch, tokens].

    Special tokens may not be picked: they belong to no word, and a layer that picks `[CLS]` could
    read off it whatever the encoder has gathered there, whichever words people marked. They are
    known by their places, because explanations come with embeddings in place of ids. The mask token
    may be picked like the word that it stands for, so that a text of which every word is masked
    still has an answer. A row without any word takes its special tokens, as there is nothing else.

    Args:
        mask: 1 for tokens, 0 for padding, [batch, tokens].
        prefix: special tokens at the start of a row.
        suffix: those at its end, before padding.
    """
    place = mask.cumsum(1)  # of a token in its row, from 1
    count = place[:, -1:]
    inner = (place > prefix) & (place <= count - suffix)
    return (mask > 0) & (inner | (count <= prefix + suffix))


def without_pooler(trunk: Any) -> Any:
    """Takes the layer over `[CLS]` from an encoder that has one: nothing here reads it."""
    if getattr(trunk, "pooler", None) is not None:
        trunk.pooler = None
    return trunk
