"""POST /predict/stream on a real server: lines in, lines out, for as long as they last."""

import dataclasses
import json
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.backend import Phase
from service.stream import MEDIA_TYPE

TYPE = {"content-type": MEDIA_TYPE}


def stream(client, *lines, query=""):
    plain = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    body = b"".join(line + b"\n" for line in plain)
    response = client.post(f"/predict/stream{query}", content=body, headers=TYPE)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    return [json.loads(line) for line in response.text.splitlines()]


class Talk:
    """A connection that sends and reads at its own pace."""

    def __init__(self, url, query=""):
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        # A fixed buffer: by itself Linux lets it grow to tens of MB, which would do the reading.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        head = f"POST /predict/stream{query} HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_TYPE}\r\n"
        self.socket.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")
        self.begun = False

    def send(self, data):
        self.socket.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def say(self, item):
        self.send(json.dumps(item).encode() + b"\n")

    def end(self):
        self.socket.sendall(b"0\r\n\r\n")

    def hear(self):
        """The next line, None at the end."""
        while not self.begun:
            self.begun = self.file.readline() == b"\r\n"
        size = int(self.file.readline(), 16)
        data = self.file.read(size + 2)[:-2]
        return json.loads(data) if size else None

    def close(self):
        self.file.close()
        self.socket.close()


@contextmanager
def talking(url, query=""):
    talk = Talk(url, query)
    try:
        yield talk
    finally:
        talk.close()


def test_each_line_gets_the_answer_of_predict(client, mixed_texts):
    items = [{"id": f"n{place}", "text": text} for place, text in enumerate(mixed_texts)]
    *found, last = stream(client, *items)
    assert last == {"summary": {"ok": len(items), "failed": 0}}
    for index, (item, line) in enumerate(zip(items, found, strict=True)):
        alone = client.post("/predict", json={"text": item["text"]}).json()
        assert line == {"index": index, "id": item["id"], "status": "ok", "result": alone}


def test_bad_lines_fail_alone_and_blank_ones_are_none(client):
    *found, last = stream(
        client,
        {"text": "great"},
        b"not json",
        b"",
        b"  \r",
        {"id": "x", "text": ""},
        {"text": "fine", "target": "UNKNOWN"},
        b'{"text": "\xff"}',
        [1],
        {"text": "boring", "target": "POS"},
    )
    assert [line["index"] for line in found] == list(range(7))
    statuses = [line.get("error", {}).get("status") for line in found]
    assert statuses == [None, 400, 422, 422, 400, 422, None]
    assert found[2]["id"] == "x"
    assert found[-1]["result"]["target"] == "POS"
    assert last == {"summary": {"ok": 2, "failed": 5}}


def test_a_line_over_the_limit_is_passed_over(serving, tiny_explainer):
    client = serving(tiny_explainer, max_body_bytes=1000).client
    long = {"text": "great " * 100_000}
    *found, last = stream(client, {"text": "great"}, long, {"text": "fine"}, long)
    assert [line.get("error", {}).get("status") for line in found] == [None, 413, None, 413]
    assert last == {"summary": {"ok": 2, "failed": 2}}


def test_what_ends_lines_elsewhere_ends_none_here(client):
    text = "a great\u2028story\x85and\x0ca dull film"
    *found, last = stream(client, {"text": text}, query="?words=true&html=true")
    assert len(found) == 1
    assert "\u2028" in found[0]["result"]["html"]
    assert last == {"summary": {"ok": 1, "failed": 0}}


def test_no_lines_and_no_last_line_end(client):
    assert stream(client) == [{"summary": {"ok": 0, "failed": 0}}]
    response = client.post("/predict/stream", content=b'{"text": "great"}', headers=TYPE)
    assert json.loads(response.text.splitlines()[-1]) == {"summary": {"ok": 1, "failed": 0}}


def test_options_are_in_the_query(client):
    (line, _) = stream(client, {"text": "a great story"}, query="?words=true&max_words=1&html=1")
    assert len(line["result"]["words"]) == 3
    assert len(line["result"]["rationale"]) == 1
    assert "<mark" in line["result"]["html"]
    (line, _) = stream(client, {"text": "a great story"}, query="?explain=false")
    assert line["result"]["rationale"] == []


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?words=perhaps", TYPE, 422),
        ("?wrods=true", TYPE, 422),
        ("?explain=false&words=true", TYPE, 422),
        ("?max_words=0", TYPE, 422),
        ("", {"content-type": "application/json"}, 415),
        ("", {**TYPE, "content-encoding": "gzip"}, 415),
    ],
)
def test_a_bad_request_is_a_problem(query, headers, status, client):
    response = client.post(f"/predict/stream{query}", content=b"{}", headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_an_answer_comes_before_the_next_line_is_sent(live):
    with talking(live.url) as talk:
        for index, text in enumerate(["great", "boring", "fine"]):
            talk.say({"text": text})
            assert talk.hear()["index"] == index
        talk.send(b'{"text": "gre')  # a line in two pieces
        talk.send(b'at"}\n{"text": "dull"}\n')
        assert [talk.hear()["index"], talk.hear()["index"]] == [3, 4]
        talk.end()
        assert talk.hear() == {"summary": {"ok": 5, "failed": 0}}
        assert talk.hear() is None


def test_ten_thousand_items_and_a_slow_reader_do_not_grow_the_server(process, wait_until):
    """100 MB go in (mostly blanks), more than the buffers of a socket; the server holds a window
    of 128 items of it."""
    running = process(L2E_THREADS="1")
    wait_until(lambda: httpx.get(f"{running.url}/health/live", trust_env=False).status_code == 200)
    wait_until(lambda: httpx.get(f"{running.url}/health/ready", trust_env=False).status_code == 200)

    def resident():
        pages = Path(f"/proc/{running.popen.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize() / 2**20

    count, sent = 10_000, []
    line = json.dumps({"text": "great story " * 10}).encode() + b" " * 9900 + b"\n"
    with talking(running.url, "?words=true") as talk:
        for _ in range(200):  # memory that any work takes
            talk.send(line)
            assert talk.hear()["status"] == "ok"
        before = resident()

        def send():
            for _ in range(count):
                talk.send(line)
                sent.append(1)
            talk.end()

        sender = threading.Thread(target=send)
        sender.start()
        # Nobody reads: sending comes to a halt long before the end.
        seen = -1
        while seen != len(sent):
            seen = len(sent)
            sender.join(1.0)
        assert len(sent) < count, "the server read all of it while nobody read its answers"
        assert resident() - before < 40
        highest = before
        for index in range(count):
            assert talk.hear()["index"] == 200 + index
            if index % 1000 == 0:
                highest = max(highest, resident())
        assert talk.hear() == {"summary": {"ok": count + 200, "failed": 0}}
        sender.join(10)
        assert highest - before < 40


# Less and more than the window holds, before and after the last line.
@pytest.mark.parametrize(("count", "ended"), [(50, False), (50, True), (1000, False)])
def test_who_leaves_is_no_longer_computed_for(count, ended, serving, held, wait_until):
    live = serving(held, max_batch_tokens=8)
    held.hold()
    with talking(live.url) as talk:
        for _ in range(count):
            talk.say({"text": "great"})
        if ended:
            talk.end()
        held.wait_until_entered()
        wait_until(lambda: live.backend._scheduler.waiting_rows >= 40)
    wait_until(lambda: live.backend._scheduler.waiting == 0)
    held.gate.set()
    assert live.client.post("/predict", json={"text": "next"}).status_code == 200
    assert len(held.batches) == 2
    assert held.batches[-1] == ["next"]


def test_who_leaves_with_lines_beyond_a_full_window_is_noticed(serving, held, wait_until):
    live = serving(held, max_batch_tokens=8)
    held.hold()
    with talking(live.url) as talk:
        for _ in range(200):
            talk.say({"text": "great"})
        held.wait_until_entered()
        wait_until(lambda: live.backend._scheduler.waiting_rows == 127)  # of a window of 128
        for _ in range(3):  # each a message of its own
            time.sleep(0.05)
            talk.say({"text": "great"})
    wait_until(lambda: live.backend._scheduler.waiting == 0)
    held.gate.set()
    assert live.client.post("/predict", json={"text": "next"}).status_code == 200
    assert len(held.batches) == 2


def test_a_full_server_makes_a_stream_wait(serving, held):
    client = serving(held, max_waiting=1).client
    *found, last = stream(client, *[{"text": "great"}] * 20)
    assert last == {"summary": {"ok": 20, "failed": 0}}
    assert len(found) == 20


@pytest.mark.parametrize("idle", [True, False])
def test_a_server_that_shuts_down_says_where_it_stopped(idle, process, wait_until):
    running = process(L2E_DRAIN_DELAY="0.5")
    wait_until(lambda: httpx.get(f"{running.url}/health/ready", trust_env=False).status_code == 200)
    with talking(running.url) as talk:
        talk.say({"text": "great"})
        assert talk.hear()["status"] == "ok"
        running.popen.terminate()
        if not idle:
            wait_until(
                lambda: httpx.get(f"{running.url}/health/ready", trust_env=False).status_code == 503
            )
            talk.say({"text": "fine"})  # which may still be read, or not
        heard = [talk.hear()]
        while "summary" not in heard[-1]:
            heard.append(talk.hear())
        assert talk.hear() is None
    last = heard.pop()
    assert last["summary"] == {"ok": 1 + len(heard), "failed": 0}
    assert len(heard) <= (not idle)
    assert last["stopped"]["type"] == "urn:l2e:problem:draining"
    assert running.wait() == 0
    assert not [line for line in running.lines if "Traceback" in line or "ERROR" in line]


def test_what_was_read_to_its_end_is_whole_also_in_a_shutdown(serving, held, wait_until):
    live = serving(held, drain_delay=5)
    held.hold()
    with talking(live.url) as talk:
        talk.say({"text": "great"})
        talk.end()
        held.wait_until_entered()
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: live.backend.phase is Phase.DRAINING)
        held.gate.set()
        assert talk.hear()["status"] == "ok"
        assert talk.hear() == {"summary": {"ok": 1, "failed": 0}}


def test_a_client_that_asks_whether_to_go_on_is_told_so(live):
    host, port = live.url.removeprefix("http://").split(":")
    head = f"POST /predict/stream HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_TYPE}\r\n"
    body = b'{"text": "great"}\n'
    asked = f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    with (
        socket.create_connection((host, int(port)), timeout=10) as connection,
        connection.makefile("rb") as file,
    ):
        connection.sendall(asked.encode())
        assert file.readline().startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert file.readline() == b"\r\n"
        assert file.readline().startswith(b"HTTP/1.1 200 ")


def test_a_result_that_json_cannot_hold_is_the_error_of_its_item(serving, held, monkeypatch):
    client = serving(held).client
    plain = held.explanation_flow

    def spoilt(text, *given, **options):
        one = yield from plain(text, *given, **options)
        return dataclasses.replace(one, score=float("nan")) if text == "dull" else one

    monkeypatch.setattr(held, "explanation_flow", spoilt)
    items = [{"text": text} for text in ("great", "dull", "fine")]
    *found, last = stream(client, *items)
    assert [line["status"] for line in found] == ["ok", "error", "ok"]
    assert last == {"summary": {"ok": 2, "failed": 1}}
    batch = client.post("/predict/batch", json={"items": items}).json()
    assert [line["status"] for line in batch["results"]] == ["ok", "error", "ok"]
    assert batch["summary"] == {"ok": 2, "failed": 1}


def test_a_refused_stream_is_not_read_to_its_end(live):
    with talking(live.url, "?wrods=1") as talk:
        assert talk.file.readline().startswith(b"HTTP/1.1 422 ")
        head = b"".join(iter(talk.file.readline, b"\r\n"))
        assert b"connection: close" in head.lower()
