"""Attention as our own networks use it, written out where ONNX Runtime is to compute it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    eager_mask,
)

# Added to the scores of pads: so far below any other that nothing is left of them, and within the
# range of float16 and bfloat16. There float32's lowest number becomes minus infinity, which times 0
# is no number; OpenVINO in bfloat16 then answered something else.
HIDDEN: Final = -1e4

_exporting = threading.Lock()  # the library has one table of masks for all models


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

    Args:
        model: runs inside; others must not meanwhile, for the library has one table of masks.
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
    """Hides pads where nothing else is hidden; stands in for the library's `eager_mask`.

    That one becomes some forty nodes that look up each pair of tokens, which take about .1 ms.

    Args:
        mask_function: says which pairs see each other; other ones than "all" go to the library.
        attention_mask: bool [batch, tokens], False for pads.
        dtype: of the scores.
        q_offset: places before the queries, 0 without a cache.
        kv_offset: likewise before the keys.
        arguments: for the library alone.

    Returns:
        What is added to the scores, [batch, 1, 1, tokens]: 0, or `HIDDEN` for pads.
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
    return (1.0 - seen) * HIDDEN
