"""What `metrics.json` says of a black box when its training has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.blackbox.copies import LabelledDocument
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.output import has_rationale_layer
from training.blackbox.rationale_fit import measure_rationale
from training.evaluation.classification import measure_classification
from training.evaluation.neutral import measure_neutral


def measure_trained(
    black_box: HuggingFaceBlackBox,
    validation: Mapping[str, Sequence[LabelledDocument]],
    neutral: bool,
    seed: int,
) -> dict[str, Any]:
    """Measures a black box on the validation texts of each source.

    Args:
        black_box: trained.
        validation: by name of the source, at least one text each.
        neutral: whether it was to learn a neutral class.
        seed: of the spans that the neutral measure masks.

    Returns:
        By name of the source `accuracy`, all `measures` of classification, and where there is
        something to measure `neutral` and, of a rationale layer, `rationale`; plain JSON types.
    """
    measures = {
        name: measure_classification(
            black_box.logits([document.document for document in part]),
            np.array([document.label for document in part]),
            black_box.labels,
        )
        for name, part in validation.items()
    }
    found: dict[str, Any] = {
        "accuracy": {name: part["accuracy"] for name, part in measures.items()},
        "measures": measures,
    }
    if neutral:
        found["neutral"] = {
            name: measure_neutral(black_box, part, seed) for name, part in validation.items()
        }
    if has_rationale_layer(black_box.model):
        found["rationale"] = {
            name: measure_rationale(black_box, part) for name, part in validation.items()
        }
    return found
