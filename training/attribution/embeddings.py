"""Teachers that look into a torch model: they attribute to the embeddings of word pieces.

What one of them is lies in one function, `explain`; the rest is the same for all: embedding the
text and the text with every word masked, grouping, the differentiable value, sums over pieces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.text import BoolArray, Document, FloatArray, IntArray, bucket_length, pad_rows
from training.attribution.perturbation import evaluate_copies, start_masks
from training.attribution.record import PREDICTED, Attribution
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.protocol import BlackBox, explained_value

TOKEN_BUDGET = 8192  # tokens of one forward and backward pass


@dataclass(frozen=True)
class Embedded:
    """Documents of equally many windows of one padded length, as word embeddings.

    Attributes:
        full: of the text, float32 [documents, windows, tokens, hidden].
        null: of the text with every word masked and special tokens kept, of the same shape.
        mask: attention mask, int64 [documents, windows, tokens].
        targets: class to explain of each document, int64 [documents].
        value: `value(embeddings, mask, targets)`, the log-odds `z_c - logsumexp(z_others)` of the
            logits averaged over windows, float64 [documents], differentiable.
    """

    full: Tensor
    null: Tensor
    mask: Tensor
    targets: Tensor
    value: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EmbeddingTeacher:
    """A teacher made of an attribution to word embeddings; see `Teacher` for the methods.

    A word weighs the sum over its pieces and windows; a word without pieces weighs 0.

    Attributes:
        name: what the command line calls it.
        explain: `explain(batch, budget)`, contributions [documents, windows, tokens, hidden].
        count: `count(budget)`, the evaluations spent, a backward pass counted with its forward
            pass, the full and the null text included.
        least: smallest budget.
        tokens: of one call of `explain`; a document of more has a call of its own.
        exact: computes in float32 even where the black box autocasts to bfloat16.
    """

    name: str
    explain: Callable[[Embedded, int], Tensor]
    count: Callable[[int], int]
    least: int = 0
    tokens: int = TOKEN_BUDGET
    exact: bool = False

    def spent(self, document: Document, budget: int) -> int:
        """See `Teacher.spent`."""
        if budget < self.least:
            raise ValueError(f"{self.name} needs a budget of at least {self.least}, not {budget}")
        return self.count(budget)

    def attribute(
        self,
        black_box: BlackBox,
        documents: Sequence[Document],
        targets: IntArray,
        *,
        budget: int,
        seed: int,
        known: Sequence[Attribution | None] | None = None,
    ) -> list[Attribution]:
        """See `Teacher.attribute`; nothing is sampled, so nothing known is of use."""
        if not isinstance(black_box, HuggingFaceBlackBox):
            raise ValueError(f"{self.name} needs a torch black box: a bundle or a checkpoint")
        spent = [self.spent(document, budget) for document in documents]
        with frozen(black_box.model), _precise(black_box, self.exact):
            ends = evaluate_copies(
                black_box, documents, [start_masks(2, len(part.words)) for part in documents]
            )
            found = np.array([int(logits[0].argmax()) for logits in ends], dtype=np.int64)
            classes = np.where(targets == PREDICTED, found, targets)
            weights = self._weights(black_box, documents, classes, budget)
        records = []
        for row, target in enumerate(classes.tolist()):
            value, null_value = explained_value(black_box, ends[row], target).tolist()
            records.append(
                Attribution(
                    id="",
                    target=target,
                    teacher=self.name,
                    budget=spent[row],
                    seed=seed,
                    value=value,
                    null_value=null_value,
                    weights=weights[row],
                    values=np.zeros(0),
                    eps=None,
                )
            )
        return records

    def halves(self, document: Document, record: Attribution) -> None:
        """See `Teacher.halves`; nothing is sampled."""
        return

    def _weights(
        self,
        black_box: HuggingFaceBlackBox,
        documents: Sequence[Document],
        targets: IntArray,
        budget: int,
    ) -> list[FloatArray]:
        weights = [np.zeros(len(document.words)) for document in documents]
        for group in group_by_shape(documents, self.tokens):
            batch = embed(black_box, [documents[row] for row in group], targets[group])
            sums = self.explain(batch, budget).sum(-1).double().numpy()
            for row, values in zip(group, sums, strict=True):
                for window, pieces in zip(documents[row].windows, values, strict=True):
                    inside = np.flatnonzero(window.word_index >= 0)
                    np.add.at(weights[row], window.word_index[inside], pieces[inside])
        return weights


def group_by_shape(documents: Sequence[Document], tokens: int) -> list[list[int]]:
    """Groups documents of equally many windows of one padded length, up to `tokens` together."""
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, document in enumerate(documents):
        length = bucket_length(len(document.windows[0].input_ids))
        shapes[len(document.windows), length].append(row)
    groups = []
    for (windows, length), rows in shapes.items():
        size = max(1, tokens // (windows * length))
        groups += [rows[first : first + size] for first in range(0, len(rows), size)]
    return groups


def embed(
    black_box: HuggingFaceBlackBox, documents: Sequence[Document], targets: IntArray
) -> Embedded:
    """Embeds documents of one shape."""
    length = bucket_length(len(documents[0].windows[0].input_ids))
    shape = (len(documents), len(documents[0].windows), length)
    table = black_box.model.get_input_embeddings()

    def look_up(keep_words: bool) -> tuple[Tensor, Tensor]:
        rows = []
        for document in documents:
            keep: BoolArray = np.full(len(document.words), keep_words)
            rows += [black_box.encoder.masked_ids(window, keep) for window in document.windows]
        ids, mask = pad_rows(rows, length, black_box.encoder.pad_id)
        with torch.no_grad():
            embeddings: Tensor = table(torch.from_numpy(ids)).reshape(*shape, -1)
        return embeddings, torch.from_numpy(mask).reshape(shape)

    (full, mask), (null, _) = look_up(True), look_up(False)

    def value(embeddings: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        with black_box.autocast():
            logits = black_box.model(
                inputs_embeds=embeddings.flatten(0, 1), attention_mask=mask.flatten(0, 1)
            ).logits
        return log_odds(logits.double().unflatten(0, embeddings.shape[:2]).mean(1), targets)

    return Embedded(full, null, mask, torch.from_numpy(targets), value)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns `z_c - logsumexp(z_others)`, differentiable.

    Args:
        logits: [documents, classes].
        targets: int64 [documents].

    Returns:
        [documents].
    """
    others = torch.arange(logits.shape[1] - 1).expand(len(logits), -1)
    others = others + (others >= targets[:, None]).long()
    return logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, others).logsumexp(1)


def gradient(batch: Embedded, embeddings: Tensor) -> Tensor:
    """Returns the gradient of the value at some embeddings, of their shape."""
    inputs = embeddings.detach().clone().requires_grad_()
    values = batch.value(inputs, batch.mask, batch.targets)
    (found,) = torch.autograd.grad(values.sum(), inputs)
    return found


@contextmanager
def _precise(black_box: HuggingFaceBlackBox, exact: bool) -> Iterator[None]:
    """Computes in float32 where `exact`: the sum of weights belongs to the ends' difference."""
    before = black_box.precision
    black_box.precision = "fp32" if exact else before
    try:
        yield
    finally:
        black_box.precision = before


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Runs a model in eval mode and without gradients of its weights, then leaves it as it was.

    No weight needs a gradient, which saves a third of the backward pass, and tells what depends on
    the embeddings from what does not.
    """
    modes = [(module, module.training) for module in model.modules()]
    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in needed:
            parameter.requires_grad_(True)
