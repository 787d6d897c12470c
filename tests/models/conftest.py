"""What several tests of graphs share."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest


@pytest.fixture(scope="session")
def feed(tiny_values: dict[str, float]) -> dict[str, npt.NDArray[Any]]:
    """Five rows of nine tokens for the tiny graph, one with pads, and targets of each kind."""
    ids = np.random.default_rng(0).integers(0, len(tiny_values), (5, 9))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "target": np.array([-1, 0, 1, -1, 0])}
