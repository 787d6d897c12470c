"""From the start of a process to its orderly end."""

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import Request

from models.bundle import load
from models.device import available_threads
from models.session import OnnxSession
from service.app import create_app
from service.batching.tickets import Query, Wish
from service.requests import GONE, while_connected
from service.server import Server, configure, listen
from service.settings import Settings
from tests.bench.servers import running_on
from tests.service.conftest import HeldExplainer
from training.evaluation.timing import server_timing

CANARY = "zanzibar"


def get(url, path):
    return httpx.get(f"{url}{path}", timeout=20, trust_env=False)


def test_import_leaves_torch_out():
    code = "import sys, service.app; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_loaded_before_the_start(tiny_bundle):
    backend = create_app(Settings(bundle=tiny_bundle)).state.backend
    assert backend.alive
    assert backend.phase.value == "loading"


def test_loading_answers_503_until_ready(serving, wait_until):
    live = serving()
    statuses = {live.client.get("/health/ready").status_code}
    wait_until(lambda: live.client.get("/health/ready").status_code == 200)
    assert statuses <= {200, 503}
    assert live.client.get("/health/ready").json() == {"status": "ready"}
    assert live.client.post("/predict", json={"text": "great"}).status_code == 200


@pytest.mark.skipif(available_threads() < 2, reason="one core runs one text at a time")
def test_two_cores_run_two_texts_at_a_time(serving, tiny_bundle):
    held = HeldExplainer(load(tiny_bundle), OnnxSession(tiny_bundle / "model.onnx", threads=2))
    held.allow(2)
    live = serving(held)
    held.hold()
    with ThreadPoolExecutor(2) as pool:
        texts = ["great", "boring"]
        replies = [pool.submit(live.client.post, "/predict", json={"text": one}) for one in texts]
        try:
            for _ in replies:
                held.wait_until_entered()
        finally:
            held.gate.set()
        assert [reply.result().status_code for reply in replies] == [200, 200]
    assert sorted(held.seen) == ["boring", "great"]


@pytest.mark.parametrize("path", ["/health/ready", "/models"])
def test_not_loaded_is_503(tiny_bundle, path):
    # Without a lifespan nothing is loaded: the state before it.
    app = create_app(Settings(bundle=tiny_bundle))

    async def scene():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://l2e") as client:
            predicted = await client.post("/predict", json={"text": CANARY})
            return predicted, await client.get(path), await client.get("/health/live")

    predicted, state, alive = asyncio.run(scene())
    for response in (predicted, state):
        assert response.status_code == 503
        assert response.json()["type"] == "urn:l2e:problem:loading"
        assert int(response.headers["retry-after"]) >= 1
    assert alive.json() == {"status": "live"}


def test_draining_is_not_ready_but_answers_until_closed(serving, tiny_explainer):
    live = serving(tiny_explainer)
    assert live.client.get("/health/ready").status_code == 200
    live.backend.drain()
    ready = live.client.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["type"] == "urn:l2e:problem:draining"
    assert "retry-after" in ready.headers
    assert live.client.get("/health/live").status_code == 200
    assert live.client.post("/predict", json={"text": "great"}).status_code == 200
    live.backend.close()
    refused = live.client.post("/predict", json={"text": "great"})
    assert refused.status_code == 503
    assert "retry-after" in refused.headers


def test_full_line_is_503_with_retry_after(serving, held, wait_until):
    live = serving(held, max_waiting=1)
    held.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(live.client.post, "/predict", json={"text": "one"})
        held.wait_until_entered()
        second = pool.submit(live.client.post, "/predict", json={"text": "two"})
        wait_until(lambda: live.backend._scheduler.waiting == 1)
        refused = live.client.post("/predict", json={"text": "three"})
        unread = live.client.post("/predict", content=b"not even JSON")
        large = live.client.post("/predict", json={"text": "long " * 9_000})
        # Health does not queue.
        assert live.client.get("/health/live", timeout=2).status_code == 200
        assert live.client.get("/health/ready", timeout=2).status_code == 200
        held.gate.set()
        assert {first.result().status_code, second.result().status_code} == {200}
    for answer in (refused, unread, large):
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:l2e:problem:overloaded"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers.get("connection") != "close"
    assert live.client.post("/predict", json={"text": "four"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [("/predict", {"text": "slow"}), ("/predict/batch", {"items": [{"text": "slow"}] * 2})],
)
def test_deadline_is_504(serving, held, path, body):
    live = serving(held, request_timeout=0.2)
    held.hold()
    response = live.client.post(path, json=body)
    held.gate.set()
    assert response.status_code == 504
    assert response.json()["type"] == "urn:l2e:problem:deadline-passed"


@pytest.mark.parametrize("offer", ["", "Connection: upgrade\r\nUpgrade: h2c\r\n"])
@pytest.mark.parametrize("filling", [0, 400_000])  # more than is taken in before anybody reads it
def test_client_that_leaves_the_line_is_not_computed(serving, held, wait_until, filling, offer):
    live = serving(held)
    held.hold()
    host, port = live.url.removeprefix("http://").split(":")
    body = b'{"items": [{"text": "leaver"}]' + b" " * filling + b"}"
    head = f"POST /predict/batch HTTP/1.1\r\nHost: x\r\n{offer}Content-Length: {len(body)}\r\n"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(live.client.post, "/predict", json={"text": "first"})
        held.wait_until_entered()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            wait_until(lambda: live.backend._scheduler.waiting == 1)
        wait_until(lambda: live.backend._scheduler.waiting == 0)
        held.gate.set()
        assert first.result().status_code == 200
    assert live.client.post("/predict", json={"text": "next"}).status_code == 200
    assert held.seen == ["first", "next"]


def test_a_request_at_a_shut_gate_waits_and_counts_from_its_head(serving, tiny_explainer):
    live = serving(tiny_explainer)
    live.backend.gate.shut()
    answer = live.client.post("/predict", json={"text": "great"})
    assert answer.status_code == 200
    assert server_timing(answer.headers["server-timing"])["total"] >= 90


def test_on_one_core_runs_shut_the_gate_of_the_server(serving, held):
    with running_on(frozenset([min(os.sched_getaffinity(0))])):
        live = serving(held, max_batch_tokens=64)
    scheduler, gate = live.backend._scheduler, live.backend.gate

    async def scene():
        held.hold()
        first = asyncio.ensure_future(scheduler.ask([Query("first")], Wish(), timeout=20))
        await asyncio.to_thread(held.wait_until_entered)
        many = asyncio.ensure_future(scheduler.ask([Query("great")] * 100, Wish(), timeout=20))
        await asyncio.sleep(0)
        held.hold()
        held.gate.set()
        await asyncio.to_thread(held.wait_until_entered)
        assert gate.is_shut
        assert (await asyncio.to_thread(live.client.get, "/health/live")).status_code == 200
        held.gate.set()
        await asyncio.gather(first, many)
        assert not gate.is_shut

    asyncio.run(scene())


def test_a_client_that_leaves_at_a_shut_gate_is_not_computed(serving, held, wait_until, caplog):
    live = serving(held)
    live.backend.gate.shut()
    host, port = live.url.removeprefix("http://").split(":")
    body = b'{"text": "leaver"}'
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    wait_until(lambda: 'l2e_requests_total{code="499"' in live.client.get("/metrics").text)
    assert live.client.post("/predict", json={"text": "next"}).status_code == 200
    assert held.seen == ["next"]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_request_at_a_shut_gate_is_answered_at_the_end(serving, tiny_explainer, wait_until):
    live = serving(tiny_explainer, drain_delay=0)
    live.backend.gate.shut()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(live.client.post, "/predict", json={"text": "great"})
        wait_until(lambda: live.backend.gate.keeps)
        live.server.handle_exit(signal.SIGTERM, None)
        assert waiting.result().status_code == 200


def test_a_connection_keeps_nothing_of_its_requests():
    async def scene():
        gone = asyncio.get_running_loop().create_future()
        request = Request({"type": "http", GONE: gone})
        for number in range(100):
            assert await while_connected(request, asyncio.sleep(0, number)) == number
        return gone

    gone = asyncio.run(scene())
    assert not gone._callbacks


def test_running_request_is_finished_at_the_end(serving, held, wait_until):
    live = serving(held, drain_delay=0)
    held.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(live.client.post, "/predict", json={"text": "great"})
        held.wait_until_entered()
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: not live.server.servers[0].is_serving())
        held.gate.set()
        assert running.result().status_code == 200


def test_sigterm_drains_finishes_and_exits_0(process, wait_until):
    running = process(L2E_DRAIN_DELAY="1.5")
    wait_until(lambda: get(running.url, "/health/ready").status_code == 200)
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({"text": f"{CANARY} great"}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        # A request that is half sent when the signal comes.
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:5])
        running.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: get(running.url, "/health/ready").status_code == 503)
        assert get(running.url, "/health/live").status_code == 200
        connection.sendall(body[5:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert running.wait() == 0
    assert "has ended" in running.lines[-1]
    assert not any(CANARY in line or "Traceback" in line for line in running.lines)


def test_ctrl_c_skips_the_delay_and_exits_0(process, wait_until):
    running = process(L2E_DRAIN_DELAY="60")
    wait_until(lambda: get(running.url, "/health/ready").status_code == 200)
    running.popen.send_signal(signal.SIGINT)
    assert running.wait() == 0


def test_second_signal_ends_the_delay(process, wait_until):
    running = process(L2E_DRAIN_DELAY="60")
    wait_until(lambda: get(running.url, "/health/ready").status_code == 200)
    running.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: get(running.url, "/health/ready").status_code == 503)
    running.popen.send_signal(signal.SIGTERM)
    assert running.wait() == 0


def _flip_a_byte(bundle):
    model = bundle / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)


def _lose_a_file(bundle):
    (bundle / "tokenizer.json").unlink()


def _come_from_the_future(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["schema_version"] = 99
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_flip_a_byte, "model.onnx"),
        (_lose_a_file, "tokenizer.json"),
        (_come_from_the_future, "newer"),
        (shutil.rmtree, "bundle"),
    ],
)
def test_bad_bundle_is_one_clear_line_and_exit_2(process, tiny_bundle, tmp_path, damage, word):
    bundle = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, bundle)
    damage(bundle)
    running = process(L2E_BUNDLE=str(bundle))
    assert running.wait() == 2
    bad = [line for line in running.lines if "ERROR" in line]
    assert len(bad) == 1
    assert word in bad[0]
    assert not any("Traceback" in line for line in running.lines)


def test_bad_setting_is_one_line_and_exit_2(process):
    running = process(L2E_PORT="x")
    assert running.wait() == 2
    assert [line for line in running.lines if "L2E_PORT" in line] == running.lines


def test_taken_port_is_one_line_and_exit_1(process):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = process(L2E_PORT=str(taken.getsockname()[1]))
        assert running.wait() == 1
    assert len(running.lines) == 1
    assert "cannot listen on 127.0.0.1" in running.lines[0]


@pytest.mark.parametrize("whole_process", [False, True])
def test_memory_is_settled_where_the_process_is_ours(whole_process, tiny_bundle, tiny_explainer):
    app = create_app(Settings(bundle=tiny_bundle), tiny_explainer)
    server = Server(configure(app), app.state.backend, whole_process=whole_process)

    async def scene():
        await app.state.backend.start()
        await server.on_tick(1)
        await app.state.backend.stop()

    try:
        asyncio.run(scene())
        assert (gc.get_freeze_count() > 0) == whole_process
    finally:
        gc.unfreeze()


def test_connections_send_at_once():
    # Else every answer waits for the client's delayed acknowledgement, 40 ms.
    with listen("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        connection, _ = sock.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
