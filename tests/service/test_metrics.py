"""What the service says about itself: /metrics, Server-Timing, request ids, log lines."""

import asyncio
import json
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.text import bucket_length
from service.logs import AccessLines, Answered
from service.metrics import REASONS, STAGES, Metrics
from service.middleware import Envelope


def read(client):
    """The samples as `{(name, (label values, by label)): value}`."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_a_fresh_server_has_every_series_at_zero(serving, tiny_explainer):
    found = read(serving(tiny_explainer).client)
    for reason in REASONS:
        assert found["l2e_dropped_total", (reason,)] == 0
    for label in tiny_explainer.labels:
        assert found["l2e_predictions_total", (label,)] == 0
    for stage in STAGES:
        assert found["l2e_stage_duration_seconds_count", (stage,)] == 0
    manifest = tiny_explainer.bundle.manifest
    assert found["l2e_bundle_info", (manifest.digest, manifest.name)] == 1
    for name in ("requests", "rows", "tokens"):
        assert found[f"l2e_waiting_{name}", ()] == 0
    assert found["l2e_queue_age_seconds", ()] == 0
    assert found["process_resident_memory_bytes", ()] > 0


def test_requests_texts_and_tokens_are_counted(serving, tiny_explainer):
    client = serving(tiny_explainer).client
    texts = ["a great story", "boring", "great"]
    assert client.post("/predict", json={"text": texts[0]}).status_code == 200
    items = {"items": [{"text": text} for text in texts[1:]]}
    assert client.post("/predict/batch", json=items).status_code == 200
    assert client.post("/predict", json={"text": ""}).status_code == 422
    found = read(client)
    assert found["l2e_requests_total", ("200", "POST", "/predict")] == 1
    assert found["l2e_requests_total", ("422", "POST", "/predict")] == 1
    assert found["l2e_requests_total", ("200", "POST", "/predict/batch")] == 1
    assert found["l2e_request_duration_seconds_count", ("/predict",)] == 2
    assert found["l2e_predictions_total", ("POS",)] == 2
    assert found["l2e_predictions_total", ("NEG",)] == 1
    for stage in STAGES:
        assert found["l2e_stage_duration_seconds_count", (stage,)] == 3
    lengths = [len(tiny_explainer.encode(text).windows[0].input_ids) for text in texts]
    padded = [bucket_length(length) for length in lengths]
    assert found["l2e_batch_rows_sum", ()] == 3
    assert found["l2e_batch_tokens_sum", ()] == sum(padded)
    assert found["l2e_padding_tokens_total", ()] == sum(padded) - sum(lengths)
    shares = []
    for text in texts:
        (one,) = tiny_explainer.explain([text])
        inside = [
            word
            for word in one.words
            if any(span.start <= word.start < span.end for span in one.rationale)
        ]
        shares.append(len(inside) / len(one.words))
    assert found["l2e_rationale_fraction_sum", ()] == pytest.approx(sum(shares))
    assert sum(shares) > 0


def test_many_are_counted_like_few(serving, tiny_explainer):
    client = serving(tiny_explainer).client
    items = {"items": [{"text": "great"}] * 50}
    for _ in range(4):
        assert client.post("/predict/batch", json=items).status_code == 200
    found = read(client)
    assert found["l2e_predictions_total", ("POS",)] == 200
    assert found["l2e_stage_duration_seconds_count", ("decode",)] == 200
    assert found["l2e_batch_rows_sum", ()] == 200
    assert found["l2e_requests_total", ("200", "POST", "/predict/batch")] == 4


def test_what_is_not_computed_has_its_reason(serving, held, wait_until):
    live = serving(held, max_waiting=1, request_timeout=1.0)
    held.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(live.client.post, "/predict", json={"text": "one"})
        held.wait_until_entered()
        second = pool.submit(live.client.post, "/predict", json={"text": "two"})
        wait_until(lambda: live.backend._scheduler.waiting_rows == 1)
        found = read(live.client)
        assert found["l2e_waiting_requests", ()] == 1
        assert found["l2e_waiting_rows", ()] == 1
        assert found["l2e_waiting_tokens", ()] >= 8
        assert found["l2e_queue_age_seconds", ()] > 0
        assert live.client.post("/predict", json={"text": "three"}).status_code == 503
        assert {first.result().status_code, second.result().status_code} == {504}
        held.gate.set()
    wait_until(lambda: read(live.client)["l2e_dropped_total", ("deadline",)] == 2)
    assert read(live.client)["l2e_dropped_total", ("overload",)] == 1
    assert held.seen == ["one"]


def test_a_reply_says_where_its_time_went(client):
    response = client.post("/predict", json={"text": "a great story"})
    stages = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert set(stages) == {*STAGES, "total"}
    spent = {stage: float(value) for stage, value in stages.items()}
    total = spent.pop("total")
    assert 0 < sum(spent.values()) <= total + 0.05
    assert spent["run"] > 0
    assert "total;dur=" in client.get("/health/live").headers["server-timing"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0123456789abcdef" * 2, True),
        ("123e4567-e89b-12d3-a456-426614174000", True),
        ("zanzibar", False),
        ("0" * 33, False),
        ("", False),
    ],
)
def test_the_gateways_request_id_is_kept_and_no_other(given, kept, client):
    found = client.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"]
    assert (found == given) == kept
    assert re.fullmatch("[0-9a-f-]{32,36}", found)


def test_log_lines_are_json_where_that_is_asked_for(process, wait_until):
    running = process(L2E_LOG_FORMAT="json", L2E_DRAIN_DELAY="0")
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        answer = client.post("/predict", json={"text": "zanzibar is great"})
    assert answer.status_code == 200
    running.popen.terminate()
    assert running.wait() == 0
    lines = [json.loads(line) for line in running.lines if line.strip()]
    (of_request,) = [line for line in lines if line.get("route") == "/predict"]
    assert of_request["request"] == answer.headers["x-request-id"]
    assert (of_request["method"], of_request["status"]) == ("POST", 200)
    assert of_request["bytes"] == len(answer.content)
    for stage in STAGES:
        assert of_request["ms"] >= of_request[f"{stage}_ms"] >= 0
    assert any("l2e listens on" in line.get("message", "") for line in lines)
    assert "zanzibar" not in "".join(running.lines)


def test_each_request_has_its_line(client, caplog, wait_until):
    def lines():
        access = [one for one in caplog.records if one.name == "l2e.access"]
        return [one for one in access if one.fields["request"] in asked]

    caplog.set_level(logging.INFO, logger="l2e.access")
    start = time.time()
    asked = [client.get("/health/live").headers["x-request-id"] for _ in range(99)]
    end = time.time()
    wait_until(lambda: len(lines()) >= 99)
    assert [line.fields["request"] for line in lines()] == asked
    times = [line.created for line in lines()]
    assert times == sorted(times)
    assert start <= times[0]
    assert times[-2] <= end  # the last one is noted after its client has heard


def test_lines_are_written_many_together(caplog):
    """And not before, but for the last ones, with the times of the answers."""

    async def run():
        lines = AccessLines()
        counts = []
        for _ in range(70):
            lines.add(Answered(1.5, "id", "GET", "/", 200, 2, 0.01, {}, {}))
            counts.append(len(caplog.records))
        assert counts == [0] * 31 + [32] * 32 + [64] * 7
        for more in (70, 71):
            await asyncio.sleep(0.2)
            assert len(caplog.records) == more
            lines.add(Answered(1.5, "id", "GET", "/", 200, 2, 0.01, {}, {}))

    caplog.set_level(logging.INFO, logger="l2e.access")
    asyncio.run(run())
    assert {record.created for record in caplog.records} == {1.5}


def test_lines_that_wait_are_written_when_the_server_ends(caplog):
    async def app(scope, _receive, _send):
        if scope["type"] == "lifespan":
            assert not caplog.records
        elif scope.get("path") == "/slow":
            await asyncio.sleep(10)

    async def ask(envelope, **scope):
        headers: list[tuple[bytes, bytes]] = []
        await envelope({"type": "http", "method": "GET", "headers": headers, **scope}, None, None)

    async def run():
        envelope = Envelope(app, Metrics(), AccessLines())
        slow = asyncio.create_task(ask(envelope, path="/slow"))
        await asyncio.sleep(0)
        await ask(envelope, path="/quick")
        await asyncio.sleep(0)
        await ask(envelope, type="websocket")
        await ask(envelope, type="lifespan")
        assert len(caplog.records) == 1
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    caplog.set_level(logging.INFO, logger="l2e.access")
    asyncio.run(run())
    assert len(caplog.records) == 2
