"""Convolutional classifiers over word vectors, with or without self-attention on top.

The standard and the attention CNN of Kadapala and Borchard ("LIME feedback"): three convolutions
in a row, each with ReLU, batch norm and dropout, the maximum over the text, one linear layer. With
`pooling` of evidence the linear layer comes first, on each word, and its votes are summed. They are
`transformers` models, so that whatever loads, explains, distills or exports a checkpoint does the
same with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from training.attention import attend
from training.blackbox.evidence import Evidence, silence
from training.blackbox.output import LOWEST, RationaleOutput


class CnnConfig(PretrainedConfig):
    """Shape of a `CnnForSequenceClassification`.

    Args:
        vocab_size: words, special tokens included.
        hidden_size: of the word vectors.
        channels: of each convolution.
        kernels: width of each in words, odd.
        attention_heads: of the self-attention over the last convolution; 0 leaves it out.
        pooling: `max`, each feature's maximum over the text is classified; or `evidence`, each
            word is, and the answer sums their votes, see `Evidence`.
        vote_power: see `Evidence`.
        attention: `always`, or `feedback` to use it only where features are scaled.
        dropout: after each convolution and before the linear layer.
        frozen_vectors: word vectors are not trained.
        pad_token_id: its vector is zero.
        max_position_embeddings: longest window in words; nothing in the network depends on it.
    """

    model_type = "l2e_cnn"

    def __init__(
        self,
        vocab_size: int = 8,
        hidden_size: int = 50,
        channels: Sequence[int] = (64, 128, 256),
        kernels: Sequence[int] = (3, 5, 7),
        attention_heads: int = 0,
        attention: str = "always",
        pooling: str = "max",
        vote_power: float = 1.0,
        dropout: float = 0.5,
        frozen_vectors: bool = True,
        pad_token_id: int = 0,
        max_position_embeddings: int = 512,
        **rest: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.channels = list(channels)
        self.kernels = list(kernels)
        self.attention_heads = attention_heads
        self.attention = attention
        self.pooling = pooling
        self.vote_power = vote_power
        self.dropout = dropout
        self.frozen_vectors = frozen_vectors
        self.max_position_embeddings = max_position_embeddings
        self.pad_token_id = pad_token_id
        super().__init__(**rest)


class Convolution(nn.Module):
    """Convolution, ReLU, batch norm and dropout; padded positions stay zero."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.convolve = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm1d(outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps [batch, tokens, inputs] to [batch, tokens, outputs]; mask bool [batch, tokens]."""
        # As an image one pixel high, of which torch's kernels take the channels last, as they lie
        # here: twice as fast in bfloat16.
        image = functional.conv2d(
            x.transpose(1, 2)[:, :, None],
            self.convolve.weight[:, :, None],
            self.convolve.bias,
            padding=(0, self.convolve.kernel_size[0] // 2),
        )
        x = functional.relu(image)[:, :, 0].transpose(1, 2)
        if self.training and mask.sum() > 1:  # one word has no statistics
            # Of the words alone: with padding among them, what a text's company happened to be
            # would shape the norm.
            normed: Tensor = torch.zeros_like(x)
            normed[mask] = self.norm(x[mask]).to(x.dtype)
        else:
            norm = self.norm
            normed = functional.batch_norm(
                x.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias,
                eps=norm.eps,
            ).transpose(1, 2)  # fmt: skip
        result: Tensor = self.dropout(normed) * mask[..., None].to(x.dtype)
        return result


class SelfAttention(nn.Module):
    """Multi-head self-attention added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape; mask bool [batch, tokens]."""
        batch, tokens, width = x.shape
        qkv = self.query_key_value(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, LOWEST)
        mixed = attend(query, key, value, bias[:, None, None, :])
        result: Tensor = x + self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


class CnnForSequenceClassification(PreTrainedModel):
    """See the module. A text's logits do not depend on how far it is padded."""

    config_class = CnnConfig
    base_model_prefix = "cnn"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        self.vectors = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        widths = [config.hidden_size, *config.channels]
        self.convolutions = nn.ModuleList(
            Convolution(inputs, outputs, kernel, config.dropout)
            for (inputs, outputs), kernel in zip(
                itertools.pairwise(widths), config.kernels, strict=True
            )
        )
        self.attention = (
            SelfAttention(widths[-1], config.attention_heads) if config.attention_heads else None
        )
        self.dropout = nn.Dropout(config.dropout)
        assert config.num_labels is not None
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.evidence: Evidence | None = None
        if config.pooling == "evidence":
            self.sum_evidence(config.vote_power)
        self.post_init()  # type: ignore[no-untyped-call]

    def sum_evidence(self, power: float) -> None:
        """Lets each word vote from now on; its features keep what they said for each class.

        Args:
            power: see `Evidence`.
        """
        self.config.pooling, self.config.vote_power = "evidence", power
        self.evidence = Evidence(self.classifier.out_features, power)
        silence(self.classifier)

    def add_attention(self, heads: int, when: str) -> None:
        """Adds self-attention that changes no answer before it is trained.

        Args:
            heads: a divisor of the features' number.
            when: see `CnnConfig.attention`.
        """
        self.config.attention_heads, self.config.attention = heads, when
        self.attention = SelfAttention(self.config.channels[-1], heads)
        nn.init.zeros_(self.attention.output.weight)
        nn.init.zeros_(self.attention.output.bias)

    def revive_attention(self) -> None:
        """Starts attention anew where it is all zeros: no gradient would ever reach it.

        A bundle lacks what no answer depends on, so attention for feedback comes out of it so.
        """
        if self.attention is not None and not any(p.any() for p in self.attention.parameters()):
            self.attention.query_key_value.reset_parameters()
            self.attention.output.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the word vectors."""
        return self.vectors

    def unread_parameters(self) -> set[str]:
        """Names the parameters that no answer depends on; they matter in feedback steps."""
        if self.config.attention == "always":
            return set()
        return {name for name, _ in self.named_parameters() if name.startswith("attention.")}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        feature_scale: Tensor | None = None,
        **_: Any,
    ) -> RationaleOutput:
        """Returns logits, the states [batch, tokens, …] of each layer and logits of the rationale.

        Args:
            input_ids: int64 [batch, tokens].
            attention_mask: 1 for words, 0 for padding, [batch, tokens]; None takes all.
            inputs_embeds: float [batch, tokens, hidden_size] in place of ids.
            output_hidden_states: whether the states are wanted.
            feature_scale: factor on the features of each word after the convolutions, float
                [batch, tokens], as in the published feedback steps.
        """
        x = inputs_embeds
        if x is None:
            x = self.vectors(input_ids)
            # Here, because loading a checkpoint sets `requires_grad` of all parameters.
            x = x.detach() if self.config.frozen_vectors else x
        mask = torch.ones(x.shape[:2]) if attention_mask is None else attention_mask
        mask = mask > 0
        x = x * mask[..., None].to(x.dtype)
        states = [x]
        for convolution in self.convolutions:
            x = convolution(x, mask)
            states.append(x)
        if feature_scale is not None:
            x = x * feature_scale[..., None]
        always = self.config.attention == "always"
        if self.attention is not None and (always or feature_scale is not None):
            x = self.attention(x, mask)
            states.append(x)
        votes = None
        if self.evidence is None:
            pooled = x.masked_fill(~mask[..., None], LOWEST).amax(1)
            logits = self.classifier(self.dropout(pooled))
        else:
            votes = self.classifier(self.dropout(x)).float()
            logits = self.evidence(votes, mask)
        return RationaleOutput(
            logits=logits,
            hidden_states=tuple(states) if output_hidden_states else None,
            rationale_logits=votes,
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves torch's own initialisation, apart from word vectors, which are replaced."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.embedding_dim))
