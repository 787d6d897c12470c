"""A bag-of-words classifier: which words a text holds, two small layers, logits.

The MLP of Kadapala and Borchard on IMDB reviews: presence of the most frequent words, 16 and 16
units. Order and repetition are not seen. It is a `transformers` model, so that whatever loads,
explains, distills or exports a checkpoint does the same with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MlpConfig(PretrainedConfig):
    """Shape of an `MlpForSequenceClassification`.

    Args:
        vocab_size: words, special tokens included.
        special_ids: how many ids from 0 on are special tokens, which count as no word.
        units: of each hidden layer.
        dropout: after each hidden layer.
        max_position_embeddings: longest window in words; nothing in the network depends on it.
    """

    model_type = "l2e_mlp"

    def __init__(
        self,
        vocab_size: int = 8,
        special_ids: int = 3,
        units: Sequence[int] = (16, 16),
        dropout: float = 0.0,
        max_position_embeddings: int = 512,
        **rest: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.special_ids = special_ids
        self.units = list(units)
        self.dropout = dropout
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**rest)


class OneHot(nn.Module):
    """The word vectors of a bag of words, of which no weight is trained."""

    def __init__(self, size: int, special_ids: int) -> None:
        super().__init__()
        self.size = size
        self.special_ids = special_ids

    def forward(self, ids: Tensor) -> Tensor:
        """Maps ids [batch, tokens] to [batch, tokens, size]; zero for special tokens."""
        found = functional.one_hot(ids, self.size)
        found[..., : self.special_ids] = 0
        return found.float()


class MlpForSequenceClassification(PreTrainedModel):
    """See the module. It has no states of single words, so an explainer reads its `own`."""

    config_class = MlpConfig
    base_model_prefix = "mlp"

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        self.vectors = OneHot(config.vocab_size, config.special_ids)
        widths = [config.vocab_size, *config.units]
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)
        )
        self.dropout = nn.Dropout(config.dropout)
        assert config.num_labels is not None
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Returns the one-hot vectors."""
        return self.vectors

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Returns logits [batch, classes].

        Args:
            input_ids: int64 [batch, tokens].
            attention_mask: 1 for words, 0 for padding, [batch, tokens]; None takes all.
            inputs_embeds: float [batch, tokens, vocab_size] in place of ids; a word is present
                as far as its largest entry says.
        """
        if inputs_embeds is not None:
            mask = 1 if attention_mask is None else attention_mask[..., None]
            present = (inputs_embeds * mask).amax(1)
        else:
            assert input_ids is not None, "one of input_ids and inputs_embeds is given"
            present = self._present(input_ids, attention_mask)
        for layer in self.layers:
            present = self.dropout(functional.relu(layer(present)))
        return SequenceClassifierOutput(logits=self.classifier(present))

    def _present(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the same as the maximum over one-hot vectors, without making them."""
        words = ids >= self.config.special_ids
        if mask is not None:
            words = words & (mask > 0)
        # What is no word is counted under the first special token, whose column is then cleared.
        found = torch.zeros(ids.shape[0], self.config.vocab_size)
        columns = torch.arange(self.config.vocab_size) >= self.config.special_ids
        present: Tensor = found.scatter(1, ids * words, 1.0) * columns
        return present

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves torch's own initialisation."""
