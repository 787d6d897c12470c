"""Spans of real servers: kept in memory, and sent to a collector that speaks OTLP over HTTP."""

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from models.text import bucket_length
from service.app import create_app
from service.batching.tickets import Journal, Size, Stretch
from service.metrics import STAGES
from service.settings import Settings, SettingsError
from service.stream import MEDIA_TYPE
from service.tracing import STOP_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
CANARY = "zanzibar"
TYPE = {"content-type": MEDIA_TYPE}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ALWAYS = {"http.request.method", "url.scheme", "network.protocol.version", "l2e.request.id"}


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bodies: list[bytes] = []
        self.heads: list[dict[str, str]] = []

    @property
    def resources(self):
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [resource for request in requests for resource in request.resource_spans]

    @property
    def spans(self):
        scopes = [scope for resource in self.resources for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self):
        self.server.heads.append(
            {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
        )
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@dataclasses.dataclass
class Traced:
    """A server and the spans of its requests."""

    live: Any
    memory: InMemorySpanExporter
    wait_until: Any

    @property
    def client(self):
        return self.live.client

    def ended(self, count=1) -> tuple[ReadableSpan, ...]:
        """The spans so far, as soon as `count` requests have one, which may be after the answer."""
        self.wait_until(lambda: len(self._of_requests()) >= count)
        assert len(self._of_requests()) == count
        found = self.memory.get_finished_spans()
        assert CANARY not in "".join(span.to_json() for span in found).lower()
        return found

    def _of_requests(self):
        return [one for one in self.memory.get_finished_spans() if one.kind is SpanKind.SERVER]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in os.environ:
        if name.startswith(("OTEL_", "FASTAPI_OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector():
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def tracing(collector, serving, monkeypatch, wait_until):  # the collector outlives the servers
    """Starts servers that trace: `tracing(explainer, **settings) -> Traced`."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)

    def start(explainer, **given):
        live = serving(explainer, traces="otlp", **given)
        memory = InMemorySpanExporter()
        live.server.config.app.state.tracing.provider.add_span_processor(
            SimpleSpanProcessor(memory)
        )
        return Traced(live, memory, wait_until)

    return start


@pytest.fixture
def traced(tracing, tiny_explainer):
    return tracing(tiny_explainer)


def of(span):
    assert not span.events
    return dict(span.attributes)


def test_a_prediction_is_a_span_with_its_stages_below_it(traced, tiny_explainer):
    answer = traced.client.post("/predict", json={"text": "a great story"})
    *stages, request = traced.ended()
    assert (request.name, request.kind, request.parent) == ("POST /predict", SpanKind.SERVER, None)
    assert request.status.status_code is StatusCode.UNSET
    found = of(request)
    seconds = {stage: found.pop(f"l2e.{stage}.seconds") for stage in STAGES}
    length = len(tiny_explainer.encode("a great story").windows[0].input_ids)
    assert found == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "l2e.request.id": answer.headers["x-request-id"],
        "l2e.tokens": length,
    }
    names = ["queue", "tokenize", "queue", "run", "queue", "decode"]
    assert [span.name for span in stages] == names
    assert all(span.parent == request.context for span in stages)
    assert request.start_time < stages[0].start_time
    assert stages[-1].end_time < request.end_time
    for before, after in pairwise(stages):
        assert before.end_time == after.start_time
    for stage in STAGES:
        spent = sum(span.end_time - span.start_time for span in stages if span.name == stage)
        assert spent == pytest.approx(1e9 * seconds[stage], abs=2000)
    size = {"rows": 1, "tokens": length, "padded": bucket_length(length)}
    assert of(stages[1]) == {f"l2e.{name}": count for name, count in size.items()}
    assert of(stages[3]) == {f"l2e.batch.{name}": count for name, count in size.items()}
    assert [of(stages[place]) for place in (0, 2, 4, 5)] == [{}] * 4


def test_a_batch_has_its_runs_and_its_counts(tracing, held):
    traced = tracing(held, max_batch_tokens=16)
    texts = ["great", "boring", "a great story that was very funny", ""]
    answer = traced.client.post("/predict/batch", json={"items": [{"text": one} for one in texts]})
    *stages, request = traced.ended()
    assert [span.name for span in stages] == ["run"] * len(held.batches)
    assert len(stages) > 1
    assert [of(span)["l2e.batch.rows"] for span in stages] == [len(one) for one in held.batches]
    found = of(request)
    summary = {name: found[f"l2e.items.{name}"] for name in ("ok", "failed")}
    assert summary == answer.json()["summary"] == {"ok": 3, "failed": 1}
    assert found["l2e.tokens"] == sum(of(span)["l2e.batch.tokens"] for span in stages)
    assert found["http.route"] == "/predict/batch"


def test_a_stream_is_one_span_with_counts(traced):
    lines = [{"text": "great"}] * 20 + [{"text": ""}] + [{"text": "boring"}] * 20
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    answer = traced.client.post("/predict/stream", content=body, headers=TYPE)
    (request,) = traced.ended()
    found = of(request)
    summary = {name: found[f"l2e.items.{name}"] for name in ("ok", "failed")}
    assert {"summary": summary} == json.loads(answer.text.splitlines()[-1])
    assert summary == {"ok": 40, "failed": 1}
    assert found["l2e.tokens"] == 40 * 3  # [CLS] word [SEP]
    assert all(found[f"l2e.{stage}.seconds"] > 0 for stage in STAGES)


def test_a_stream_whose_client_leaves_ends_its_span(traced):
    host, port = traced.live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /predict/stream HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_TYPE}\r\n"
        line = b'{"text": "great"}\n'
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(line):x}\r\n".encode())
        connection.sendall(line + b"\r\n")
        with connection.makefile("rb") as answer:
            while b'"index":0' not in answer.readline():
                pass
    (request,) = traced.ended()
    assert of(request)["l2e.items.ok"] == 1


@pytest.mark.parametrize(
    ("header", "trace", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", int(TRACE, 16), int(SPAN, 16)),
        (f"00-{TRACE}-{'0' * 16}-01", None, None),
        (f"00-{CANARY}-{SPAN}-01", None, None),
    ],
)
def test_the_callers_trace_goes_on_where_it_is_one(header, trace, parent, traced):
    traced.client.post("/predict", json={"text": "great"}, headers={"traceparent": header})
    *stages, request = traced.ended()
    assert request.context.trace_id == (trace or request.context.trace_id) != 0
    assert (request.parent and request.parent.span_id) == parent
    assert {span.context.trace_id for span in stages} == {request.context.trace_id}


def test_a_trace_that_its_caller_does_not_keep_is_not_kept_here(traced):
    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    assert traced.client.post("/predict", json={"text": "great"}, headers=unsampled).is_success
    traced.client.get("/models")
    (request,) = traced.ended()
    assert request.name == "GET /models"


def test_what_gateways_and_prometheus_ask_all_day_is_not_traced(traced):
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert traced.client.get(path).status_code == 200
    traced.client.get("/models")
    (request,) = traced.ended()
    assert request.name == "GET /models"


def test_a_request_for_nothing_has_no_route(traced):
    traced.client.get(f"/{CANARY}?q={CANARY}")
    traced.client.request("PROPFIND", "/predict")  # made-up ones end before the application
    missing, strange = traced.ended(2)
    assert missing.name == "GET"
    assert set(of(missing)) == {*ALWAYS, "http.response.status_code"}
    assert of(missing)["http.response.status_code"] == 404
    assert strange.name.startswith("HTTP")
    assert of(strange)["http.request.method"] == "_OTHER"
    assert {span.status.status_code for span in (missing, strange)} == {StatusCode.UNSET}


@pytest.mark.parametrize(("text", "status"), [(f"{CANARY} poison", 500), (CANARY, 504)])
def test_a_failure_of_the_server_is_one_of_its_span(tracing, held, text, status):
    traced = tracing(held, request_timeout=60 if status == 500 else 0.2)
    if status == 504:
        held.hold()
    assert traced.client.post("/predict", json={"text": text}).status_code == status
    held.gate.set()
    *_, request = traced.ended()
    assert request.status.status_code is StatusCode.ERROR
    assert request.status.description is None
    assert of(request)["error.type"] == str(status)


def test_a_journal_keeps_so_much_and_counts_all():
    journal = Journal(keep=("run",))
    for second in range(1000):
        journal.note(Stretch("run", second, second + 1, Size(1, 3, 8)))
        journal.note(Stretch("run", second, second + 1, Size(1, 3, 8)))  # another text in that run
        journal.note(Stretch("tokenize", second, second + 0.5, Size(1, 3, 8)))
    journal.close()
    journal.note(Stretch("run", 0, 1, Size()))
    assert [stretch.start for stretch in journal.stretches] == list(range(128))
    assert (journal.seconds, journal.tokens) == ({"run": 2000, "tokenize": 500}, 3000)


def test_spans_reach_a_collector_in_the_background(process, collector, wait_until):
    running = process(
        L2E_TRACES="otlp",
        L2E_LOG_FORMAT="json",
        L2E_DRAIN_DELAY="0",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="api-key=secret",
        OTEL_RESOURCE_ATTRIBUTES="service.name=reviews,deployment.environment.name=test",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    with httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        first = client.post("/predict", json={"text": f"{CANARY} is great"})
        wait_until(lambda: len(collector.spans) == 7)  # while the server runs
        client.post("/predict", json={"text": "boring"})
    running.popen.terminate()
    assert running.wait() == 0
    assert len(collector.spans) == 14  # the last ones were sent at the end
    assert all(head["path"] == "/v1/traces" for head in collector.heads)
    assert collector.heads[0]["content-type"] == "application/x-protobuf"
    assert collector.heads[0]["api-key"] == "secret"
    about = {one.key: one.value.string_value for one in collector.resources[0].resource.attributes}
    assert about["service.name"] == "reviews"
    assert about["deployment.environment.name"] == "test"
    assert about["service.version"]
    assert CANARY.encode() not in b"".join(collector.bodies)
    (request,) = [span for span in collector.spans[:7] if span.name == "POST /predict"]
    lines = [json.loads(line) for line in running.lines if line.strip()]
    (logged, _) = [line for line in lines if line.get("route") == "/predict"]
    assert logged["request"] == first.headers["x-request-id"]
    assert (logged["trace_id"], logged["span_id"]) == (
        request.trace_id.hex(),
        request.span_id.hex(),
    )
    assert not any("trace_id" in line for line in lines if line.get("route") == "/health/ready")


def test_the_service_has_a_name_when_nobody_gives_it_one(traced, collector):
    about = traced.live.server.config.app.state.tracing.provider.resource.attributes
    assert about["service.name"] == "l2e"


def test_no_text_is_in_what_is_sent(process, collector, wait_until):
    """In a process of its own, because Hypothesis watches over the random numbers of this one."""
    running = process(
        L2E_TRACES="otlp",
        L2E_DRAIN_DELAY="0",
        L2E_MAX_TEXT_CHARS="20",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    headers = dict.fromkeys(("user-agent", "referer", "x-request-id", "cookie", "host"), CANARY)
    headers |= {"baggage": f"a={CANARY}", "traceparent": CANARY}
    marked = st.text(st.characters(codec="utf-8"), max_size=15).map(lambda end: f"{CANARY} {end}")

    @settings(max_examples=20)
    @given(text=marked, target=st.sampled_from(["POS", None]) | marked, name=marked)
    def ask(text, target, name):
        item = {"text": text, "target": target}
        named = item | {"id": name}
        client.post("/predict", json=item, headers=headers)
        client.post("/predict", json=item | {name: name})
        client.post("/predict/batch", json={"items": [named, named | {"text": [text]}]})
        lines = f"{json.dumps(named)}\n{CANARY}\n"
        client.post("/predict/stream", content=lines.encode(), headers=TYPE)
        client.post("/predict/stream", content=b"", params={name: text}, headers=TYPE)
        client.get("/", params={"q": text})
        client.get(f"/page/{CANARY}", headers=headers)
        client.request(CANARY.upper(), f"/{CANARY}")

    with httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        ask()
    running.popen.terminate()
    assert running.wait() == 0
    names = {span.name for span in collector.spans}
    assert {"POST /predict", "POST /predict/batch", "POST /predict/stream", "GET /", "run"} <= names
    assert CANARY not in b"".join(collector.bodies).decode(errors="replace").lower()
    assert not [line for line in running.lines if CANARY in line.lower()]


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "never answers"])
def test_without_a_collector_all_goes_on(silent, process, wait_until):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        if not silent:
            sock.close()
        running = process(
            L2E_TRACES="otlp",
            L2E_DRAIN_DELAY="0",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_BSP_SCHEDULE_DELAY="10",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8",
            OTEL_BSP_MAX_QUEUE_SIZE="16",
        )
        # A batch of spans is given up after ten seconds; nobody waits for it.
        with httpx.Client(base_url=running.url, trust_env=False, timeout=5) as client:
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            for _ in range(20):
                assert client.post("/predict", json={"text": CANARY}).status_code == 200
        begun = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert time.monotonic() - begun < STOP_SECONDS + 5
    assert any("did not take the last spans" in line for line in running.lines)
    assert not any("Traceback" in line or CANARY in line for line in running.lines)


def python(code, **environment):
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )


IMPORTED = """
import asyncio, sys, fastapi
before = set(sys.modules)  # FastAPI imports OpenTelemetry's interfaces for itself
from service.app import create_app
async def scene():
    app = create_app()
    async with app.router.lifespan_context(app):
        pass
asyncio.run(scene())
print(*(name for name in set(sys.modules) - before
        if name.startswith(("opentelemetry", "requests", "google", "service.tracing"))))
"""


@pytest.mark.parametrize("traces", ["none", "otlp"])
def test_it_is_imported_only_where_it_is_asked_for(traces, tiny_bundle, collector):
    given = {"L2E_BUNDLE": str(tiny_bundle), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    done = python(IMPORTED, L2E_TRACES=traces, **given)
    assert done.returncode == 0, done.stderr
    assert ("service.tracing" in done.stdout.split()) == (traces == "otlp")
    assert bool(done.stdout.split()) == (traces == "otlp")
    assert collector.bodies == []


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_what_is_not_installed_is_said_with_the_cure(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import service.app; "
    done = python(f"{code}sys.exit(service.app.main())", L2E_TRACES="otlp", L2E_PORT="0")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"L2E_TRACES) need {missing}" in line
    assert line.endswith("pip install 'l2e[otel]'")


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("OTEL_TRACES_EXPORTER", "console", "must be otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "must be http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "must be http/protobuf"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces", "http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli", "must be none or gzip or deflate"),
        ("OTEL_TRACES_SAMPLER", "xray", "must be always_on or always_off or"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "abc", "must be a whole number from 1 to 1000000"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", "must be a URL such as"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such.pem", "there is no file /no/such.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/no/key", "there is no file /no/key"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "must be a whole number from 1 to 1000000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1.5", "must be a whole number from 1 to 1000000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", "QUEUE_SIZE, and 4096 is more than 2048"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "abc", "must be a number from 0.001 to 1000000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nan", "must be a number from 0.001 to 1000000"),
    ],
)
def test_what_the_sdk_could_not_do_is_refused_at_the_start(
    name, value, cure, monkeypatch, tiny_bundle
):
    monkeypatch.setenv(name, value)
    assert create_app(Settings(bundle=tiny_bundle)).state.tracing is None
    with pytest.raises(SettingsError, match=f"{name}: .*{cure}") as caught:
        create_app(Settings(bundle=tiny_bundle, traces="otlp"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", ["2", "-0.1", "half"])
def test_a_share_that_is_none_is_refused_where_it_counts(share, monkeypatch, tiny_bundle):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    assert create_app(Settings(bundle=tiny_bundle, traces="otlp")).state.tracing
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    with pytest.raises(
        SettingsError, match="OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1"
    ):
        create_app(Settings(bundle=tiny_bundle, traces="otlp"))


def test_what_only_the_sdk_knows_is_refused_in_its_words(monkeypatch, tiny_bundle):
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "many")
    with pytest.raises(SettingsError, match=r"^bad setting: .*OTEL_SPAN_EVENT_COUNT_LIMIT must be"):
        create_app(Settings(bundle=tiny_bundle, traces="otlp"))


def test_empty_is_not_set(monkeypatch, tiny_bundle, collector, caplog):
    for name in ("MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY", "EXPORT_TIMEOUT"):
        monkeypatch.setenv(f"OTEL_BSP_{name}", "")
    for name in ("TIMEOUT", "TRACES_TIMEOUT", "COMPRESSION", "PROTOCOL"):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = create_app(Settings(bundle=tiny_bundle, traces="otlp")).state.tracing
    tracing.start()
    tracing.stop()
    assert caplog.records == []


def test_the_thread_that_sends_starts_with_the_server(tiny_bundle, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    before = threading.active_count()
    tracing = create_app(Settings(bundle=tiny_bundle, traces="otlp")).state.tracing
    assert threading.active_count() == before
    tracing.start()
    assert threading.active_count() == before + 1
    tracing.stop()


def test_the_last_spans_are_sent_whatever_else_fails(
    tiny_bundle, breaking_backend, collector, monkeypatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    app = create_app(Settings(bundle=tiny_bundle, traces="otlp"))
    app.state.backend = breaking_backend

    async def scene():
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://l2e") as client,
        ):
            assert (await client.get("/")).status_code == 200

    with pytest.raises(RuntimeError, match="cannot stop"):
        asyncio.run(scene())
    assert [span.name for span in collector.spans] == ["GET /"]


PROPAGATORS = (
    "bad setting: OTEL_PROPAGATORS: 'bees' is not installed: choose of baggage, none, trace"
)


@pytest.mark.parametrize(
    ("command", "name", "value", "line"),
    [
        ("-m service", "OTEL_BSP_MAX_QUEUE_SIZE", "abc", "bad setting: OTEL_BSP_MAX_QUEUE_SIZE: "),
        ("-m service", "OTEL_PROPAGATORS", "tracecontext, bees", PROPAGATORS),
        ("-m l2e serve", "OTEL_PROPAGATORS", "bees", f"l2e serve: {PROPAGATORS}"),
    ],
)
def test_a_bad_variable_is_one_line_and_ends_with_2(command, name, value, line, tiny_bundle):
    environment = {"L2E_BUNDLE": str(tiny_bundle), "L2E_PORT": "0", "L2E_TRACES": "otlp"}
    done = subprocess.run(
        [sys.executable, *command.split()],
        env={"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error", **environment, name: value},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    [shown] = done.stderr.splitlines()
    assert line in shown


@pytest.mark.parametrize("value", ["", "none", "none,bees", "tracecontext , baggage"])
def test_propagators_that_are_there_are_welcome(value):
    code = "from service.propagators import check_propagators as check; check(); import service.app"
    done = python(f"{code}, service.tracing", OTEL_PROPAGATORS=value)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_variable_for_traces_goes_before_that_for_all(monkeypatch, tiny_bundle):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert create_app(Settings(bundle=tiny_bundle, traces="otlp")).state.tracing


def test_the_frameworks_own_spans_stay_off(process, collector, wait_until):
    """They hold the query; a variable that is there for another program must not bring them."""
    running = process(
        FASTAPI_OTEL_AUTO_CONFIGURE="true",
        L2E_DRAIN_DELAY="0",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    with httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.get("/", params={"q": CANARY}).status_code == 200
    running.popen.terminate()
    assert running.wait() == 0
    assert collector.bodies == []
