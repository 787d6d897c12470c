"""A LitServe server: its own batches, torch.

    PEER_BUNDLE=DIR PEER_PORT=8001 python -m tests.bench.peers.litserve_torch

A batch is what came within PEER_BATCH_SECONDS (0.005), up to PEER_BATCH (16) texts.
"""

import importlib
import os
from typing import Any

from models.explainer import Explainer
from tests.bench.peers.torch_pair import answer, port, torch_explainer

# Annotations are evaluated here, for LitServe reads that of `request` to know the body.
# By its name: it is in the environment of this peer, and in no extra of ours.
litserve = importlib.import_module("litserve")


class Pair(litserve.LitAPI):  # type: ignore[misc, name-defined]
    """Labels and rationales of a batch."""

    explainer: Explainer

    def setup(self, device: str) -> None:
        """Loads, in the worker's process."""
        self.explainer = torch_explainer()

    def decode_request(self, request: dict[str, Any]) -> str:
        """The text."""
        return str(request["text"])

    def batch(self, inputs: list[str]) -> list[str]:
        """As they are: rows are padded by their lengths, in `predict`."""
        return inputs

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        """Answers a batch."""
        return answer(self.explainer, x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """The body."""
        return output


if __name__ == "__main__":
    api = Pair(
        max_batch_size=int(os.environ.get("PEER_BATCH", "16")),
        batch_timeout=float(os.environ.get("PEER_BATCH_SECONDS", "0.005")),
    )
    litserve.LitServer(api, accelerator="cpu", timeout=60).run(
        host="127.0.0.1", port=port(), generate_client_file=False, log_level="warning"
    )
