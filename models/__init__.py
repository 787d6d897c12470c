"""What a trained pair of classifier and explainer is: torch-free, for training and service."""

from pathlib import Path
from typing import Final

SHIPPED: Final = Path(__file__).resolve().parent / "pretrained" / "reviews"  # the bundle's folder
