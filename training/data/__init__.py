"""Labelled texts from files, ERASER directories, packages and the hub."""

from training.data.example import DataError, Example
from training.data.load import load, sample

__all__ = ["DataError", "Example", "load", "sample"]
