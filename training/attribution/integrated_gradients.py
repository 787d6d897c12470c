"""Integrated gradients (Sundararajan et al., ICML 2017) from a [MASK] baseline, through captum.

The path runs in the space of token embeddings from the document with every word masked (special
tokens kept) to the document; a word's weight is the sum over its pieces and over windows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from models.text import Document, FloatArray, IntArray, bucket_length, pad_rows
from training.attribution.record import Attribution, build_records, evaluate_copies
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.protocol import BlackBox

TOKEN_BUDGET = 8192  # tokens of one forward and backward pass


def attribute(
    black_box: BlackBox,
    documents: Sequence[Document],
    targets: IntArray,
    *,
    budget: int,
    seed: int,
) -> list[Attribution]:
    """Explains documents; see `Teacher`. `budget` - 2 steps, and one evaluation each for the ends.

    Raises:
        ValueError: when the black box is not a torch model or the budget is below 3.
    """
    if not isinstance(black_box, HuggingFaceBlackBox):
        raise ValueError("integrated_gradients needs a torch black box: a bundle or a checkpoint")
    if budget < 3:
        raise ValueError(f"integrated_gradients needs a budget of at least 3, not {budget}")
    weights: list[FloatArray] = [np.zeros(0)] * len(documents)
    for group in _groups(documents, black_box.encoder.max_tokens, budget - 2):
        found = _integrate(black_box, [documents[row] for row in group], targets[group], budget - 2)
        for row, of_document in zip(group, found, strict=True):
            weights[row] = of_document
    ends = [np.stack([np.ones(n, bool), np.zeros(n, bool)]) for n in map(len, weights)]
    values = evaluate_copies(black_box, documents, targets, ends)
    return build_records(
        "integrated_gradients",
        documents,
        targets,
        values,
        weights,
        budgets=[budget] * len(values),
        seed=seed,
    )


def _groups(documents: Sequence[Document], max_tokens: int, steps: int) -> list[list[int]]:
    """Groups documents of equally many windows of one padded length."""
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, document in enumerate(documents):
        length = min(bucket_length(len(document.windows[0].input_ids)), max_tokens)
        shapes[len(document.windows), length].append(row)
    groups = []
    for (windows, length), rows in shapes.items():
        size = max(1, steps * TOKEN_BUDGET // (steps * windows * length))
        groups += [rows[first : first + size] for first in range(0, len(rows), size)]
    return groups


def _integrate(
    black_box: HuggingFaceBlackBox, documents: Sequence[Document], targets: IntArray, steps: int
) -> list[FloatArray]:
    """Integrates the gradient for documents of one shape: [documents, windows, tokens, hidden]."""
    windows = len(documents[0].windows)
    length = bucket_length(len(documents[0].windows[0].input_ids))
    shape = (len(documents), windows, length)
    pad_id = black_box.encoder.pad_id

    def rows(dropped: bool) -> tuple[IntArray, IntArray]:
        return pad_rows(
            [
                black_box.encoder.masked_ids(window, np.full(len(document.words), not dropped))
                for document in documents
                for window in document.windows
            ],
            length,
            pad_id,
        )

    table = black_box.model.get_input_embeddings()
    (ids, mask), (null_ids, _) = rows(dropped=False), rows(dropped=True)
    with torch.no_grad():
        full = table(torch.from_numpy(ids)).reshape(*shape, -1)
        null = table(torch.from_numpy(null_ids)).reshape(*shape, -1)

    def value(embeddings: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        with black_box.autocast():
            logits = black_box.model(
                inputs_embeds=embeddings.flatten(0, 1), attention_mask=mask.flatten(0, 1)
            ).logits
        logits = logits.double().reshape(len(embeddings), windows, -1).mean(1)
        chosen = logits.gather(1, target[:, None])[:, 0]
        others = logits.scatter(1, target[:, None], -torch.inf)
        odds: Tensor = chosen - others.logsumexp(1)
        return odds

    # No weight of the model needs a gradient, which saves a third of the backward pass.
    for parameter in black_box.model.parameters():
        parameter.requires_grad_(False)
    pieces = IntegratedGradients(value).attribute(
        full,
        baselines=null,
        additional_forward_args=(
            torch.from_numpy(mask).reshape(shape),
            torch.from_numpy(targets),
        ),
        n_steps=steps,
        method="riemann_middle",
        internal_batch_size=max(len(documents), TOKEN_BUDGET // (windows * length)),
    )
    sums = pieces.sum(-1).double().numpy()
    return [_word_sums(document, part) for document, part in zip(documents, sums, strict=True)]


def _word_sums(document: Document, pieces: FloatArray) -> FloatArray:
    weights = np.zeros(len(document.words))
    for window, values in zip(document.windows, pieces, strict=True):
        inside = np.flatnonzero(window.word_index >= 0)
        np.add.at(weights, window.word_index[inside], values[inside])
    return weights
