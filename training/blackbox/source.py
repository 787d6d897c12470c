"""From a name on the command line to a black box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import bundle as bundles
from training.blackbox.callable import CallableBlackBox, is_function_spec, source_digest
from training.blackbox.huggingface import HuggingFaceBlackBox, state_digest
from training.blackbox.protocol import BlackBox


@dataclass(frozen=True)
class BlackBoxSource:
    """Where a black box comes from; small enough to be sent to another machine, which opens it.

    Attributes:
        name: folder of a bundle, `module:function`, `module:object.method`, or a checkpoint
            (`package:…`, folder, hub id).
        labels: names of the classes; None takes those of the black box.
        precision: `bf16` or `fp32`, of a torch model.
        mask_string: stands in place of dropped words in the texts that a function gets.
        max_tokens: longest window of a checkpoint; None takes what it was trained with, if it was
            trained here, else 512. A bundle names its own.
        overlap: of a checkpoint's windows; None likewise, else 32.
    """

    name: str
    labels: tuple[str, ...] | None = None
    precision: str = "fp32"
    mask_string: str = "[MASK]"
    max_tokens: int | None = None
    overlap: int | None = None

    def open(self) -> BlackBox:
        """Loads it.

        Raises:
            ValueError: one line saying what is missing or wrong.
        """
        if is_function_spec(self.name):
            return CallableBlackBox.from_spec(self.name, self.labels, mask_string=self.mask_string)
        if (Path(self.name) / bundles.MANIFEST).is_file():
            black_box = _open_bundle(Path(self.name), self.labels)
        else:
            black_box = HuggingFaceBlackBox.from_checkpoint(
                self.name,
                self.labels,
                max_tokens=self.max_tokens,
                overlap=self.overlap,
                new_head=False,
            )
        black_box.precision = self.precision
        return black_box


def identity(black_box: BlackBox, name: str = "") -> dict[str, Any]:
    """Returns what decides a black box's answers, for the key of a store.

    Args:
        black_box: a torch model, or a callable, of which only name and source file are known.
        name: of a callable.
    """
    if isinstance(black_box, HuggingFaceBlackBox):
        return {"classifier": state_digest(black_box), "precision": black_box.precision}
    assert isinstance(black_box, CallableBlackBox)
    return {
        "function": name or black_box.name,
        "source_sha256": source_digest(black_box.predict),
        "mask_string": black_box.encoder.mask_token,
        "eps": black_box.eps,
    }


def _open_bundle(folder: Path, labels: Sequence[str] | None) -> HuggingFaceBlackBox:
    from training.export.graph import to_torch  # the exporter takes a while to import

    bundle = bundles.load(folder)
    if labels is not None and tuple(labels) != bundle.manifest.labels:
        known = ",".join(bundle.manifest.labels)
        raise ValueError(f"{folder} has the labels {known}: leave --labels out")
    black_box, _ = to_torch(bundle)
    return black_box
