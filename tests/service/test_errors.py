"""Every status code, as a problem that says what to do and repeats nothing."""

import json
import socket

import httpx
import pytest

from service.errors import ProblemBody

CANARY = "zanzibar"
JSON = {"content-type": "application/json"}


def check(response, status, kind):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    ProblemBody.model_validate(problem)
    assert problem["status"] == status
    assert problem["type"] == f"urn:l2e:problem:{kind}"
    assert problem["detail"]
    assert CANARY not in response.text
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'text': 'zanzibar'}",
        b'{"text": "zanzibar"} x',
        b'{"text": zanzibar}',
        b'{"text": NaN}',
        b'{"text": Infinity}',
        b'{"text": "\xff\xfe zanzibar"}',
        '{"text": "zanzibar"}'.encode("utf-16"),
        b'{"max_words": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"text": "zanzibar \n"}',
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_400_not_json(client, path, body):
    check(client.post(path, content=body, headers=JSON), 400, "not-json")


@pytest.mark.parametrize("path", ["/zanzibar", "/predict/", "/page/zanzibar", "/page/../app.py"])
def test_404(client, path):
    check(client.get(path), 404, "not-found")


def test_405_names_the_methods(client):
    response = client.get("/predict", params={"text": CANARY})
    check(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_413_announced_body_is_not_read(serving, tiny_explainer):
    live = serving(tiny_explainer, max_body_bytes=1000)
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1001\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"1,000 bytes" in answer


def test_413_streamed_body_without_a_length(serving, tiny_explainer):
    client = serving(tiny_explainer, max_body_bytes=1000).client
    pieces = (b'{"text": "', *([b"zanzibar " * 10] * 20), b'"}')
    response = client.post("/predict", content=iter(pieces), headers=JSON)
    assert "content-length" not in response.request.headers
    check(response, 413, "too-large")


def test_413_counts_bytes_to_the_last(serving, tiny_explainer):
    client = serving(tiny_explainer, max_body_bytes=1000).client
    body = json.dumps({"text": "great"}).encode()
    for size, status in ((1000, 200), (1001, 413)):
        padded = body + b" " * (size - len(body))
        assert client.post("/predict", content=padded, headers=JSON).status_code == status
        streamed = client.post("/predict", content=iter([padded]), headers=JSON)
        assert streamed.status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "zanzibar"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=str,
)
def test_415(client, headers):
    response = client.post("/predict", content=b'{"text": "zanzibar"}', headers=headers)
    check(response, 415, "unsupported-media-type")


def test_charset_utf8_is_welcome(client):
    headers = {"content-type": "Application/JSON; charset=UTF-8"}
    assert client.post("/predict", content=b'{"text": "a"}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "#/text", "is required"),
        ({"text": ""}, "#/text", "must not be empty"),
        ({"text": " \n\t "}, "#/text", "blank"),
        ({"text": "zanzibar \ud800"}, "#/text", "lone surrogate"),
        ({"text": 7}, "#/text", "must be a valid string"),
        ({"text": ["zanzibar"]}, "#/text", "must be a valid string"),
        ({"text": None}, "#/text", "must be a valid string"),
        ({"text": "a", "target": CANARY}, "#/target", "the labels are NEG, POS"),
        ({"text": "a", "target": 1}, "#/target", "must be a valid string"),
        ({"text": "a", "explain": "true"}, "#/explain", "must be a valid boolean"),
        ({"text": "a", "explain": 1}, "#/explain", "must be a valid boolean"),
        ({"text": "a", "max_words": 0}, "#/max_words", "greater than or equal to 1"),
        ({"text": "a", "max_words": 1.0}, "#/max_words", "must be a valid integer"),
        ({"text": "a", "max_words": True}, "#/max_words", "must be a valid integer"),
        ({"text": "a", CANARY: 1}, "#", "has an unknown field; the fields are"),
        ({"text": "a", "\ud800": 1}, "#", "lone surrogate"),
        ({f"{CANARY}{n}": n for n in range(10_000)}, "#", "has unknown fields; the fields are"),
        ({"text": "a", "explain": False, "html": True}, "#", "html, which needs explain=true"),
        ([CANARY], "#", "must be a JSON object"),
        (CANARY, "#", "must be a JSON object"),
        (None, "#", "must be a JSON object"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_422(client, body, pointer, detail):
    response = client.post("/predict", content=json.dumps(body), headers=JSON)
    problem = check(response, 422, "invalid")
    assert problem["errors"][0]["pointer"] == pointer
    assert detail in problem["errors"][0]["detail"]
    assert detail in problem["detail"]


def test_422_text_over_the_limit_counts_code_points(serving, tiny_explainer):
    client = serving(tiny_explainer, max_text_chars=10).client
    assert client.post("/predict", json={"text": "😀" * 10}).status_code == 200
    problem = check(client.post("/predict", json={"text": "😀" * 11}), 422, "invalid")
    assert problem["detail"] == "text may have at most 10 characters"
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("PredictRequest", "BatchItem"):
        assert schemas[name]["properties"]["text"]["maxLength"] == 10


def test_422_names_no_more_than_twenty_places(client):
    body = {f"{CANARY}{number}": 1 for number in range(30)}
    problem = check(client.post("/predict", json=body), 422, "invalid")
    assert len(problem["errors"]) == 20


def test_500_gives_a_reference_into_the_log(serving, held, caplog):
    client = serving(held).client
    response = client.post("/predict", json={"text": f"poison {CANARY}"})
    problem = check(response, 500, "internal")
    lines = [record.message for record in caplog.records if problem["instance"] in record.message]
    assert len(lines) == 1
    assert "RuntimeError" in lines[0]
    assert "conftest.py" in lines[0]
    assert CANARY not in caplog.text
    assert client.get("/health/live").status_code == 200
    assert client.post("/predict", json={"text": "great"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/predict", "/health/live", "/nothing"])
def test_security_headers_are_on_every_answer(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_body_that_never_comes_leaves_no_trace(live, wait_until):
    host, port = live.url.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head + b'Content-Length: 100\r\n\r\n{"text":')
    wait_until(lambda: not live.server.server_state.tasks)
    assert httpx.get(f"{live.url}/health/live", trust_env=False).status_code == 200
