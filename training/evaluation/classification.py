"""How well a classifier classifies, apart from any explanation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from models.text import FloatArray, IntArray
from training.blackbox.protocol import softmax


def measure_classification(
    logits: FloatArray, gold: IntArray, labels: Sequence[str]
) -> dict[str, Any]:
    """Returns the usual measures, plain JSON types.

    Args:
        logits: float64 [n, classes].
        gold: class indices, int [n].
        labels: names of the classes.

    Returns:
        `accuracy`; `confusion`, counts, rows by gold class; `labels`, for each label `precision`,
        `recall`, `f1` (0 where nothing was found or is to be found) and `support`; `macro_f1`, the
        mean over the classes that occur; `roc_auc`, of the last of two classes that occur by the
        difference of their logits, or of more the macro mean of one against the rest; None where
        only one occurs. All but counts in [0, 1].
    """
    found, classes = logits.argmax(axis=1), np.arange(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, found, labels=classes, zero_division=0.0
    )
    return {
        "accuracy": float((found == gold).mean()),
        "roc_auc": _roc_auc(logits, gold),
        "macro_f1": float(f1[support > 0].mean()),
        "labels": {
            label: {
                "precision": float(precision[row]),
                "recall": float(recall[row]),
                "f1": float(f1[row]),
                "support": int(support[row]),
            }
            for row, label in enumerate(labels)
        },
        "confusion": confusion_matrix(gold, found, labels=classes).tolist(),
    }


def _roc_auc(logits: FloatArray, gold: IntArray) -> float | None:
    occurring = np.unique(gold)
    if len(occurring) < 2:
        return None
    if len(occurring) == 2:
        first, last = occurring
        return float(roc_auc_score(gold == last, logits[:, last] - logits[:, first]))
    scores = softmax(logits[:, occurring])
    return float(roc_auc_score(gold, scores, multi_class="ovr", labels=occurring))
