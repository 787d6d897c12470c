"""The classifier and explainer of a bundle in torch, for servers made otherwise.

Texts are cut, batched and decoded by our own code, so that a peer differs from us in its runtime
and in how it serves, and in nothing else. The settings come from the environment: PEER_BUNDLE,
PEER_PRECISION (fp32 or bf16), PEER_THREADS and PEER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from models.bundle import Bundle, load
from models.explainer import Explainer
from models.session import IntArray, OnnxSession, Outputs
from training.export.graph import FusedModel, to_torch
from training.runtime import autocast, tune_memory, use_threads


class TorchSession:
    """Stands where ONNX Runtime stands: arrays in, arrays out.

    Args:
        bundle: whose modules are rebuilt.
        precision: `fp32`, or `bf16` by autocast.

    Attributes:
        batch_tokens: padded tokens of one run at most; torch takes large ones the quickest.
        retargets: see `OnnxSession`.
        runners: likewise; torch shares its threads among all that is run.
    """

    batch_tokens = 16_384
    retargets = False
    runners = 1

    def __init__(self, bundle: Bundle, precision: str) -> None:
        black_box, network = to_torch(bundle)
        self._fused = FusedModel(black_box.model, network).eval()
        self._precision = precision

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        target: IntArray,
        *,
        explain: bool,
        keep: bool = False,
    ) -> Outputs:
        """See `OnnxSession.run`; always explains, for nobody here asks for less."""
        arrays = (input_ids, attention_mask, target)
        with torch.inference_mode(), autocast(self._precision):
            found = self._fused(*(torch.from_numpy(array) for array in arrays))
        return Outputs(*(part.float().numpy() for part in found))


def torch_explainer() -> Explainer:
    """The bundle of the environment, in torch, on as many threads as that says."""
    tune_memory()
    if threads := os.environ.get("PEER_THREADS"):
        torch.set_num_threads(int(threads))
    else:
        use_threads()
    bundle = load(Path(os.environ["PEER_BUNDLE"]))
    session = TorchSession(bundle, os.environ.get("PEER_PRECISION", "fp32"))
    return Explainer(bundle, cast("OnnxSession", session))


def answer(explainer: Explainer, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Labels and rationales, as /predict gives them."""
    return [
        {
            "label": found.label,
            "score": found.score,
            "rationale": [span.to_dict() for span in found.rationale],
        }
        for found in explainer.explain(texts)
    ]


def port() -> int:
    """Where to listen."""
    return int(os.environ["PEER_PORT"])
