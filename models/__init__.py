"""What a trained pair of classifier and explainer is: torch-free, for training and service."""

from pathlib import Path
from typing import Final

_PRETRAINED: Final = Path(__file__).resolve().parent / "pretrained"
# The folders of the bundle that comes with l2e, of which `models.device.shipped_bundle` takes one.
SHIPPED: Final = _PRETRAINED / "reviews"
SHIPPED_INT8: Final = _PRETRAINED / "reviews-int8"
