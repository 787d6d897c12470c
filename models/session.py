"""ONNX Runtime around the one graph of a bundle: numpy in, numpy out.

ONNX Runtime falls back to the CPU without an error and takes the cores of the host for its own;
here the device is checked after loading and the threads follow what this process may use.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.binding import STRENGTHS, BoundGraph
from models.device import (
    CPU,
    CUDA,
    OPENVINO,
    Device,
    DeviceError,
    DeviceName,
    available_device,
    available_threads,
    check_runtimes,
    installed_runtimes,
    integer_options,
    no_such_device,
    processor_flags,
)
from models.graph import split
from models.manifest import CorruptFileError, MismatchError

__all__ = ["DeviceError", "DeviceName", "FloatArray", "IntArray", "OnnxSession", "Outputs"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
# From input_ids, attention_mask and target to logits and, of a run that explains, weights and
# label_probs.
Run = Callable[[IntArray, IntArray, IntArray], list[FloatArray]]

_INPUTS: Final = {
    "input_ids": "tensor(int64)",
    "attention_mask": "tensor(int64)",
    "target": "tensor(int64)",
    "explain": "tensor(bool)",
}
_OUTPUTS: Final = ("logits", "weights", "label_probs")
_ERRORS: Final = 3  # ONNX Runtime's severity


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What one run of the graph gives for B rows of T tokens and C classes.

    Attributes:
        logits: float32 [B, C].
        weights: float32 [B, T], log-odds of the target; zeros unless explained.
        label_probs: float32 [B, T, 5], from high negative to high positive; zeros unless
            explained.
    """

    logits: FloatArray
    weights: FloatArray
    label_probs: FloatArray


class OnnxSession:
    """The loaded graph; `run` may be called from several threads.

    Args:
        model: the bytes of the graph or the file that holds it.
        device: one of `models.device.DEVICES`; auto takes CUDA where it works and the CPU
            elsewhere.
        threads: of the processor, at least 1; None takes what `available_threads` says.

    Attributes:
        device: where the graph runs, such as "cpu".
        provider: the name that ONNX Runtime gives to it.
        device_reason: why this device, for a log line or `l2e doctor`.
        precision: "bf16" where the device computes in it, None where it follows the graph.
        batch_tokens: padded tokens of one run that it answers the quickest, see `Device`.

    Raises:
        DeviceError: another device than auto was asked for and does not work (there is no
            fallback then), or several wheels of ONNX Runtime are installed.
        BundleError: the graph cannot be loaded, or has other inputs or outputs.
    """

    def __init__(
        self, model: bytes | Path, *, device: DeviceName = "auto", threads: int | None = None
    ) -> None:
        """Load the graph and check where it runs and what it takes and gives."""
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: give at least 1, or None for all it may use")
        check_runtimes(installed_runtimes())
        self.threads = available_threads() if threads is None else threads
        where = str(model) if isinstance(model, Path) else "the ONNX graph"
        chosen = available_device(device, ort.get_available_providers())
        self._runs, found = _open(model, where, chosen, self.threads)
        if found.provider != chosen.provider and device != "auto":
            raise no_such_device(device, found.reason)
        self.device, self.provider, self.device_reason = found
        self.precision = found.precision
        self.batch_tokens = found.batch_tokens(self.threads)

    def run(
        self, input_ids: IntArray, attention_mask: IntArray, target: IntArray, *, explain: bool
    ) -> Outputs:
        """Classify a batch and, if wanted, explain it.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T], 1 for tokens and 0 for pads.
            target: int64 [B], the class to explain, -1 for the predicted one.
            explain: False leaves the explainer out, and its outputs are zeros.
        """
        found = self._runs[explain](input_ids, attention_mask, target)
        if len(found) == 1:
            shape = input_ids.shape
            found += [np.zeros(shape, np.float32), np.zeros((*shape, STRENGTHS), np.float32)]
        return Outputs(*found)


def _open(
    model: bytes | Path, where: str, chosen: Device, threads: int
) -> tuple[dict[bool, Run], Device]:
    """Load the graph on the chosen device, or on the CPU with the reason why."""
    try:
        graphs = _load(model, chosen, threads)
        for explain, graph in graphs.items():
            _check_signature(graph, where, chosen, explain=explain)
        if all(graph.get_providers()[0] == chosen.provider for graph in graphs.values()):
            runs = {explain: _run(graph, chosen, explain) for explain, graph in graphs.items()}
            if chosen.provider != CPU:
                _try(runs)
            return runs, chosen
        reason = "see ONNX Runtime's message above"
    except MismatchError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if chosen.provider == CPU:
            raise CorruptFileError(
                f"{where}: ONNX Runtime cannot load it ({reason}): export the bundle again"
            ) from error
    cpu = Device("cpu", CPU, f"{chosen.provider} did not start: {reason}")
    return _open(model, where, cpu, threads)


def _load(model: bytes | Path, device: Device, threads: int) -> dict[bool, ort.InferenceSession]:
    """Load the graph that labels alone and the one that explains; on the CPU both are one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores from the tokenizer and the HTTP server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in integer_options(processor_flags()).items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = _ERRORS
    providers: list[Any] = [CPU]
    if device.provider != CPU:
        providers.insert(0, (device.provider, device.options(threads)))
    if device.provider == CUDA:
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for answers
            ort.preload_dlls()
    if device.provider == OPENVINO:
        # It warns of every constant that it folds, and only the process has a say in that.
        ort.set_default_logger_severity(_ERRORS)

    def start(source: bytes | str) -> ort.InferenceSession:
        return ort.InferenceSession(source, options, providers, enable_fallback=0)

    if device.splits:
        whole = model.read_bytes() if isinstance(model, Path) else model
        return {explain: start(split(whole, explain=explain)) for explain in (False, True)}
    session = start(str(model) if isinstance(model, Path) else model)
    return {False: session, True: session}


def _run(graph: ort.InferenceSession, device: Device, explain: bool) -> Run:
    """Return what runs a loaded graph and gives its outputs in order."""
    if device.provider == CUDA:
        return BoundGraph(graph, "cuda", explain=explain, record=device.graphs).run
    constant = {} if device.splits else {"explain": np.array(explain)}
    names = list(_outputs(device, explain))

    def run(input_ids: IntArray, attention_mask: IntArray, target: IntArray) -> list[FloatArray]:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "target": target}
        found: list[FloatArray] = graph.run(names, feed | constant)
        return found

    return run


def _try(runs: dict[bool, Run]) -> None:
    """Run one row: a provider that starts may still lack a library or a kernel."""
    row = np.zeros((1, 8), dtype=np.int64)
    for run in runs.values():
        run(row, np.ones_like(row), np.array([-1]))


def _outputs(device: Device, explain: bool) -> tuple[str, ...]:
    return _OUTPUTS if explain or not device.splits else _OUTPUTS[:1]


def _check_signature(
    session: ort.InferenceSession, where: str, device: Device, *, explain: bool
) -> None:
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    expected = {name: kind for name, kind in _INPUTS.items() if name != "explain"}
    if not device.splits:
        expected = _INPUTS
    if inputs != expected or not set(_outputs(device, explain)) <= set(outputs):
        raise MismatchError(
            f"{where}: is not a graph of l2e (inputs {', '.join(inputs)}; outputs"
            f" {', '.join(outputs)}): export the bundle again"
        )
