"""Replaces the operations of a network by rules of propagation while it runs.

A rule leaves an operation's value as it is and gives it another derivative. What autograd then
returns is no gradient but the multipliers of a locally linear model: those of layer-wise
relevance propagation (lrp.py) or of DeepLIFT (deep_shap.py). An operation that is not listed here
keeps its own derivative, and so does what torch does inside `nn.MultiheadAttention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Ends of a slope closer than twice this are moved apart. In float64 a quotient over such a step
# has ten digits, and it differs from the derivative at the midpoint by the step's square.
STEP = 1e-6
# Scores of masked keys are -inf, whose differences are no numbers; this is as good as -inf.
LOWEST = -1e30

Operation = Callable[[Tensor], Tensor]
Bilinear = Callable[[Tensor, Tensor], Tensor]


class Rules(Protocol):
    """Derivatives for the operations of which a transformer is made."""

    def elementwise(self, function: Operation, x: Tensor) -> Tensor:
        """Returns `function(x)` for a non-linearity that acts on each element."""
        ...

    def product(self, function: Bilinear, a: Tensor, b: Tensor) -> Tensor:
        """Returns `function(a, b)`, linear in each of two activations."""
        ...

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        """Returns the softmax of finite scores."""
        ...

    def logsumexp(self, x: Tensor, dim: int) -> Tensor:
        """Returns the logarithm of the sum of exponentials, without `dim`."""
        ...

    def inverse_root(self, x: Tensor) -> Tensor:
        """Returns 1 / sqrt(x) of positive numbers, what a norm divides by."""
        ...

    def maximum(self, x: Tensor, dim: int) -> Tensor:
        """Returns the maximum, without `dim`."""
        ...


class Propagation(TorchFunctionMode):
    """The context in which a network runs by rules.

    torch suspends a mode inside its own handler: a rule may call any operation.

    Args:
        rules: what is done in place of each operation.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if not args or not _is_activation(args[0]):
            return func(*args, **given)
        if func in ELEMENTWISE:
            return self.rules.elementwise(_unary(func, args, given), args[0])
        if func in PRODUCTS and len(args) == 2 and _is_activation(args[1]) and not given:
            return self.rules.product(func, args[0], args[1])
        if func in INVERSE_ROOTS:
            return self.rules.inverse_root(args[0])
        if func in SOFTMAXES:
            return self._softmax(*args, **given)
        if func in LOGSUMEXPS:
            return self._logsumexp(*args, **given)
        if func in MAXIMA:
            return self._maximum(*args, **given)
        if func is functional.layer_norm:
            return self._layer_norm(*args, **given)
        if func is functional.scaled_dot_product_attention and not given.get("enable_gqa"):
            return self._attention(*args, **given)
        return func(*args, **given)

    def _softmax(
        self, x: Tensor, dim: int, *_: int, dtype: torch.dtype | None = None, **__: int
    ) -> Tensor:
        scores = x if dtype is None else x.to(dtype)
        return self.rules.softmax(scores.clamp(min=LOWEST), dim)

    def _logsumexp(self, x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
        found = self.rules.logsumexp(x, dim)
        return found.unsqueeze(dim) if keepdim else found

    def _maximum(self, x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
        """Brings several dimensions, by default all, into one at the end."""
        chosen = [dim] if isinstance(dim, int) else list(dim) or list(range(x.ndim))
        places = [place % x.ndim for place in chosen]
        rest = [place for place in range(x.ndim) if place not in places]
        found = self.rules.maximum(x.permute(*rest, *places).flatten(len(rest)), -1)
        if not keepdim:
            return found
        return found.reshape([1 if row in places else size for row, size in enumerate(x.shape)])

    def _layer_norm(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """Writes the layer norm out: (x - mean) / sqrt(variance + eps), scaled and shifted."""
        dims = tuple(range(-len(normalized_shape), 0))
        centred = x - x.mean(dims, keepdim=True)
        squares = self.rules.product(torch.mul, centred, centred)
        scale = self.rules.inverse_root(squares.mean(dims, keepdim=True) + eps)
        found = self.rules.product(torch.mul, centred, scale)
        if weight is not None:
            found = found * weight
        return found if bias is None else found + bias

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Writes fused attention out: [..., tokens, hidden] each, scores [..., tokens, tokens]."""
        assert dropout_p == 0, "the model runs in eval mode"
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = self.rules.product(torch.matmul, query * factor, key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, LOWEST)
        elif attn_mask is not None:
            scores = (scores + attn_mask).clamp(min=LOWEST)
        return self.rules.product(torch.matmul, self.rules.softmax(scores, -1), value)


ELEMENTWISE = frozenset(
    {
        functional.elu,
        functional.gelu,  # exact and by tanh
        functional.leaky_relu,
        functional.mish,
        functional.relu,
        functional.relu6,
        functional.silu,
        functional.softplus,
        torch.erf,
        torch.exp,
        torch.pow,
        torch.relu,
        torch.sigmoid,
        torch.square,
        torch.tanh,
        Tensor.__pow__,
        Tensor.erf,
        Tensor.exp,
        Tensor.pow,
        Tensor.relu,
        Tensor.sigmoid,
        Tensor.square,
        Tensor.tanh,
    }
)
PRODUCTS = frozenset(
    {torch.bmm, torch.matmul, torch.mul, Tensor.bmm, Tensor.matmul, Tensor.mul, Tensor.__matmul__}
)
INVERSE_ROOTS = frozenset({torch.rsqrt, Tensor.rsqrt})
SOFTMAXES = frozenset({functional.softmax, torch.softmax, Tensor.softmax})
LOGSUMEXPS = frozenset({torch.logsumexp, Tensor.logsumexp})
MAXIMA = frozenset({torch.amax, Tensor.amax})


def slope(function: Operation, start: Tensor, end: Tensor, *, relative: bool = False) -> Tensor:
    """Returns the slope of the chord between two points, elementwise.

    Where the points lie within `STEP` of their midpoint it is the derivative there, by a central
    difference, so that no difference is divided by a tinier one. All is computed in float64:
    in float32 the quotient of two small differences would keep few digits or none.

    Args:
        function: acts on each element.
        start: of any shape.
        end: of the same shape; the result has its type.
        relative: `STEP` is a share of the midpoint even where that is below 1, for functions of
            positive numbers.
    """
    with torch.no_grad():
        low, high = start.double(), end.double()
        middle, half = (low + high) / 2, (high - low) / 2
        least = STEP * middle.abs()
        if not relative:
            least = least.clamp(min=STEP)
        close = half.abs() < least
        low, high = low.where(~close, middle - least), high.where(~close, middle + least)
        return ((function(high) - function(low)) / (high - low)).to(end.dtype)


def follow(value: Tensor, slopes: Tensor, x: Tensor) -> Tensor:
    """Returns `value` with the derivative `slopes` by each element of x."""
    return value.detach() + slopes * (x - x.detach())  # the difference is zero and has a gradient


def _is_activation(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _unary(func: Callable[..., Tensor], args: tuple[Any, ...], given: dict[str, Any]) -> Operation:
    """Binds the arguments after the first; an operation in place would overwrite its input."""
    rest = {name: value for name, value in given.items() if name != "inplace"}
    return lambda x: func(x, *args[1:], **rest)
