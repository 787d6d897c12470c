"""Real servers on free ports, and explainers that can be held, broken and given more labels."""

import asyncio
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from models.bundle import Bundle
from models.explainer import Explainer, Explanation
from models.flows import Flow
from models.rows import Row, RowOutputs
from models.session import OnnxSession
from service.app import create_app
from service.backend import Backend
from service.server import Server, configure, listen
from service.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
# Texts with this word make the explainer raise an error that quotes them.
POISON = "poison"


class HeldExplainer(Explainer):
    """The tiny explainer, which notes what it computes and waits while `gate` is closed.

    It must not be run twice at a time, unless it is told to `allow` that.
    """

    def __init__(self, bundle: Bundle, session: OnnxSession) -> None:
        super().__init__(bundle, session)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[str]] = []
        self.threads: list[str] = []  # names of those that ran it
        self._room = threading.Semaphore()
        self._noting = threading.Lock()
        self._texts: dict[Row, str] = {}
        self._calls_to_hold = 0

    @property
    def seen(self) -> list[str]:
        """The texts of all rows that were run, in order."""
        return [text for batch in self.batches for text in batch]

    def explanation_flow(
        self,
        text: str,
        target: str | None = None,
        *,
        explain: bool = True,
        max_words: int | None = None,
    ) -> Flow[Explanation]:
        flow = super().explanation_flow(text, target, explain=explain, max_words=max_words)
        rows = next(flow)
        while True:
            self._texts |= dict.fromkeys(rows, text)
            outputs = yield rows
            try:
                rows = flow.send(outputs)
            except StopIteration as end:
                return end.value

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        assert self._room.acquire(blocking=False)
        try:
            return self._run(rows)
        finally:
            self._room.release()

    def _run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        texts = [self._texts.get(row, "") for row in rows]
        with self._noting:
            self.threads.append(threading.current_thread().name)
            self.batches.append(texts)
            self._calls_to_hold -= 1
            if self._calls_to_hold == 0:
                self.gate.clear()
        self.entered.release()
        assert self.gate.wait(20)
        if any(POISON in text for text in texts):
            raise RuntimeError(f"cannot explain {texts}")
        return super().run(rows)

    def allow(self, runs: int) -> None:
        """Lets it be run so many times at a time."""
        self._room = threading.Semaphore(runs)

    def hold(self, *, at_call: int = 1) -> None:
        """Closes the gate when it is entered for the n-th time from now on."""
        self._calls_to_hold = at_call
        while self.entered.acquire(blocking=False):
            pass

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=10)


class FourLabelExplainer(Explainer):
    """The tiny explainer with two more labels that never win."""

    def __init__(self, bundle: Bundle, session: OnnxSession) -> None:
        super().__init__(bundle, session)
        self._two = Explainer(bundle, session)

    @property
    def labels(self) -> tuple[str, ...]:
        return (*super().labels, "MIXED", "OFF")

    def explanation_flow(
        self,
        text: str,
        target: str | None = None,
        *,
        explain: bool = True,
        max_words: int | None = None,
    ) -> Flow[Explanation]:
        known = target if target in self._two.labels else None
        one = yield from self._two.explanation_flow(
            text, known, explain=explain, max_words=max_words
        )
        return dataclasses.replace(
            one,
            scores={label: 0.9 * one.scores.get(label, 0.5 / 9) for label in self.labels},
            target=target or one.target,
        )


class BreakingBackend(Backend):
    """A backend that cannot be stopped in order."""

    async def stop(self) -> None:
        await super().stop()
        raise RuntimeError("cannot stop")


class RecordingTransport(asyncio.Transport):
    """A connection that keeps what is written to it, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@dataclasses.dataclass
class Live:
    """A server in a thread of this process."""

    server: Server
    backend: Backend
    client: httpx.Client
    url: str


@contextmanager
def _serving(settings: Settings, explainer: Explainer | None) -> Iterator[Live]:
    app = create_app(settings, explainer)
    backend = app.state.backend
    server = Server(configure(app), backend)
    sock = listen(settings.host, 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            wait_until(lambda: server.started or not thread.is_alive())
            yield Live(server, backend, client, url)
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(name="wait_until")
def _wait_until():
    """A function that waits until a condition holds."""
    return wait_until


@pytest.fixture
def serving(tiny_bundle):
    """Starts servers: `serving(explainer, **settings) -> Live`."""
    with ExitStack() as stack:

        def start(explainer=None, **settings):
            settings = {"bundle": tiny_bundle, "threads": 1} | settings
            return stack.enter_context(_serving(Settings(**settings), explainer))

        yield start


@pytest.fixture(scope="session")
def tiny_explainer(tiny_bundle):
    return Explainer.load(tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="session")
def four_label_explainer(tiny_explainer):
    return FourLabelExplainer(tiny_explainer.bundle, tiny_explainer.session)


@pytest.fixture
def held(tiny_explainer):
    """An explainer with a gate; opened at the end so that no thread stays behind."""
    explainer = HeldExplainer(tiny_explainer.bundle, tiny_explainer.session)
    yield explainer
    explainer.gate.set()


@pytest.fixture
def breaking_backend(tiny_bundle, tiny_explainer):
    return BreakingBackend(Settings(bundle=tiny_bundle), tiny_explainer)


@pytest.fixture
def transport():
    return RecordingTransport()


@pytest.fixture(scope="module")
def live(tiny_bundle, tiny_explainer):
    """One plain server for all tests of a file."""
    with _serving(Settings(bundle=tiny_bundle), tiny_explainer) as running:
        yield running


@pytest.fixture(scope="module")
def client(live):
    return live.client


@dataclasses.dataclass
class Process:
    """A server in a process of its own."""

    popen: subprocess.Popen
    reader: threading.Thread
    url: str
    lines: list[str]

    def wait(self) -> int:
        """The exit status, once the process has ended and all its lines are read."""
        status = self.popen.wait(20)
        self.reader.join(10)
        return status


@pytest.fixture
def process(tiny_bundle, tmp_path):
    """Starts `python -m service`: `process(L2E_X="…") -> Process`, once it listens."""
    running = []

    def start(**environment):
        given = {"L2E_BUNDLE": str(tiny_bundle), "L2E_PORT": "0", "L2E_THREADS": "1"}
        given |= {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error"} | environment
        popen = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=tmp_path,
            env=given,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert popen.stderr is not None
        lines: list[str] = []
        read = popen.stderr.readline
        reader = threading.Thread(target=lambda: lines.extend(iter(read, "")))
        reader.start()
        running.append((popen, reader))
        marker = "listens on "
        wait_until(lambda: any(marker in line for line in lines) or popen.poll() is not None)
        url = next((line.split(marker)[1].split()[0] for line in lines if marker in line), "")
        return Process(popen, reader, url, lines)

    yield start
    for popen, reader in running:
        popen.kill()
        popen.wait(10)
        reader.join(10)
        if popen.stderr is not None:
            popen.stderr.close()


class CannedExplainer(Explainer):
    """The tiny explainer, which has one answer for every text and gives it at once."""

    def explain(
        self,
        texts: Sequence[str],
        target: str | Sequence[str | None] | None = None,
        *,
        max_words: int | None = None,
    ) -> list[Explanation]:
        answer = super().explain(["A great story, but boring."])[0]
        return [answer] * len(texts)


class BreakingExplainer(Explainer):
    """The tiny explainer, which breaks on texts with the word `POISON`."""

    def explain(
        self,
        texts: Sequence[str],
        target: str | Sequence[str | None] | None = None,
        *,
        max_words: int | None = None,
    ) -> list[Explanation]:
        if any(POISON in text for text in texts):
            raise RuntimeError(f"cannot explain {texts}")
        return super().explain(texts, target, max_words=max_words)


@pytest.fixture(scope="session")
def breaking_explainer(tiny_explainer):
    return BreakingExplainer(tiny_explainer.bundle, tiny_explainer.session)
