"""A bundle's classifier as it is served: its own graph, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

from models.explainer import Explainer
from models.text import BoolArray, Document, FloatArray, TextEncoder


class OnnxBlackBox:
    """Answers from a bundle's session, in its precision; a `BlackBox`.

    Args:
        explainer: the loaded bundle.
    """

    eps: float | None = None

    def __init__(self, explainer: Explainer) -> None:
        self.labels = explainer.labels
        self.encoder: TextEncoder = explainer.encoder
        self._explainer = explainer

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """See `BlackBox.logits`."""
        return self._explainer.logits(documents, keep)
