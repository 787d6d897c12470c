"""Runs whose inputs and outputs lie on the device, in buffers that all runs of a bucket share.

A bucket is a padded length and a number of rows, rounded up to a power of two, so that there are
few of them and none is ever given back. A plain run reads and writes as many rows of its bucket's
buffers as it has. A run that is recorded as a CUDA graph needs the same shapes at the same
addresses each time: it takes all rows, and those that are missing repeat the first. Only few rows
are recorded, where starting each kernel costs more than the kernel.

What is copied where follows from the shapes alone and is decided by `make_plan`.
"""

import threading
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

RECORDED_ROWS: Final = 8  # most rows of a bucket whose runs are recorded
STRENGTHS: Final = 5  # classes of label_probs
_UNRECORDED: Final = "-1"  # what ONNX Runtime calls a run that is not recorded


class Part(NamedTuple):
    """An input or output of the graph in its buffer.

    Attributes:
        name: of the input or output.
        dtype: of its numbers.
        held: shape of the buffer.
        used: shape that the graph sees, from the buffer's start.
    """

    name: str
    dtype: type[np.generic]
    held: tuple[int, ...]
    used: tuple[int, ...]


class Plan(NamedTuple):
    """Where the numbers of one run go.

    Attributes:
        bucket: rows that the buffers have room for, and tokens of each.
        graph_id: names the recorded run, at least 1; None where it is not recorded.
        inputs: copied to the device before the run.
        outputs: copied back after it; what no text asked for is not.
    """

    bucket: tuple[int, int]
    graph_id: int | None
    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]


def make_plan(rows: int, tokens: int, classes: int, *, explain: bool, record: bool) -> Plan:
    """Decide where the numbers of a run go.

    Args:
        rows: of the batch, at least 1.
        tokens: of each row, pads included.
        classes: of the classifier.
        explain: whether the graph gives weights and label_probs.
        record: whether runs of few rows are recorded as CUDA graphs.
    """
    power = (rows - 1).bit_length()
    room = 1 << power
    recorded = record and room <= RECORDED_ROWS
    seen = room if recorded else rows

    def part(name: str, dtype: type[np.generic], *rest: int) -> Part:
        return Part(name, dtype, (room, *rest), (seen, *rest))

    inputs = (
        part("input_ids", np.int64, tokens),
        part("attention_mask", np.int64, tokens),
        part("target", np.int64),
    )
    outputs = (
        part("logits", np.float32, classes),
        part("weights", np.float32, tokens),
        part("label_probs", np.float32, tokens, STRENGTHS),
    )
    kept = outputs if explain else outputs[:1]
    # Unique, because a power is below 64; numbers from 1 on are free to use.
    graph_id = 64 * tokens + power + 1 if recorded else None
    return Plan((room, tokens), graph_id, inputs, kept)


def fill(part: Part, values: IntArray) -> IntArray:
    """Return `values` with the first row repeated until the buffer is full."""
    missing = part.held[0] - len(values)
    if missing == 0:
        return np.ascontiguousarray(values)
    return np.concatenate([values, np.repeat(values[:1], missing, axis=0)])


class BoundGraph:
    """A graph without control flow, run on buffers of the device; `run` suits several threads.

    Args:
        session: of a graph from `models.graph.split`.
        device: "cuda", or "cpu" for the memory of the processor.
        explain: whether the graph gives weights and label_probs.
        record: whether runs of few rows are recorded as CUDA graphs; the session needs the
            provider option `enable_cuda_graph`, and all its runs must then go through here.
    """

    def __init__(
        self, session: ort.InferenceSession, device: str, *, explain: bool, record: bool
    ) -> None:
        """Make no buffers yet: each bucket's come with its first run."""
        self._session, self._device = session, device
        self._explain, self._record = explain, record
        [logits] = [entry for entry in session.get_outputs() if entry.name == "logits"]
        self._classes: int = logits.shape[-1]
        self._buffers: dict[tuple[int, int], dict[str, Any]] = {}
        self._bindings: dict[tuple[int, int], Any] = {}
        self._bound: dict[tuple[int, int], tuple[Part, ...]] = {}
        # Buffers are shared, and a CUDA graph must not be played back twice at a time.
        self._lock = threading.Lock()

    def run(
        self, input_ids: IntArray, attention_mask: IntArray, target: IntArray
    ) -> list[FloatArray]:
        """Return logits [B, C] and, of a graph that explains, weights and label_probs.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T].
            target: int64 [B].
        """
        rows, tokens = input_ids.shape
        plan = make_plan(rows, tokens, self._classes, explain=self._explain, record=self._record)
        with self._lock:
            buffers = self._take(plan)
            for part, values in zip(plan.inputs, (input_ids, attention_mask, target), strict=True):
                buffers[part.name].update_inplace(fill(part, values))
            self._session.run_with_iobinding(self._bind(plan, buffers), self._options(plan))
            return [_read(part, buffers[part.name])[:rows] for part in plan.outputs]

    def _take(self, plan: Plan) -> dict[str, Any]:
        """Return the buffers of the bucket, by name."""
        if plan.bucket not in self._buffers:
            self._buffers[plan.bucket] = {
                part.name: ort.OrtValue.ortvalue_from_shape_and_type(
                    part.held, part.dtype, self._device, 0
                )
                for part in (*plan.inputs, *plan.outputs)
            }
            self._bindings[plan.bucket] = self._session.io_binding()
        return self._buffers[plan.bucket]

    def _bind(self, plan: Plan, buffers: dict[str, Any]) -> Any:
        """Point the graph's inputs and outputs to the parts of the buffers that it sees."""
        binding = self._bindings[plan.bucket]
        if self._bound.get(plan.bucket) == plan.inputs:
            return binding
        for parts, bind in ((plan.inputs, binding.bind_input), (plan.outputs, binding.bind_output)):
            for part in parts:
                place = buffers[part.name].data_ptr()
                bind(part.name, self._device, 0, part.dtype, part.used, place)
        self._bound[plan.bucket] = plan.inputs
        return binding

    def _options(self, plan: Plan) -> ort.RunOptions:
        options = ort.RunOptions()
        if self._record:
            number = _UNRECORDED if plan.graph_id is None else str(plan.graph_id)
            options.add_run_config_entry("gpu_graph_id", number)
        return options


def _read(part: Part, buffer: Any) -> FloatArray:
    """Copy what the graph wrote out of a buffer that the next run writes to."""
    size = int(np.prod(part.used))
    return np.array(buffer.numpy().ravel()[:size].reshape(part.used))
