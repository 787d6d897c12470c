"""What a student is trained on: regression, pairwise ranking, 5-way sequence labelling.

All take batches padded to the longest text, `valid` marking real words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def regression_loss(scores: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Huber loss of the scores, mean over the words of a text, then over texts.

    Args:
        scores: [texts, words], on the scale of `weights`.
        weights: [texts, words], the teacher's weights in units of their standard deviation.
        valid: bool [texts, words].
    """
    loss = functional.huber_loss(scores, weights, reduction="none") * valid
    return (loss.sum(1) / valid.sum(1).clamp(min=1)).mean()


def ranking_loss(scores: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Pairwise logistic loss (RankNet; L2E section 3.2), signed weights, ties left out.

    For each pair of words with w_i > w_j: log(1 + exp(-(s_i - s_j))); mean over the pairs of a
    text, then over the texts that have a pair.

    Args:
        scores: [texts, words].
        weights: [texts, words], the teacher's.
        valid: bool [texts, words].
    """
    above = weights[:, :, None] > weights[:, None, :]
    pairs = above & valid[:, :, None] & valid[:, None, :]
    loss = functional.softplus(scores[:, None, :] - scores[:, :, None]) * pairs
    counts = pairs.sum((1, 2))
    means = loss.sum((1, 2)) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def labelling_loss(probabilities: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Negative log-likelihood of the 5-way labels; label tokens and padding take no part.

    Args:
        probabilities: [texts, words, 5]; a word's are the mean over its pieces.
        labels: int64 [texts, words].
        valid: bool [texts, words].
    """
    chosen = probabilities.gather(2, labels[:, :, None])[:, :, 0]
    loss = -torch.log(chosen.clamp(min=1e-6)) * valid
    return (loss.sum(1) / valid.sum(1).clamp(min=1)).mean()
