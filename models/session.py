"""ONNX Runtime around the one graph of a bundle: numpy in, numpy out.

ONNX Runtime falls back to the CPU without an error and takes the cores of the host for its own;
here the device is checked after loading and the threads follow what this process may use.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.binding import STRENGTHS, BoundGraph
from models.cores import WIDE, WIDE_IN_FLOAT, CpuGraph
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
from models.graph import is_quantized, split
from models.manifest import CorruptFileError, MismatchError
from models.retarget import retargetable

__all__ = [
    "DeviceError",
    "DeviceName",
    "FloatArray",
    "IntArray",
    "OnnxSession",
    "Outputs",
    "States",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
# From input_ids, attention_mask and target to logits and, of a run that explains, weights and
# label_probs.
Run = Callable[[IntArray, IntArray, IntArray], list[FloatArray]]
States = Mapping[str, npt.NDArray[Any]]  # [B, ...] each, by name, see `models.retarget`

_INPUTS: Final = {
    "input_ids": "tensor(int64)",
    "attention_mask": "tensor(int64)",
    "target": "tensor(int64)",
    "explain": "tensor(bool)",
}
_OUTPUTS: Final = ("logits", "weights", "label_probs")
_ERRORS: Final = 3  # ONNX Runtime's severity

_log = logging.getLogger("l2e.models")


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What one run of the graph gives for B rows of T tokens and C classes.

    Attributes:
        logits: float32 [B, C].
        weights: float32 [B, T], log-odds of the target; zeros unless explained.
        label_probs: float32 [B, T, 5], from high negative to high positive; zeros unless
            explained.
        states: what `OnnxSession.retarget` takes; empty unless it was asked for and can be had.
    """

    logits: FloatArray
    weights: FloatArray
    label_probs: FloatArray
    states: States = field(default_factory=dict)


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
        runners: runs at a time that keep all its threads busy.

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
        self._runs, self._retargeting, found = _open(model, where, chosen, self.threads)
        if found.provider != chosen.provider and device != "auto":
            raise no_such_device(device, found.reason)
        self.device, self.provider, self.device_reason = found
        self.precision = found.precision
        self.batch_tokens = found.batch_tokens(self.threads)
        self.runners = found.runners(self.threads)

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        target: IntArray,
        *,
        explain: bool,
        keep: bool = False,
    ) -> Outputs:
        """Classify a batch and, if wanted, explain it.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T], 1 for tokens and 0 for pads.
            target: int64 [B], the class to explain, -1 for the predicted one.
            explain: False leaves the explainer out, and its outputs are zeros.
            keep: whether to give the states of a run that explains, too.
        """
        run, names = self._runs[explain], tuple[str, ...]()
        if explain and keep and self._retargeting is not None:
            run, names = self._retargeting.run, self._retargeting.states
        found = run(input_ids, attention_mask, target)
        if len(found) == 1:
            shape = input_ids.shape
            found += [np.zeros(shape, np.float32), np.zeros((*shape, STRENGTHS), np.float32)]
        logits, weights, label_probs, *states = found
        return Outputs(logits, weights, label_probs, dict(zip(names, states, strict=True)))

    @property
    def retargets(self) -> bool:
        """Whether runs can give states."""
        return self._retargeting is not None

    def retarget(self, states: States, target: IntArray) -> tuple[FloatArray, FloatArray]:
        """Explain other classes of rows that were run, without running the classifier again.

        Args:
            states: of B rows, see `Outputs`.
            target: int64 [B], the classes.

        Returns:
            weights and label_probs, bit for bit those of `run` for these classes.

        Raises:
            ValueError: there are no states, see `retargets`.
        """
        if self._retargeting is None:
            raise ValueError(f"{self.device} gives no states of this graph: run the rows again")
        return self._retargeting.explain(states, target)


class _Retargeting(NamedTuple):
    """What explains another class of a row.

    Attributes:
        run: gives the states behind the other outputs.
        states: their names.
        rest: takes them.
    """

    run: Run
    states: tuple[str, ...]
    rest: ort.InferenceSession

    def explain(self, states: States, target: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return weights and label_probs for these classes."""
        weights, label_probs = self.rest.run(list(_OUTPUTS[1:]), {**states, "target": target})
        return weights, label_probs

    def holds(self) -> bool:
        """Whether rows by themselves get from the states of a batch what a run gives them."""
        ids = np.array([[0, 1, 2, 0, 1, 2, 0, 1], [2, 1, 0, 1, 2, 0, 0, 0]])
        mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
        kept = dict(zip(self.states, self.run(ids, mask, np.array([-1, -1]))[3:], strict=True))
        same = []
        for target in (0, 1):
            expected = self.run(ids, mask, np.array([target] * 2))[1:3]
            for row in (slice(0, 1), slice(1, 2)):
                states = {name: values[row] for name, values in kept.items()}
                found = self.explain(states, np.array([target]))
                pairs = zip(found, expected, strict=True)
                same += [one.tobytes() == other[row].tobytes() for one, other in pairs]
        return all(same)


class _Opened(NamedTuple):
    """A graph that runs somewhere; `retargeting` is None where a class takes a run of its own."""

    runs: dict[bool, Run]  # by whether to explain
    retargeting: _Retargeting | None
    device: Device


class _Loaded(NamedTuple):
    """What ONNX Runtime holds of it; on the CPU both graphs are one."""

    graphs: dict[bool, ort.InferenceSession | CpuGraph]
    retargeting: _Retargeting | None = None


def _open(model: bytes | Path, where: str, chosen: Device, threads: int) -> _Opened:
    """Load the graph on the chosen device, or on the CPU with the reason why."""
    try:
        graphs, retargeting = _load(model, chosen, threads)
        sessions = {explain: _session(graph) for explain, graph in graphs.items()}
        for explain, session in sessions.items():
            _check_signature(session, where, chosen, explain=explain)
        if all(session.get_providers()[0] == chosen.provider for session in sessions.values()):
            runs = {explain: _run(graph, chosen, explain) for explain, graph in graphs.items()}
            if chosen.provider != CPU:
                _try(runs)
            names = [*_OUTPUTS, *(retargeting.states if retargeting else ())]
            if isinstance(graph := graphs[True], CpuGraph) and not graph.holds(names):
                _log.warning("each run has one thread: on several it answers something else")
            return _Opened(runs, retargeting, chosen)
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


def _load(model: bytes | Path, device: Device, threads: int) -> _Loaded:
    """Load the graph that labels alone and the one that explains; on the CPU both are one."""
    providers: list[Any] = [CPU]
    if device.provider != CPU:
        providers.insert(0, (device.provider, device.options(threads)))
    if device.provider == CUDA:
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for answers
            ort.preload_dlls()
    if device.provider == OPENVINO:
        # It warns of every constant that it folds, and only the process has a say in that.
        ort.set_default_logger_severity(_ERRORS)

    def start(source: bytes | str, threads: int) -> ort.InferenceSession:
        options = session_options(threads, device.provider)
        session = ort.InferenceSession(source, options, providers, enable_fallback=0)
        session._model_bytes = None  # kept for the fallback, though it is off
        return session

    if device.splits:
        whole = model.read_bytes() if isinstance(model, Path) else model
        parts = {explain: split(whole, explain=explain) for explain in (False, True)}
        return _Loaded({explain: start(part, threads) for explain, part in parts.items()})

    def start_shared(source: bytes | str) -> CpuGraph:
        return CpuGraph(partial(start, source), threads, _wide_from(model))

    if (loaded := _load_retargeting(model, device, start_shared, start)) is not None:
        return loaded
    graph = start_shared(str(model) if isinstance(model, Path) else model)
    return _Loaded({False: graph, True: graph})


def _load_retargeting(
    model: bytes | Path,
    device: Device,
    start_shared: Callable[[bytes | str], CpuGraph],
    start: Callable[[bytes | str, int], ort.InferenceSession],
) -> _Loaded | None:
    """Load the graph so that it gives states; None where it cannot be cut, or does not hold then.

    Rows then run again for another class, with the same answers and a line in the log.
    """
    try:
        found = retargetable(model.read_bytes() if isinstance(model, Path) else model)
    except ValueError:  # no graph: whoever loads it whole says so
        return None
    if found is None:
        return None
    try:
        graph = start_shared(found.whole)
        # A fraction of a millisecond.
        rest = start(found.rest, 1)
        run = _run(graph, device, explain=True, states=found.states)
        retargeting = _Retargeting(run, found.states, rest)
        reason = "" if retargeting.holds() else "its parts answer something else"
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason:
        _log.warning("the graph is not cut, so that some windows are run twice: %s", reason)
        return None
    return _Loaded({False: graph, True: graph}, retargeting)


def _wide_from(model: bytes | Path) -> int:
    """Return the padded tokens from which on a run that begins alone takes all threads."""
    try:
        quantized = is_quantized(model.read_bytes() if isinstance(model, Path) else model)
    except ValueError:  # no graph: ONNX Runtime says so
        return WIDE
    return WIDE if quantized else WIDE_IN_FLOAT


def _session(graph: ort.InferenceSession | CpuGraph) -> ort.InferenceSession:
    return graph.session if isinstance(graph, CpuGraph) else graph


def session_options(threads: int, provider: str) -> ort.SessionOptions:
    """Return how a graph is loaded.

    Args:
        threads: of a run on the processor, at least 1.
        provider: ONNX Runtime's name of what it runs on.
    """
    options = ort.SessionOptions()
    # On the processor it would keep a block of memory for each run at a time, 35 MB for two, and no
    # run is quicker by it.
    options.enable_mem_pattern = provider != CPU
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores from the tokenizer and the HTTP server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in integer_options(processor_flags()).items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = _ERRORS
    return options


def _run(
    graph: ort.InferenceSession | CpuGraph,
    device: Device,
    explain: bool,
    states: Sequence[str] = (),
) -> Run:
    """Return what runs a loaded graph and gives its outputs in order, and the states after them."""
    if device.provider == CUDA:
        return BoundGraph(_session(graph), "cuda", explain=explain, record=device.graphs).run
    constant = {} if device.splits else {"explain": np.array(explain)}
    names = [*_outputs(device, explain), *states]

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
