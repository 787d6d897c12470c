"""What must hold of a recipe's `[blackbox]`, each demand by the line that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.config import NO_COPIES, BlackBox, RecipeError
from training.data.example import Example


def black_box_demands(settings: BlackBox) -> dict[str, bool]:
    """Returns for each demand, in words, whether it is met.

    A setting that would have no effect is refused, as far as that can be told before a checkpoint
    is opened.
    """
    return {
        **_network_demands(settings),
        **_rationale_demands(settings),
        **_copy_demands(settings),
        **_feedback_demands(settings),
    }


def insist_on_rationales(settings: BlackBox, examples: Sequence[Example]) -> None:
    """Refuses what can only be learnt from human rationales where no training text has one.

    Raises:
        RecipeError: naming the setting.
    """
    layer = settings.architecture == "rationale" or settings.cnn.pooling == "evidence"
    wanted = {
        "feedback needs": (settings.feedback.every > 0, "leave feedback out"),
        "copies need": (settings.copies != NO_COPIES, "leave copies out"),
        "a rationale layer needs": (
            layer and settings.rationale.weight > 0,
            "learn from the labels alone with rationale.weight=0",
        ),
    }
    for need, (asked, cure) in wanted.items():
        if asked and not any(example.rationale for example in examples):
            raise RecipeError(
                f"blackbox: {need} human rationales and no training text has one: "
                f"give data in ERASER format or {cure}"
            )


def _network_demands(settings: BlackBox) -> dict[str, bool]:
    vocabulary, cnn, mlp = settings.vocabulary, settings.cnn, settings.mlp
    heads, feedback = cnn.attention_heads, settings.feedback
    return {
        "blackbox: cnn: give as many channels as kernels, at least one, and odd kernels": (
            len(cnn.channels) == len(cnn.kernels) > 0
            and min(cnn.channels) > 0
            and all(kernel > 0 and kernel % 2 for kernel in cnn.kernels)
        ),
        "blackbox: cnn: attention_heads: give a divisor of the last channels, or 0": (
            heads == 0
            # How many channels a trained one has is known when it is opened.
            or (heads > 0 and settings.architecture == "trained")
            or (heads > 0 and all(width % heads == 0 for width in cnn.channels[-1:]))
        ),
        "blackbox: cnn: vector_size: give at least 1": cnn.vector_size >= 1,
        "blackbox: dropout: give at least 0 and less than 1": (
            0 <= cnn.dropout < 1 and 0 <= mlp.dropout < 1 and 0 <= settings.rationale.dropout < 1
        ),
        "blackbox: mlp: units: give at least 1 each": min(mlp.units, default=1) >= 1,
        "blackbox: vocabulary: give size and least of at least 1, skip of at least 0": (
            vocabulary.size >= 1 and vocabulary.least >= 1 and vocabulary.skip >= 0
        ),
        "blackbox: cnn: attention of feedback needs attention_heads and scaled feedback": (
            cnn.attention == "always"
            or (heads > 0 and feedback.every > 0 and feedback.use == "scaled")
        ),
        "blackbox: cnn: pooling of evidence is for architecture cnn, or trained from one": (
            cnn.pooling == "max" or settings.architecture in ("cnn", "trained")
        ),
    }


def _rationale_demands(settings: BlackBox) -> dict[str, bool]:
    rationale, reads_marks = settings.rationale, settings.copies != NO_COPIES
    reads_marks = reads_marks or settings.feedback.every > 0
    return {
        "blackbox: rationale: give weight of at least 0 and pos_weight of more than 0": (
            rationale.weight >= 0 and rationale.pos_weight > 0
        ),
        "blackbox: rationale: power: give at least 1, finite": (1 <= rationale.power < math.inf),
        "blackbox: rationale: power is for votes, a pooling of evidence": (
            rationale.power == 1
            or settings.architecture == "trained"  # what votes there is known when it is opened
            or (settings.architecture == "rationale" and rationale.pooling == "evidence")
            or (settings.architecture == "cnn" and settings.cnn.pooling == "evidence")
        ),
        "blackbox: rationale: pooling is for architecture rationale; a cnn has its own": (
            rationale.pooling == "softmax" or settings.architecture == "rationale"
        ),
        "blackbox: rationale: random needs a rationale layer with some weight, copies or "
        "feedback": (not rationale.random or reads_marks or _may_pick(settings)),
    }


def _copy_demands(settings: BlackBox) -> dict[str, bool]:
    copies = settings.copies
    shares = (
        copies.without_rationale,
        copies.random_spans,
        copies.only_rationale,
        copies.graded,
    )
    return {
        "blackbox: copies: give shares of at least 0 that sum to at most 1": (
            min(shares) >= 0 and sum(shares) <= 1 + 1e-9
        ),
        "blackbox: copies: neutral needs without_rationale or graded": (
            not copies.neutral or copies.without_rationale > 0 or copies.graded > 0
        ),
    }


def _feedback_demands(settings: BlackBox) -> dict[str, bool]:
    feedback, copies = settings.feedback, settings.copies
    asked = feedback.every > 0
    return {
        "blackbox: feedback: give every and first of at least 0 and texts of at least 1": (
            min(feedback.every, feedback.first) >= 0 and feedback.texts >= 1
        ),
        "blackbox: feedback: use of copies needs shares of random_spans or graded copies": (
            not asked or feedback.use != "copies" or copies.random_spans + copies.graded > 0
        ),
        "blackbox: feedback: use of marks needs a rationale layer, trained with some weight": (
            not asked or feedback.use != "marks" or _may_pick(settings)
        ),
        "blackbox: feedback: give first of less than the epochs of fit": (
            not asked or feedback.first < settings.fit.epochs
        ),
        "blackbox: feedback: give a scale of more than 0, for marks of more than 1": (
            feedback.scale > (1 if feedback.use == "marks" else 0)
        ),
        "blackbox: feedback: give below in [0, 1]": 0 <= feedback.below <= 1,
    }


def _may_pick(settings: BlackBox) -> bool:
    """Says whether marks may be learnt: `trained` may bring a layer for it."""
    layer = settings.architecture in ("rationale", "trained") or (
        settings.architecture == "cnn" and settings.cnn.pooling == "evidence"
    )
    return layer and settings.rationale.weight > 0
