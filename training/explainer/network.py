"""The student: a small network over the black box's states, asked about one of its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.attention import attend
from training.config import Student
from training.explainer.labels import CLASS_VALUES

LABELS: Final = 2  # label tokens, before the pieces where there is a block


class Pieces(NamedTuple):
    """What the network says of each piece; all [batch, tokens, …]."""

    weights: Tensor  # log-odds of the target, on the teacher's scale
    ranking: Tensor  # order only
    label_logits: Tensor  # [batch, tokens, 5]


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build an `ExplainerNetwork`."""

    classes: int
    input_width: int  # of the states read; ignored by `own`
    vocabulary: int  # for `own` embeddings
    positions: int  # longest row
    reads: Literal["all", "layers", "last", "own"] = "all"
    layers: tuple[int, ...] = ()  # that `layers` reads; 0 is the embedding output
    width: int = 192
    blocks: int = 1
    heads: int = 4
    dropout: float = 0.0
    decode: Literal["regression", "ranking", "labelling"] = "regression"
    scale: float = 1.0  # standard deviation of the teacher's weights, log-odds

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {**asdict(self), "layers": [*self.layers]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Builds the config from `to_dict`'s result."""
        return cls(**{**values, "layers": tuple(values.get("layers", ()))})


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape; `bias` [batch, 1, 1, tokens]."""
        batch, tokens, width = x.shape
        qkv = self.query_key_value(self.norm_attention(x))
        # Turned once, then taken apart: three nodes fewer of an exported graph.
        parts = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        parts = parts.permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        mixed = attend(q, k, v, bias.to(q.dtype))
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.dropout(self.attention_output(mixed))
        hidden = functional.gelu(self.expand(self.norm_feedforward(x)))
        result: Tensor = x + self.dropout(self.contract(hidden))
        return result


class ExplainerNetwork(nn.Module):
    """Scores every piece for a target class.

    It reads states: the concatenated ones of all layers of the black box (`all`), of some
    (`layers`), of the last (`last`), or embeddings of its own (`own`, the paper's independent
    student). With blocks it is a narrow transformer, and two tokens of the label stand before the
    states. The heads see each state and its product with the pooled one; of `own`, which learn
    from nothing what speaks for which class, also its product with those of the label tokens.

    Without a block no state hears of the label, and among those that are pooled it would be one
    of many in a long text: then the label tokens are no part of the row, and are added to the
    pooled state.

    Embeddings of its own know their places from their neighbours (a depthwise convolution, Chu et
    al., 2021, "Conditional Positional Encodings"): a teacher explains chunks, and places beyond
    their length would have embeddings that no text has trained.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.reads == "own":
            self.tokens = nn.Embedding(config.vocabulary, width)
            # Small, so that steps as large as the network's can change what a word is.
            nn.init.normal_(self.tokens.weight, std=0.02)
            self.neighbours = nn.Conv1d(width, width, 5, padding=2, groups=width, bias=False)
        else:
            self.norm_input = nn.LayerNorm(config.input_width)
            self.project = nn.Linear(config.input_width, width)
        self.label = nn.Embedding(config.classes, width)
        self.ends = nn.Embedding(LABELS, width)  # tells the first label token from the second
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm_output = nn.LayerNorm(width)
        self.interact = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.regression = nn.Linear(width, 1)
        self.ranking = nn.Linear(width, 1)
        self.labelling = nn.Linear(width, 5)

    def forward(self, inputs: Tensor, attention_mask: Tensor, target: Tensor) -> Pieces:
        """Scores pieces.

        Args:
            inputs: float [batch, tokens, input_width] states, or int64 ids [batch, tokens] for
                `own` embeddings.
            attention_mask: int64 [batch, tokens].
            target: int64 [batch], the class explained.
        """
        x = self._embed(inputs, attention_mask)
        label = self.label(target).unsqueeze(1) + self.ends.weight
        share = attention_mask.to(x.dtype).unsqueeze(1)
        if self.blocks:
            x, pooled = self._mix(label.to(x.dtype), x, share)
        else:
            x = self.norm_output(x)
            pooled = _mean(x, share) + label.sum(1, keepdim=True)
        features = functional.gelu(self.interact(torch.cat([x, x * pooled], dim=-1)))
        features = self.dropout(features)
        weights = self.regression(features).squeeze(-1) * self.config.scale
        return Pieces(weights, self.ranking(features).squeeze(-1), self.labelling(features))

    def decode(self, pieces: Pieces, head: str | None = None) -> tuple[Tensor, Tensor]:
        """Returns piece weights [batch, tokens] and 5-way probabilities [batch, tokens, 5].

        Args:
            pieces: the result of `forward`.
            head: the head that gives the weights; None takes the config's.
        """
        probabilities = pieces.label_logits.float().softmax(-1)
        head = head or self.config.decode
        if head == "ranking":
            return pieces.ranking.float(), probabilities
        if head == "labelling":
            return (probabilities * torch.tensor(CLASS_VALUES)).sum(-1), probabilities
        return pieces.weights.float(), probabilities

    def unread_parameters(self) -> set[str]:
        """Names the parameters of heads that `decode` does not read; they matter in training."""
        read = {self.config.decode, "labelling"}
        unread = {"regression", "ranking", "labelling"} - read
        return {name for name, _ in self.named_parameters() if name.split(".")[0] in unread}

    def _mix(self, label: Tensor, x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Lets the blocks read the label and the pieces.

        Args:
            label: [batch, LABELS, width].
            x: the pieces, [batch, tokens, width].
            share: [batch, 1, tokens], 1 for pieces and 0 for pads.

        Returns:
            What they make of the pieces, [batch, tokens, width], and of all pooled,
            [batch, 1, width].
        """
        # The paper has one before and one after the text. Nothing here knows places, so that comes
        # to the same, and side by side they take fewer nodes of an exported graph.
        x = torch.cat([label, x], dim=1)
        share = functional.pad(share, (LABELS, 0), value=1.0)
        bias = ((1.0 - share) * -1e4).unsqueeze(1)
        for block in self.blocks:
            x = block(x, bias)
        x = self.norm_output(x)
        pooled = _mean(x, share)
        if self.config.reads == "own":
            pooled = pooled + x[:, :1] + x[:, 1:LABELS]
        return x[:, LABELS:], pooled

    def _embed(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
        if self.config.reads == "own":
            words = self.tokens(inputs) * attention_mask[..., None]
            own: Tensor = words + self.neighbours(words.transpose(1, 2)).transpose(1, 2)
            return own
        projected: Tensor = self.project(self.norm_input(inputs))
        return projected


def _mean(x: Tensor, share: Tensor) -> Tensor:
    """Averages [batch, tokens, width] over tokens, as [batch, 1, tokens] says: [batch, 1, width].

    A product, not a sum over tokens: ONNX Runtime adds in another order when it sums over tokens
    for one row than for several, so an answer would depend on its batch.
    """
    # A row may be empty: a tokenizer may drop all characters of a text and add none.
    return torch.matmul(share, x) / share.sum(2, keepdim=True).clamp(min=1.0)


def select_states(hidden_states: Sequence[Tensor], config: NetworkConfig | Student) -> Tensor:
    """Returns what a network that reads states takes, [batch, tokens, input_width].

    Args:
        hidden_states: embedding output and each layer's states, [batch, tokens, hidden] each.
        config: says which it `reads`.

    Raises:
        ValueError: there is no layer of that number.
    """
    if config.reads == "last":
        return hidden_states[-1]
    if config.reads == "all":
        return torch.cat([*hidden_states], dim=-1)
    last = len(hidden_states) - 1
    for layer in config.layers:
        if layer > last:
            raise ValueError(f"explainer: layers: {layer}: the black box has states 0 to {last}")
    return torch.cat([hidden_states[layer] for layer in config.layers], dim=-1)
