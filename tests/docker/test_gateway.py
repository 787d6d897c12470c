"""Debian's real nginx with the shipped nginx.conf, before a real server process.

Replaced are upstream.conf, which says where the service is, and the port that nginx listens on. As
in the image, nginx runs as an ordinary user and writes only below its prefix.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = ROOT / "docker" / "gateway"
NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
NOBODY = 65534
BODY_LIMIT = 8 * 2**20

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass(frozen=True)
class Running:
    """A gateway at work: a client for it, its port and its log (access and errors)."""

    client: httpx.Client
    port: int
    log: Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on port {port}: {log.read_text()}")


@contextmanager
def running(command: Sequence[object], port: int, log: Path, **options: Any) -> Iterator[None]:
    """A process that listens on `port`; ended when the block is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*map(str, command)], stdout=output, stderr=subprocess.STDOUT, **options
        )
    try:
        wait_for_port(port, process, log)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def prepare(upstream_port: int, **changes: str) -> Path:
    """A prefix folder with the shipped file in it.

    Args:
        upstream_port: where the service is, on this machine.
        changes: directives by name, each of which the file must have once or more.
    """
    prefix = Path(tempfile.mkdtemp(prefix="l2e-gateway-"))
    text = (GATEWAY / "nginx.conf").read_text()
    for name, value in changes.items():
        old = next(
            line.strip() for line in text.splitlines() if line.strip().startswith(f"{name} ")
        )
        text = text.replace(old, f"{name} {value};")
    (prefix / "nginx.conf").write_text(text)
    server = f"upstream service {{ server 127.0.0.1:{upstream_port}; keepalive 4; }}\n"
    (prefix / "upstream.conf").write_text(server)
    (prefix / "log").touch()
    if os.geteuid() == 0:
        for path in (prefix, prefix / "log"):
            os.chown(path, NOBODY, NOBODY)
    return prefix


def nginx(prefix: Path, *arguments: str) -> list[str]:
    return [str(NGINX), "-e", "stderr", "-p", str(prefix), "-c", f"{prefix}/nginx.conf", *arguments]


@contextmanager
def gateway(upstream_port: int, **changes: str) -> Iterator[Running]:
    port = free_port()
    prefix = prepare(upstream_port, listen=f"127.0.0.1:{port}", **changes)
    as_nobody: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    log = prefix / "log"
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
    try:
        command = nginx(prefix, "-g", "daemon off;")
        with client, running(command, port, log, cwd=prefix, **as_nobody):
            yield Running(client, port, log)
    finally:
        shutil.rmtree(prefix)


@pytest.fixture(scope="module")
def service_port(tiny_bundle, tmp_path_factory) -> Iterator[int]:
    """The real service with the tiny bundle, in a process of its own."""
    port, log = free_port(), tmp_path_factory.mktemp("service") / "log"
    log.touch()
    command = [sys.executable, "-m", "l2e", "serve", "--bundle", tiny_bundle, "--port", port]
    with running(command, port, log, cwd=ROOT):
        ready = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        with ready:
            deadline = time.monotonic() + 60
            while ready.get("/health/ready").status_code != 200:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield port


@pytest.fixture(scope="module")
def front(service_port) -> Iterator[Running]:
    with gateway(service_port) as at_work:
        yield at_work


def check_problem(response: httpx.Response, status: int, kind: str) -> dict:
    """An RFC 9457 problem of the gateway's own, which names the request."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "instance"}
    assert body["type"] == f"urn:l2e:problem:{kind}"
    assert body["status"] == status
    assert body["instance"] == f"urn:l2e:request:{response.headers['x-request-id']}"
    return body


def test_nginx_accepts_the_file_as_it_is():
    prefix = prepare(9)
    done = subprocess.run(nginx(prefix, "-t"), capture_output=True, text=True)
    shutil.rmtree(prefix)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


def test_a_prediction_passes_through(front):
    text = "A great story, but boring."
    response = front.client.post("/predict", json={"text": text})
    assert response.status_code == 200
    answer = response.json()
    assert answer["label"] in answer["scores"]
    assert answer["rationale"]
    for span in answer["rationale"]:
        assert text[span["start"] : span["end"]] == span["text"]


@pytest.mark.parametrize("path", ["/", "/docs", "/models", "/health/live", "/health/ready"])
def test_what_a_client_may_see_passes_through(front, path):
    assert front.client.get(path).status_code == 200


def test_a_long_answer_is_compressed(front):
    body = {"text": "great " * 200, "words": True}
    response = front.client.post("/predict", json=body, headers={"accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert len(response.json()["words"]) == 200


def test_an_error_of_the_service_passes_unchanged(front, service_port):
    direct = httpx.post(
        f"http://127.0.0.1:{service_port}/predict", json={"text": " "}, trust_env=False
    )
    response = front.client.post("/predict", json={"text": " "})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == direct.json()


def test_the_metrics_are_not_exposed(front):
    check_problem(front.client.get("/metrics"), 404, "not-found")
    check_problem(front.client.get("/metrics/x"), 404, "not-found")


def test_the_server_does_not_tell_its_version(front):
    for path in ("/", "/metrics"):
        assert front.client.get(path).headers.get_list("server") == ["nginx"]


def test_a_request_keeps_its_id(front):
    response = front.client.get("/models", headers={"X-Request-Id": "order-66.a_b"})
    assert response.headers.get_list("x-request-id") == ["order-66.a_b"]


@pytest.mark.parametrize("given", [None, "", 'a"b', "a b", "x" * 65, "é".encode()])
def test_a_request_without_a_usable_id_gets_one(front, given):
    headers = {} if given is None else {"X-Request-Id": given}
    (answered,) = front.client.get("/models", headers=headers).headers.get_list("x-request-id")
    assert len(answered) == 32
    assert int(answered, 16) >= 0


def test_a_body_at_the_limit_reaches_the_service(front):
    response = front.client.post("/predict", content=b"x" * BODY_LIMIT)
    assert response.status_code in (400, 415)  # read and refused there: it is not JSON


def test_a_body_over_the_limit_is_refused(front):
    response = front.client.post("/predict", content=b"x" * (BODY_LIMIT + 1))
    assert "8 MiB" in check_problem(response, 413, "too-large")["detail"]


def test_a_body_over_the_limit_is_refused_without_a_declared_length(front):
    pieces = (b"x" * 2**16 for _ in range(BODY_LIMIT // 2**16 + 1))
    response = front.client.post("/predict", content=pieces)
    check_problem(response, 413, "too-large")


def test_too_many_requests_are_refused_politely(service_port):
    with gateway(
        service_port, limit_req_zone="$binary_remote_addr zone=requests:1m rate=1r/s"
    ) as at:
        answers = [at.client.get("/models") for _ in range(110)]
        healthy = at.client.get("/health/live")
    accepted = [answer for answer in answers if answer.status_code == 200]
    refused = answers[-1]
    check_problem(refused, 429, "too-many-requests")
    assert int(refused.headers["retry-after"]) > 0
    assert 100 <= len(accepted) < 110
    assert healthy.status_code == 200


def test_a_service_that_is_down_is_a_problem():
    with gateway(free_port()) as at:
        for response in (at.client.post("/predict", json={"text": "good"}), at.client.get("/")):
            check_problem(response, 502, "unreachable")


def test_a_service_that_does_not_answer_is_a_problem():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        gateway(silent.getsockname()[1], proxy_read_timeout="1s") as at,
    ):
        response = at.client.post("/predict", json={"text": "good"})
        check_problem(response, 504, "deadline-passed")


def test_a_stream_goes_both_ways_line_by_line():
    with (
        socket.create_server(("127.0.0.1", 0)) as upstream,
        gateway(upstream.getsockname()[1]) as at,
        socket.create_connection(("127.0.0.1", at.port), timeout=10) as client,
    ):
        upstream.settimeout(10)
        client.sendall(
            b"POST /predict/stream HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"6\r\nfirst\n\r\n"
        )
        service, _ = upstream.accept()
        service.settimeout(10)
        with service:
            read_until(service, b"first\n")  # while the request has not ended
            service.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            service.sendall(b"4\r\none\n\r\n")
            read_until(client, b"one\n")  # while the response has not ended
            client.sendall(b"7\r\nsecond\n\r\n0\r\n\r\n")
            read_until(service, b"second\n")


def read_until(connection: socket.socket, wanted: bytes) -> None:
    """Reads on until `wanted` has come; a time-out or an end before it fails the test."""
    seen = b""
    while wanted not in seen:
        piece = connection.recv(65536)
        assert piece, seen
        seen += piece


def test_the_log_has_the_request_and_not_its_text(front):
    headers = {"X-Request-Id": "canary-1"}
    front.client.post("/predict?q=ostrich", json={"text": "ostrich"}, headers=headers)
    deadline = time.monotonic() + 10
    while "canary-1" not in front.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    log = front.log.read_text()
    (line,) = [json.loads(line) for line in log.splitlines() if "canary-1" in line]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/predict", 200)
    assert "ostrich" not in log
