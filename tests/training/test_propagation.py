import math

import pytest
import torch
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from training.attribution.deep_shap import DeepShapRules
from training.attribution.lrp import LrpRules
from training.attribution.propagation import Operation, Propagation, slope

MASK = torch.tensor([True, True, True, False])  # of keys
BIAS = torch.where(MASK, 0.5, torch.finfo(torch.float32).min)
ACTIVATIONS: dict[str, Operation] = {
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.045 * torch.pow(x, 3.0)))),
    "gelu_python": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "relu": functional.relu,
    "relu in place": torch.nn.ReLU(inplace=True),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
OPERATIONS: dict[str, Operation] = ACTIVATIONS | {
    "softmax": lambda x: functional.softmax(x, dim=-1),
    "softmax of masked": lambda x: (x + BIAS).softmax(-1),
    "softmax of -inf": lambda x: x.masked_fill(~MASK, -torch.inf).softmax(dim=1),
    "softmax in float64": lambda x: torch.softmax(x, -1, dtype=torch.float64).float(),
    "logsumexp": lambda x: x.logsumexp(1),
    "logsumexp, dimension kept": lambda x: torch.logsumexp(x, dim=1, keepdim=True),
    "layer_norm": lambda x: functional.layer_norm(x, (4,)),
    "affine layer_norm": torch.nn.LayerNorm(4),
    "root mean square norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "product": lambda x: x * x.flip(0),
    "matmul": lambda x: x @ x.T,
    "attention": lambda x: functional.softmax(x @ x.T, dim=-1) @ x.sin(),
    "sdpa": lambda x: scaled_dot_product_attention(x, x + 1, 2 * x),
    "sdpa, bool mask": lambda x: scaled_dot_product_attention(x, x, x, attn_mask=MASK),
    "sdpa, float mask": lambda x: scaled_dot_product_attention(x, x, x, BIAS, scale=0.25),
    "sdpa, causal": lambda x: scaled_dot_product_attention(x, x, x, None, 0.0, True),
    "attention of another view": lambda x: torch.bmm(x[None], x.T[None]).softmax(2),
}
OWN_GRADIENT = ("attention",)  # sin has no rule


def draw(seed, scale=1.0):
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) * scale


def run_deep_shap(function, x, reference):
    """Value of the text, of the reference, and what each element contributes to a weighted sum."""
    rules = DeepShapRules()
    inputs = x.clone().requires_grad_()
    with Propagation(rules):
        with torch.no_grad():
            before = function(reference.clone())
        rules.recording = False
        now = function(inputs * 1)  # not a leaf: an operation in place may not touch a leaf
    assert not rules.tape
    weights = torch.randn(now.shape, generator=torch.Generator().manual_seed(9))
    (found,) = torch.autograd.grad((now * weights).sum(), inputs)
    return now.detach(), before, (x - reference) * found, (weights * (now - before)).sum().item()


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - set(OWN_GRADIENT)))
@pytest.mark.parametrize("scale", [1e-9, 1.0, 12.0])
def test_deep_shap_shares_out_the_whole_difference(name, scale):
    function = OPERATIONS[name]
    x, reference = draw(1), draw(1) + draw(2, scale)
    now, before, parts, gap = run_deep_shap(function, x, reference)
    with torch.no_grad():
        torch.testing.assert_close(now, function(x.clone()), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(before, function(reference.clone()), atol=1e-5, rtol=1e-5)
    assert parts.sum().item() == pytest.approx(gap, rel=1e-4, abs=1e-5)
    assert scale == 1e-9 or abs(gap) > 1e-2


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"relu", "relu in place"}))
def test_deep_shap_of_a_tiny_difference_is_the_gradient(name):
    """Nothing explodes where a quotient would be 0 / 0."""
    function = OPERATIONS[name]
    x = draw(1)
    inputs = x.clone().requires_grad_()
    expected = function(inputs)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (gradient,) = torch.autograd.grad((expected * weights).sum(), inputs)
    step = torch.full_like(x, 2**-20)
    _, _, parts, _ = run_deep_shap(function, x, x - step)
    torch.testing.assert_close(parts / step, gradient, atol=2e-4, rtol=2e-4)


def test_an_operation_without_a_rule_leaks():
    _, _, parts, gap = run_deep_shap(OPERATIONS["attention"], draw(1), draw(2))
    assert abs(parts.sum().item() - gap) > 0.05 * abs(gap)


def test_a_common_shift_of_scores_contributes_nothing_to_a_softmax():
    """exp(s) times 1 / sum(exp(s)) would answer with contributions of sinh(20) = 2e8."""
    _, _, parts, gap = run_deep_shap(lambda x: x.softmax(-1), draw(1) + 20, draw(1))
    assert gap == pytest.approx(0, abs=1e-5)
    assert parts.abs().max() < 20
    torch.testing.assert_close(parts.sum(-1), torch.zeros(4), atol=1e-4, rtol=0)


def test_far_scores_stay_finite():
    _, _, parts, gap = run_deep_shap(lambda x: x.softmax(-1), draw(1, 300), draw(2, 300))
    assert parts.isfinite().all()
    assert parts.sum().item() == pytest.approx(gap, rel=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lrp_passes_all_of_an_activation_on(name):
    """Relevance x f'(x) of the linear model is f(x) - f(0), at 0 too."""
    x = draw(3)
    x[0] = 0
    inputs = x.clone().requires_grad_()
    with Propagation(LrpRules()):
        found = ACTIVATIONS[name](inputs * 1)
    (multipliers,) = torch.autograd.grad(found.sum(), inputs)
    with torch.no_grad():
        expected = ACTIVATIONS[name](x.clone()) - ACTIVATIONS[name](torch.zeros_like(x))
    torch.testing.assert_close(x * multipliers, expected, atol=1e-6, rtol=1e-5)
    assert multipliers[0].isfinite().all()
    if name in ("gelu", "silu"):
        torch.testing.assert_close(multipliers[0], torch.full((4,), 0.5))  # the derivative at 0


@pytest.mark.parametrize("mask", [None, MASK, BIAS])
def test_lrp_holds_attention_weights_constant(mask):
    query, key, value = (draw(seed).requires_grad_() for seed in (1, 2, 3))
    with Propagation(LrpRules()):
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    grads = torch.autograd.grad(found.sum(), [query, key, value], allow_unused=True)
    scores = (query @ key.T).detach() / 2
    if mask is not None:
        scores[:, 3] = -torch.inf
    weights = scores.softmax(-1)
    assert not any(isinstance(grad, torch.Tensor) for grad in grads[:2])
    torch.testing.assert_close(grads[2], weights.T @ torch.ones(4, 4), atol=1e-6, rtol=1e-5)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_lrp_holds_the_deviation_of_a_layer_norm_constant():
    x = draw(4).requires_grad_()
    with Propagation(LrpRules()):
        found = functional.layer_norm(x, (4,), eps=1e-5)
    torch.testing.assert_close(found, functional.layer_norm(x, (4,)), atol=1e-6, rtol=1e-5)
    weights = draw(5)
    (grad,) = torch.autograd.grad((found * weights).sum(), x)
    deviation = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (weights - weights.mean(-1, keepdim=True)) / deviation
    torch.testing.assert_close(grad, expected.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("swapped", [False, True])
def test_lrp_holds_the_divisor_of_another_norm_constant(swapped):
    x = draw(4).requires_grad_()
    scale = x.pow(2).mean(-1, keepdim=True).rsqrt().detach()
    with Propagation(LrpRules()):
        divisor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True))
        found = divisor * x if swapped else x * divisor
    (grad,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(grad, scale.expand(4, 4), atol=1e-6, rtol=1e-5)


def test_the_network_is_itself_again_outside_the_context():
    x = draw(1).requires_grad_()
    (expected,) = torch.autograd.grad(functional.gelu(x).sum(), x)
    with Propagation(LrpRules()):
        (inside,) = torch.autograd.grad(functional.gelu(x).sum(), x)
    (after,) = torch.autograd.grad(functional.gelu(x).sum(), x)
    assert torch.equal(after, expected)
    assert not torch.allclose(inside, expected)


def test_slopes_have_the_digits_of_their_type():
    start = torch.tensor([1.0, 1.0, -3.0, 0.0, -1e30])
    end = torch.tensor([1.0, 1.0 + 2**-20, 2.0, 0.0, -1e30])
    expected = [math.e, math.e, (math.exp(2) - math.exp(-3)) / 5, 1.0, 0.0]
    assert slope(torch.exp, start, end).tolist() == pytest.approx(expected, rel=1e-6)
    tiny = torch.tensor([1e-20, 1e-30])
    found = slope(torch.log, tiny, torch.tensor([1e-20, 1.0]), relative=True)
    assert found.tolist() == pytest.approx([1e20, math.log(1e30)], rel=1e-6)
