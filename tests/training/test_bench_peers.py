"""The pair in torch that peers of tests/bench/peers serve."""

from typing import cast

import pytest

from models.explainer import Explainer
from models.session import OnnxSession
from tests.bench.peers.torch_pair import TorchSession, answer

TEXTS = ["the plot was great and very funny .", "dull", "a moving story , loved the end . " * 12]


def test_a_peer_in_torch_answers_as_our_session(torch_bundle):
    ours = Explainer.load(torch_bundle.path, device="cpu")
    theirs = Explainer(torch_bundle, cast("OnnxSession", TorchSession(torch_bundle, "fp32")))
    for found, expected in zip(answer(theirs, TEXTS), ours.explain(TEXTS), strict=True):
        assert found["label"] == expected.label
        assert found["score"] == pytest.approx(expected.score, abs=1e-4)
        spans = [(span["start"], span["end"]) for span in found["rationale"]]
        assert spans == [(span.start, span.end) for span in expected.rationale]
