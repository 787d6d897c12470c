"""The tools of tests/bench/precision.py, on a tiny bundle."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.explainer import Explainer
from models.session import OnnxSession
from tests.bench.precision import (
    REFERENCE,
    against_reference,
    make_bundles,
    precision_to_markdown,
    rows,
    run_worker,
    widen,
)
from tests.bench.precision_worker import measure

TEXTS = ["the plot was great and very funny .", "dull", "A Warm film; NOT boring!"] * 3


@pytest.fixture(scope="module")
def measured(torch_bundle):
    return measure(
        {
            "bundle": str(torch_bundle.path),
            "device": "cpu",
            "threads": 1,
            "texts": TEXTS,
            "shapes": [(1, 8), (2, 16)],
            "repeats": 1,
        }
    )


def test_a_widened_graph_computes_the_same(torch_bundle):
    model = widen(torch_bundle.model_bytes())
    graph = onnx.load_model_from_string(model).graph
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}
    assert len(model) > 1.3 * len(torch_bundle.model_bytes())
    ids = np.random.default_rng(0).integers(5, 60, (3, 24))
    found = [
        OnnxSession(one, device="cpu", threads=1).run(
            ids, np.ones_like(ids), np.full(3, -1), explain=True
        )
        for one in (model, torch_bundle.model_bytes())
    ]
    assert found[0].logits.tobytes() == found[1].logits.tobytes()
    assert found[0].weights.tobytes() == found[1].weights.tobytes()


def test_the_worker_measures_time_and_answers(measured, torch_bundle):
    explainer = Explainer.load(torch_bundle.path, device="cpu")
    assert measured["labels"] == [answer.label for answer in explainer.explain(TEXTS)]
    assert measured["ms"].keys() == {"1x8", "2x16"}
    assert all(one > 0 for taken in measured["ms"].values() for one in taken.values())
    assert measured["batch_equal"] == 1.0
    assert (measured["device"], measured["threads"]) == ("cpu", 1)
    assert "onnxruntime" in measured["runtime"]
    assert json.loads(json.dumps(measured)) == measured


def test_every_form_of_a_bundle_can_be_measured(torch_bundle, tmp_path):
    found = make_bundles(torch_bundle, TEXTS, tmp_path)
    assert found.keys() == {"fp32", "wide", "fp16", "int8"}
    task = {"device": "cpu", "threads": 1, "texts": TEXTS[:2], "shapes": [(1, 8)], "repeats": 1}
    row = run_worker(sys.executable, {**task, "bundle": str(found["int8"])}, tmp_path)
    assert len(row["labels"]) == 2


def test_rows_are_compared_with_the_first(measured):
    other = json.loads(json.dumps(measured))
    other["labels"][0] = "neither"
    other["logits"][1][0] += 0.5
    measured = {**measured, "rationales": [[1, 5]] * len(TEXTS)}
    other["rationales"] = [[1, 5]] * (len(TEXTS) - 1) + [[5, 9]]
    found = against_reference({REFERENCE: measured, "other": other})
    assert found[REFERENCE]["label_agreement"] == found[REFERENCE]["rationale_f1"] == 1.0
    assert found[REFERENCE]["largest_difference"] == 0.0
    row = found["other"]
    assert row["label_agreement"] == pytest.approx(8 / 9)
    assert row["rationale_f1"] == pytest.approx((8 + 0.5) / 9)
    assert row["largest_difference"] == pytest.approx(0.5)
    assert not {"labels", "logits", "rationales"} & row.keys()


def test_the_tables_have_a_line_for_each_row(measured):
    result = {"rows": against_reference({REFERENCE: measured, "int8": measured})}
    table = precision_to_markdown(result)
    first, second = table.split("\n\n")
    assert first.splitlines()[0] == "| ms per text, batch x tokens | 1x8 | 2x16 |"
    for part in (first, second):
        lines = part.splitlines()
        assert len(lines) == 4
        assert len({line.count("|") for line in lines}) == 1
    assert "| int8 |" in table


def test_openvino_needs_an_environment_of_its_own(capsys):
    assert not any(device.startswith("openvino") for _, device, _ in rows(None).values())
    assert "--openvino" in capsys.readouterr().err
    found = rows(Path("ov/bin/python"))
    assert found["OpenVINO bf16"] == ("fp32", "openvino-bf16", "ov/bin/python")
