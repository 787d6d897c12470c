"""A canary in every place a client can write to: no log line and no error repeats it."""

import json
import logging
import socket

import pytest

CANARY = "zanzibar"
JSON = {"content-type": "application/json"}


@pytest.fixture
def everything_logged(caplog):
    for name in ("", "uvicorn", "uvicorn.error", "uvicorn.access", "l2e.service", "l2e.access"):
        caplog.set_level(logging.DEBUG, logger=name or None)
    return caplog


def test_canary_is_in_no_log_and_no_error(serving, held, everything_logged, wait_until):
    live = serving(held, max_body_bytes=2000)
    client = live.client
    bodies = [
        json.dumps({"text": f"{CANARY} great"}),
        json.dumps({"text": f"{CANARY} poison"}),
        json.dumps({"text": CANARY, "target": CANARY}),
        json.dumps({"text": CANARY, CANARY: CANARY}),
        json.dumps({"text": [CANARY]}),
        json.dumps({"text": f"{CANARY} \ud800"}),
        json.dumps([CANARY]),
        f'{{"text": "{CANARY}',
        json.dumps({"text": CANARY * 500}),
    ]
    for body in bodies:
        answer = client.post("/predict", content=body, headers=JSON)
        assert answer.status_code == 200 or CANARY not in answer.text
    items = {"items": [{"text": f"{CANARY} poison"}, {"text": CANARY, "target": CANARY}]}
    assert CANARY not in client.post("/predict/batch", json=items).text
    for path in (f"/{CANARY}", f"/?q={CANARY}", f"/page/{CANARY}", f"/predict?text={CANARY}"):
        assert CANARY not in client.get(path).text.replace(path, "")
    client.request(CANARY.upper(), "/predict")
    client.get("/", headers={"user-agent": CANARY, "referer": CANARY, "x-request-id": CANARY})
    last = client.get("/metrics")
    assert CANARY not in last.text
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{CANARY} {CANARY}\r\n\r\n".encode())
        assert CANARY.encode() not in connection.recv(1000)

    def all_are_written():
        access = [one.fields for one in everything_logged.records if one.name == "l2e.access"]
        return access and access[-1]["request"] == last.headers["x-request-id"]

    wait_until(all_are_written)
    # The client of this test logs in the same process; the server's lines are the others.
    logged = [
        f"{record.getMessage()} {record.exc_text or ''}".lower()
        for record in everything_logged.records
        if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert any("post /predict 200" in line for line in logged)
    assert any("post /predict 500" in line for line in logged)
    assert not [line for line in logged if CANARY in line]
