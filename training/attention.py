"""Attention as our own networks use it, written out where ONNX Runtime is to compute it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    eager_mask,
)

_exporting = threading.Lock()


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Returns softmax(q k' / sqrt(d) + bias) v, [batch, heads, tokens, d].

    torch's own function becomes, in an exported graph, twice as many nodes: it scales queries and
    keys apart and looks for rows that may attend to nothing, of which we have none.

    Args:
        query: [batch, heads, tokens, d].
        key: likewise.
        value: likewise.
        bias: added to the scores, of a shape that is broadcast to [batch, heads, tokens, tokens].
    """
    if not torch.compiler.is_exporting():
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return torch.matmul((scores + bias).softmax(-1), value)


@contextmanager
def written_out(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model of `transformers` write its attention out, too, with a mask of few nodes.

    The library asks one table for masks, so no other model may be run meanwhile.
    """
    before = model.config._attn_implementation
    with _exporting:
        ALL_MASK_ATTENTION_FUNCTIONS["eager"] = _mask
        try:
            model.set_attn_implementation("eager")
            yield
        finally:
            del ALL_MASK_ATTENTION_FUNCTIONS["eager"]
            model.set_attn_implementation(before)


def _mask(
    *,
    mask_function: Callable[..., object],
    attention_mask: Tensor | None,
    dtype: torch.dtype,
    q_offset: int = 0,
    kv_offset: int = 0,
    **arguments: Any,
) -> Tensor | None:
    """Hides pads, [batch, 1, 1, tokens], where nothing else is hidden.

    The library's own becomes some forty nodes that look up each pair of tokens: a tenth of the
    time that a short text takes.
    """
    plain = mask_function is bidirectional_mask_function and q_offset == kv_offset == 0
    if attention_mask is None or attention_mask.ndim != 2 or not plain:
        return eager_mask(
            mask_function=mask_function,
            attention_mask=attention_mask,
            dtype=dtype,
            q_offset=q_offset,
            kv_offset=kv_offset,
            **arguments,
        )
    seen = attention_mask[:, None, None, :].to(dtype)
    return (1.0 - seen) * torch.finfo(dtype).min
