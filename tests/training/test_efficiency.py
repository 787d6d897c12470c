"""What `l2e bench` writes, and what it stands on: turns, texts, the classifier alone."""

import dataclasses
import json
import math
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from l2e import main
from models import bundle as bundles
from models.explainer import Explainer
from models.session import OnnxSession
from training.arguments import rival_budgets
from training.blackbox.graph import OnnxBlackBox
from training.evaluation.classifier_graph import classifier_alone
from training.evaluation.efficiency import WARM_UP, Plan, time_rivals
from training.evaluation.rivals import ALL, Place, Rival, place_of, rivals
from training.evaluation.speed_report import bench_to_markdown
from training.evaluation.texts import texts_of
from training.evaluation.timing import in_turns, quartiles, ratios, server_timing
from training.export.graph import to_torch

SIDES = ("classifier_ms", "label_only_ms", "reply_ms", "ratio", "label_ratio")
OTHERS = "occlusion,lime=10,lime_onnx=12,lime_package=14,captum_gradient"


@pytest.fixture(scope="module")
def explainer(torch_bundle):
    return Explainer.load(torch_bundle.path, device="cpu", threads=1)


def bench(bundle, *flags):
    """Runs `l2e bench`; what it printed is JSON."""
    return main(["bench", "--bundle", str(bundle.path), "--json", "-", *flags])


# The command


def test_bench_writes_a_row_for_each_length_and_batch(torch_bundle, capsys):
    flags = ("--tokens", "8,40", "--batches", "1,3", "--repeats", "2", "--against", OTHERS)
    assert bench(torch_bundle, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bundle"] == torch_bundle.digest
    assert (result["precision"], result["runtime"]["device"]) == ("fp32", "cpu")
    assert result["texts"]["repeats"] == 2
    assert (result["quick"], result["left_out"]) == (False, [])
    pairs = [(row["tokens"], row["batch"]) for row in result["rows"]]
    assert pairs == [(8, 1), (8, 3), (40, 1), (40, 3)]
    rivals = result["rivals"]
    assert {(one["device"], one["precision"]) for one in rivals.values()} == {("cpu", "fp32")}
    assert {name for name, one in rivals.items() if one["how"].startswith("torch")} == {
        "occlusion", "lime", "lime_package", "captum_gradient",
    }  # fmt: skip
    for row in result["rows"]:
        assert (row["device"], row["precision"], row["repeats"]) == ("cpu", "fp32", 2)
        for name in SIDES:
            low, high = row[f"{name}_quartiles"]
            assert 0 < low <= row[name] <= high
        assert row["skipped"] == {}
        assert [*row["teachers"]] == [name.partition("=")[0] for name in OTHERS.split(",")]
        for found in row["teachers"].values():
            assert found["ms"] > 0 < found["speedup"]
            assert (found["device"], found["precision"]) == ("cpu", "fp32")
            assert found["repeats"] in (1, 2)
        assert row["teachers"]["lime_onnx"]["evaluations"] == 12
        assert row["teachers"]["lime_package"]["budget"] == 14


def test_bench_in_a_hurry_says_what_it_left_out(torch_bundle, capsys):
    flags = ("--quick", "--tokens", "16,400", "--batches", "1,4", "--against", "lime=5000,gradient")
    assert bench(torch_bundle, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["texts"]["repeats"] == 3
    assert result["left_out"] == [{"tokens": 400, "batch": 4}]
    rows = {(row["tokens"], row["batch"]): row for row in result["rows"]}
    assert [*rows] == [(16, 1), (16, 4), (400, 1)]
    assert [*rows[16, 1]["teachers"]] == ["gradient"]
    assert "more than the 6,000 of --quick" in rows[16, 1]["skipped"]["lime"]
    assert rows[16, 4]["teachers"] == {}
    shown = bench_to_markdown(result)
    assert "--quick left out 400 tokens x 4; and 4 timings of others" in shown


def test_what_is_timed_once_is_warmed_up_on_a_short_text(explainer):
    asked = []
    black_box = OnnxBlackBox(explainer)
    rival = Rival(
        "long", 1, "by hand; at length", Place("elsewhere", "fp8"), lambda document: 2_000,
        lambda texts: asked.append(black_box.logits([black_box.encoder.encode(t) for t in texts])),
    )  # fmt: skip
    [text] = texts_of(explainer, 16, 1, seed=0)
    plan = Plan({}, repeats=3)
    found = time_rivals(explainer, [rival], [text], plan, reply=1.0, end=math.inf)
    [short] = texts_of(explainer, WARM_UP, 1, seed=0)
    assert len(asked) == 2
    for given, logits in zip((short, text), asked, strict=True):
        assert np.array_equal(logits, black_box.logits([black_box.encoder.encode(given)]))
    once = found["teachers"]["long"]
    assert (once["repeats"], once["device"], once["precision"]) == (1, "elsewhere", "fp8")


def test_places_of_rivals_are_their_own(torch_bundle, tmp_path):
    """Where the reply computes in int8, torch does not."""
    integer = bundles.save_changed(
        torch_bundle,
        tmp_path / "int8",
        precision="int8",
        golden=dataclasses.replace(torch_bundle.manifest.golden, tolerance={"int8": 0.2}),
    )
    explainer = Explainer.load(integer.path, device="cpu", threads=1)
    black_box, _ = to_torch(torch_bundle)
    found = rivals(explainer, black_box, {"lime": 10, "lime_onnx": 10, "captum_gradient": 0})
    places = {one.name: one.place for one in found}
    assert places["lime"] == places["captum_gradient"] == Place("cpu", "fp32")
    assert places["lime_onnx"] == place_of(explainer) == Place("cpu", "int8")


def test_bench_through_http(torch_bundle, capsys):
    flags = ("--quick", "--tokens", "8", "--batches", "1,2", "--against", "", "--http")
    assert bench(torch_bundle, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    single, several = result["http"]["rows"]
    assert {"queue", "tokenize", "run", "decode", "total"} <= set(single["server_ms"])
    assert single["http_ms"] > single["server_ms"]["total"]
    assert (several["tokens"], several["batch"]) == (8, 2)
    assert "through HTTP" in bench_to_markdown(result)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tokens", "7"), "--tokens 7: write numbers from 8 on"),
        (("--batches", "0"), "--batches 0: write numbers from 1 on"),
        (("--batches", "1,,2"), "--batches 1,,2"),
        (("--against", "lime_package=2"), "--against lime_package=2: write NAME"),
        (("--against", "captum_gradient=5"), "--against captum_gradient=5: write NAME"),
        (("--against", "lime,lime=5"), "--against lime is given twice"),
        (("--seed", "-1"), "--seed -1"),
    ],
)
def test_bench_with_flags_that_say_nothing(torch_bundle, capsys, flags, words):
    assert bench(torch_bundle, *flags) == 2
    assert words in capsys.readouterr().err


def test_all_rivals_have_a_budget_of_their_own():
    found = rival_budgets("all", None)
    assert [*found] == [*ALL]
    assert (found["lime"], found["lime_onnx"], found["lime_package"]) == (200, 200, 1000)
    assert (found["lrp"], found["captum_gradient"]) == (0, 0)
    assert rival_budgets("lime=50, lime_onnx=50,", 20) == {"lime": 50, "lime_onnx": 50}
    assert rival_budgets("", None) == {}


# What it stands on


def test_the_classifier_alone_answers_as_the_whole_graph_does(explainer, mixed_texts):
    whole = explainer.bundle.model_bytes()
    small = classifier_alone(whole)
    kept = {tensor.raw_data for tensor in onnx.load_model_from_string(small).graph.initializer}
    for tensor in onnx.load_model_from_string(whole).graph.initializer:
        if len(tensor.raw_data) > 100:  # else it may be a constant of both
            assert (tensor.raw_data in kept) == tensor.name.startswith("classifier."), tensor.name
    alone = Explainer(explainer.bundle, OnnxSession(small, device="cpu", threads=1))
    for ours, theirs in zip(
        alone.predict(mixed_texts), explainer.predict(mixed_texts), strict=True
    ):
        assert ours == theirs


def test_the_classifier_alone_has_no_choice_to_make(explainer):
    graph = onnx.load_model_from_string(classifier_alone(explainer.bundle.model_bytes())).graph
    assert not [node for node in graph.node if node.op_type == "If"]


def test_what_a_node_leaves_out_stays_left_out():
    """Here a mask of dropout, and the least value of a Clip behind it."""
    vectors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Dropout", ["x"], ["kept", ""]),
        helper.make_node("Clip", ["kept", "", "most"], ["logits"]),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2])
    most = helper.make_tensor("most", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "graph", vectors[:1], [logits, vectors[1]], [most])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    found = onnx.load_model_from_string(classifier_alone(model.SerializeToString())).graph
    assert [node.op_type for node in found.node] == ["Dropout", "Clip"]
    assert list(found.node[0].output)[1:] == [""]
    assert list(found.node[1].input)[1] == ""


def test_a_classifier_that_chooses_cannot_be_cut():
    value = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])
    ask = helper.make_tensor_value_info("ask", TensorProto.BOOL, [])
    branches = {}
    for name, number in (("then_branch", 1.0), ("else_branch", 2.0)):
        inner = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        constant = helper.make_node("Constant", [], [name], value_floats=[number])
        branches[name] = helper.make_graph([constant], name, [], [inner])
    graph = helper.make_graph(
        [helper.make_node("If", ["ask"], ["logits"], **branches)], "graph", [ask], [value]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(ValueError, match="a node If with a graph of its own"):
        classifier_alone(model.SerializeToString())


def test_any_graph_of_ours_can_be_cut(tiny_explainer, tiny_model_bytes):
    """The additive model of conftest has no parameters under torch's names."""
    alone = OnnxSession(classifier_alone(tiny_model_bytes), device="cpu", threads=1)
    found = Explainer(tiny_explainer.bundle, alone).predict(["A great story, but boring."])
    assert found == tiny_explainer.predict(["A great story, but boring."])


def test_texts_are_as_long_as_they_may_be(explainer):
    for tokens in (8, 24, 100):
        texts = texts_of(explainer, tokens, 3, seed=1)
        assert len(set(texts)) == 3
        assert texts == texts_of(explainer, tokens, 3, seed=1)
        assert texts != texts_of(explainer, tokens, 3, seed=2)
        for text in texts:
            assert count(explainer, text) <= tokens < count(explainer, f"{text} charming")


def count(explainer, text):
    """Tokens of all windows."""
    return sum(len(window.input_ids) for window in explainer.encode(text).windows)


def test_calls_take_turns_and_each_round_begins_with_another():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    spent = in_turns(calls, 3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(times) for name, times in spent.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_warm_call_is_made_twice_and_the_second_is_timed():
    made = []

    def call():
        made.append(0)
        if len(made) % 2:
            time.sleep(0.2)

    spent = in_turns({"call": call}, 3, warm=True)
    assert len(made) == 2 * 4
    assert len(spent["call"]) == 3
    assert max(spent["call"]) < 200  # as the first ones take at least


def test_quartiles_and_ratios():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == [2.0, 3.0, 4.0]
    assert ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]


def test_the_session_as_a_black_box_gives_the_logits_of_its_documents(explainer):
    black_box = OnnxBlackBox(explainer)
    documents = [black_box.encoder.encode(text) for text in ("a dull plot", "great music")]
    keep = [np.array([True, False, True]), np.array([True, True])]
    assert np.array_equal(black_box.logits(documents, keep), explainer.logits(documents, keep))


def test_the_stages_that_a_server_names():
    assert server_timing("queue;dur=0.10, total;dur=9.2") == {"queue": 0.1, "total": 9.2}
    assert server_timing("") == {}


def test_the_tables_of_a_benchmark():
    spread = {f"{name}_quartiles": [1.0, 2.0] for name in SIDES}
    place = {"device": "cpu", "precision": "fp32"}
    row = {**dict.fromkeys(SIDES, 1.5), **spread, **place, "repeats": 9, "skipped": {}}
    lime = {"ms": 300.0, "speedup": 200.0, "repeats": 1}
    result = {
        "quick": False,
        "left_out": [],
        "rivals": {
            "lime": {"budget": 200, "how": "torch", **place},
            "lrp": {"budget": 0, "how": "torch; by hand", **place},
        },
        "rows": [
            {**row, "tokens": 24, "batch": 1, "teachers": {"lime": lime}},
            {**row, "tokens": 24, "batch": 8, "teachers": {}},
        ],
    }
    assert bench_to_markdown(result).splitlines() == [
        "| tokens | batch | runs on | n | classifier alone | label only | label and rationale "
        "| label / classifier | reply / classifier |",
        "|---|---|---|---|---|---|---|---|---|",
        "| 24 | 1 | cpu, fp32 | 9 | 1.5 ms (1.0-2.0) | 1.5 ms (1.0-2.0) | 1.5 ms (1.0-2.0) "
        "| 1.500 (1.000-2.000) | 1.500 (1.000-2.000) |",
        "| 24 | 8 | cpu, fp32 | 9 | 1.5 ms (1.0-2.0) | 1.5 ms (1.0-2.0) | 1.5 ms (1.0-2.0) "
        "| 1.500 (1.000-2.000) | 1.500 (1.000-2.000) |",
        "",
        "| times a reply on cpu, fp32 | runs on | 24 tokens |",
        "|---|---|---|",
        "| lime (200) | torch, cpu, fp32 | 200 x (n = 1) |",
        "| lrp | torch, cpu, fp32 | - |",
    ]


def test_a_multiple_across_devices_says_so():
    spread = {f"{name}_quartiles": [1.0, 2.0] for name in SIDES}
    reply = {"device": "cuda", "precision": "fp16", "repeats": 9}
    row = {**dict.fromkeys(SIDES, 1.5), **spread, **reply, "tokens": 24, "batch": 1, "skipped": {}}
    rival = {"budget": 0, "how": "torch", "device": "cpu", "precision": "fp32"}
    lines = bench_to_markdown(
        {
            "quick": False,
            "rivals": {"lrp": rival},
            "rows": [{**row, "teachers": {"lrp": {"speedup": 20.0, "repeats": 9}}}],
        }
    ).splitlines()
    assert "| times a reply on cuda, fp16 | runs on | 24 tokens |" in lines
    assert "| lrp | torch, cpu, fp32 | 20 x (n = 9) |" in lines
    assert "another device or in another precision than the reply" in lines[-1]
