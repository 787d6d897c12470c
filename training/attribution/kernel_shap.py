"""Kernel SHAP (Lundberg and Lee, NIPS 2017, theorem 2) with what was learnt about it since.

Coalitions come in pairs with their complements (Covert and Lee, AISTATS 2021, sec. 3.2), none
twice; each is weighted by its kernel over its chance to be among the draws (Olsen and Jullum,
2024, sec. 3), so that the estimate becomes exact when all are drawn. The full and the null text
have their true values, and the weights sum to the difference exactly. `shap.KernelExplainer`
takes one text at a time and fits once; here copies of many texts share the batches, and a larger
budget goes on from a smaller one. With all coalitions both give the same weights (tested).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

from models.text import BoolArray, FloatArray
from training.attribution.perturbation import ENDS, PerturbationTeacher, start_masks

# Pairs over words - 1: up to the first number halves of the pairs, from the second on residuals
# tell how reliable an estimate is; measured on toys (tests/training/test_reliability.py).
DETERMINED = (0.8, 4 / 3)
LISTED = 14  # up to so many words all pairs (8,191) are listed and drawn from the list


def count(words: int, budget: int) -> int:
    """Returns the copies of as many pairs as fit into the budget and exist."""
    if words < 2:
        return ENDS
    pairs = (budget - ENDS) // 2
    return ENDS + 2 * (pairs if words > 60 else min(pairs, 2 ** (words - 1) - 1))


def draw(words: int, copies: int, rng: np.random.Generator) -> BoolArray:
    """Draws pairs of coalitions without replacement; see `PerturbationTeacher.draw`."""
    masks = start_masks(copies, words)
    if copies == ENDS:
        return masks
    pick = _draw_listed if words <= LISTED else _draw_singly
    chosen = pick(words, (copies - ENDS) // 2, rng)
    masks[ENDS::2] = chosen
    masks[ENDS + 1 :: 2] = ~chosen
    return masks


def estimate(masks: BoolArray, values: FloatArray) -> FloatArray:
    """Solves the constrained least squares of Kernel SHAP.

    Where there are fewer coalitions than words, the solution of least norm beside an equal share
    for all is taken.

    Args:
        masks: bool [copies, words]; row 0 is the full, row 1 the null text, then coalitions.
        values: float64 [copies].

    Returns:
        float64 [words], with the sum `values[0] - values[1]`.
    """
    words = masks.shape[1]
    share = np.full(words, (values[0] - values[1]) / words)
    if len(masks) == ENDS:
        return share
    design, rest = _equations(masks, values)
    # Weights beside the equal share sum to 0; rows that sum to 0 have least-norm solutions that do.
    beside, *_ = np.linalg.lstsq(design, rest, rcond=None)
    result: FloatArray = share + beside - beside.mean()  # the mean is rounding error
    return result


def halve(masks: BoolArray, values: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Estimates twice around the whole estimate, each with the noise of half of the pairs.

    The noise of a regression grows without bound as its equations (a pair is one) become as few as
    its unknowns. Regressions on half of the pairs may be there while that on all is good, so they
    say nothing of it. Instead the residuals of the odd pairs, each over the root of what its own
    pair left it (MacKinnon and White, 1985: HC2), move the whole estimate one way, those of the
    even pairs the other. With far fewer pairs than words there are no residuals, halves are good
    again and taken; between, neither is, and two constants say so (`DETERMINED`).

    Args:
        masks: as for `estimate`, two pairs at least.
        values: float64 [copies].

    Returns:
        Two arrays float64 [words], or None: take the estimates from half of the pairs.
    """
    pairs, unknown = (len(masks) - ENDS) // 2, masks.shape[1] - 1
    fewest, enough = DETERMINED
    if pairs <= fewest * unknown:
        return None
    if pairs < enough * unknown:
        return np.zeros(unknown + 1), np.zeros(unknown + 1)
    design, rest = _equations(masks, values)
    # Both rows of a pair say the same: what is even in the two has no part in the solution.
    residual = (rest[0::2] - rest[1::2]) / 2
    left, scales, right = np.linalg.svd(design[0::2], full_matrices=False)
    kept = scales > 1e-10 * scales[0]
    left, scales, right = left[:, kept], scales[kept], right[kept]
    residual = residual - left @ (left.T @ residual)
    leverage = np.square(left).sum(axis=1)
    # A pair that alone determines something has leverage 1 and no residual.
    signed = residual / np.sqrt(np.maximum(1.0 - leverage, 1e-9))
    signed[1::2] *= -1
    moved = right.T @ ((left.T @ signed) / scales)
    whole = estimate(masks, values)
    return whole + moved, whole - moved


def _equations(masks: BoolArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the weighted least squares for the weights beside the equal share.

    Returns:
        The matrix [coalitions, words], whose rows sum to 0, and the right side [coalitions].
    """
    words = masks.shape[1]
    coalitions = masks[ENDS:]
    sizes = coalitions.sum(axis=1)
    roots = np.sqrt(coalition_weights(words, len(coalitions) // 2)[sizes - 1])
    # What the equal share explains is taken away, so only centred masks matter.
    centred = coalitions - (sizes / words)[:, None]
    rest = values[ENDS:] - values[1] - (values[0] - values[1]) * sizes / words
    return centred * roots[:, None], rest * roots


def coalition_weights(words: int, pairs: int) -> FloatArray:
    """Returns the regression weight of a drawn coalition of each size 1 … words - 1.

    It is p / (1 - (1 - p)^L): p is a pair's share of the kernel, L the number of draws with
    replacement after which so many different pairs are expected.

    Args:
        words: at least 2.
        pairs: at least 1.
    """
    sizes = np.arange(1, words)
    mass = _size_chances(words)
    log_count = gammaln(words + 1) - gammaln(sizes + 1) - gammaln(words - sizes + 1)
    chance = 2.0 * mass * np.exp(-log_count)  # of one pair with sizes s and n - s
    # The pairs of a size are counted from both sides, hence half their mass each.
    if words <= 60 and pairs >= 2 ** (words - 1) - 1:
        everything: FloatArray = chance
        return everything

    def drawn_over_chance(draws: float) -> FloatArray:
        small = chance < 1e-12
        safe = np.where(small, 0.5, chance)
        return np.where(small, draws, -np.expm1(draws * np.log1p(-safe)) / safe)

    low, high = float(pairs), 2.0 * pairs
    while (mass * drawn_over_chance(high)).sum() < pairs:
        low, high = high, 2.0 * high
    while high - low > 1e-6 * low:
        middle = (low + high) / 2
        if (mass * drawn_over_chance(middle)).sum() < pairs:
            low = middle
        else:
            high = middle
    result: FloatArray = 1.0 / drawn_over_chance(high)
    return result


def _size_chances(words: int) -> FloatArray:
    """Returns the kernel's share of each size 1 … words - 1, the chance to draw it."""
    sizes = np.arange(1, words)
    mass = 1.0 / (sizes * (words - sizes))
    result: FloatArray = mass / mass.sum()
    return result


def _draw_listed(words: int, pairs: int, rng: np.random.Generator) -> BoolArray:
    """Draws from the list of all pairs, each standing as the coalition that has word 0."""
    codes = 2 * np.arange(2 ** (words - 1) - 1) + 1
    listed = (codes[:, None] >> np.arange(words)) & 1 == 1
    sizes = listed.sum(axis=1)
    number = np.array([math.comb(words, size) for size in range(1, words)])
    chance = (_size_chances(words) / number)[sizes - 1]
    # The order of exponential clocks is that of draws without replacement.
    order = np.argsort(rng.exponential(size=len(codes)) / chance, kind="stable")
    chosen: BoolArray = listed[order[:pairs]]
    return chosen


def _draw_singly(words: int, pairs: int, rng: np.random.Generator) -> BoolArray:
    cumulated = np.cumsum(_size_chances(words))
    chosen = np.zeros((pairs, words), dtype=np.bool_)
    seen: set[bytes] = set()
    while len(seen) < 2 * pairs:
        size = 1 + int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
        row = np.zeros(words, dtype=np.bool_)
        row[rng.permutation(words)[: min(size, words - 1)]] = True
        if row.tobytes() not in seen:
            chosen[len(seen) // 2] = row
            seen |= {row.tobytes(), (~row).tobytes()}
    return chosen


TEACHER = PerturbationTeacher(
    "kernel_shap",
    count=count,
    draw=draw,
    estimate=estimate,
    unit=lambda words: 2 if words > 1 else 0,
    least=4,
    halve=halve,
)
