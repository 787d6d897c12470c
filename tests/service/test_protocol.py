"""Bytes on the socket that no client library sends, and in any order."""

import asyncio
import json
import logging
import socket
import struct
import time
from contextlib import contextmanager, suppress

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from service.protocol import MAX_HEAD, PIECE, Protocol

JSON = {"content-type": "application/json"}
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
MOST = 1 << 25  # bytes, more than sockets keep
OFFER = {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAMAAA"}


UPGRADE = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
OFFERED, OFFERING = (head.replace(b"Host", UPGRADE + b"Host") for head in (LIVE, CHUNKED))
ALIVE = (200, b'{"status":"live"}')


@contextmanager
def connected(live):
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def post(text, **headers):
    body = json.dumps({"text": text}).encode()
    lines = {"host": "x", **JSON, "content-length": len(body), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /predict HTTP/1.1\r\n{head}\r\n".encode() + body


def read_answers(connection, count):
    """Statuses and bodies of so many answers with a length."""
    stream = connection.makefile("rb")
    answers = []
    for _ in range(count):
        status = int(stream.readline().split()[1])
        length = None
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"content-length" else length
        answers.append((status, stream.read(length)))
    return answers


def read_all(connection):
    read: list[bytes] = []
    # Where bytes of ours are still on their way as it closes, that resets the connection.
    with suppress(ConnectionResetError):
        read += iter(lambda: connection.recv(65536), b"")
    return b"".join(read)


def alive(live):
    return live.client.get("/health/live").status_code == 200


def test_garbage_is_answered(live):
    with connected(live) as connection:
        connection.sendall(b"\x00\xff zanzibar\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert alive(live)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\n" + UPGRADE + b"X: ",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1000,
        CHUNKED + b"1;",
        OFFERING + b"1;",
        CHUNKED + b"1\r\n{\r\n0\r\nX: ",
        OFFERING + b"1\r\n{\r\n0\r\nX: ",
        b"\r\n" * 1000,
    ],
    ids=[
        "path",
        "header",
        "header offering an upgrade",
        "headers",
        "chunk",
        "chunk offering an upgrade",
        "trailer",
        "trailer offering an upgrade",
        "nothing",
    ],
)
def test_what_has_no_end_is_refused(start, live, wait_until):
    more = start[-6:] * 1000 if start.endswith(b"\n") else b"a" * 6000
    with connected(live) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(start + more * (2 * MAX_HEAD // len(more)))
        answer = read_all(connection)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    wait_until(lambda: not live.server.server_state.tasks)
    assert alive(live)


@pytest.mark.parametrize("size", [5, 40_000])
def test_a_request_that_offers_an_upgrade_is_answered(size, live, caplog):
    """As those of Java's clients and of `curl --http2` do."""
    for headers in (OFFER, OFFER, {}):
        body = json.dumps({"text": "great"}) + " " * size
        response = live.client.post("/predict", content=body, headers={**JSON, **headers})
        assert response.status_code == 200, response.text
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_an_upgrade_offered_on_a_used_connection_without_a_body(live):
    with connected(live) as connection:
        for request in (LIVE, OFFERED, LIVE):
            connection.sendall(request)
            assert read_answers(connection, 1) == [ALIVE]


def test_an_upgrade_offered_behind_a_request_that_is_computed(serving, held):
    """The connection goes on with another parser then, and with no timer of the first's."""
    held.gate.clear()
    live = serving(held)
    live.server.config.timeout_keep_alive = 1
    with connected(live) as connection:
        connection.sendall(post("great") + post("bad", **OFFER) + LIVE)
        assert held.entered.acquire(timeout=10)
        held.gate.set()
        assert [status for status, _ in read_answers(connection, 3)] == [200, 200, 200]
        held.gate.clear()
        connection.sendall(post("fine"))
        assert held.entered.acquire(timeout=10)
        time.sleep(1.5)
        held.gate.set()
        assert [status for status, _ in read_answers(connection, 1)] == [200]


def test_an_upgrade_of_http_1_0_closes(live):
    with connected(live) as connection:
        connection.sendall(OFFERED.replace(b"1.1", b"1.0"))
        assert read_all(connection).endswith(ALIVE[1])


@pytest.mark.parametrize("head", [CHUNKED, OFFERING], ids=["plain", "upgrade"])
def test_garbage_in_a_body_that_is_answered_already(head, live, caplog):
    with connected(live) as connection:
        connection.sendall(head.replace(b"application/json", b"text/plain"))
        assert [status for status, _ in read_answers(connection, 1)] == [415]
        connection.sendall(b"zz\r\n")
        assert b"HTTP/1.1 200" not in read_all(connection)
    assert not [one for one in caplog.records if one.levelno > logging.WARNING]
    assert alive(live)


def test_long_heads_and_many_small_chunks_are_welcome(live):
    long = {"x-long": "a" * (MAX_HEAD - 1000)}
    assert live.client.get("/health/live", headers=long).status_code == 200
    pieces = [b'{"text": "great"', *[b"  "] * 20_000, b"}"]  # heads of chunks of 100 kB in all
    response = live.client.post("/predict", content=iter(pieces), headers=JSON)
    assert response.status_code == 200, response.text


def test_trailers_are_passed_over(live):
    body = b'{"text": "great"}'
    request = CHUNKED + b"%x\r\n%s\r\n0\r\nHost: y\r\nX: y\r\n\r\n" % (len(body), body)
    with connected(live) as connection:
        connection.sendall(request * 2)
        assert [status for status, _ in read_answers(connection, 2)] == [200, 200]


def test_a_trailer_may_close(live):
    body = b'{"text": "great"}'
    end = b"0\r\nConnection: close\r\n\r\n"
    with connected(live) as connection:
        connection.sendall(CHUNKED + b"%x\r\n%s\r\n" % (len(body), body) + end + LIVE)
        assert b"connection: close" in read_all(connection)


@pytest.mark.parametrize("more", [{}, OFFER], ids=["plain", "upgrade"])
def test_requests_that_do_not_wait_are_answered_in_order(more, live):
    texts = ["great", "awful " * 3000, "a", "fine " * 500, "bad"]
    with connected(live) as connection:
        connection.sendall(b"".join(post(text, **more) for text in texts))
        answers = read_answers(connection, len(texts))
    alone = [live.client.post("/predict", json={"text": text}).content for text in texts]
    assert answers == [(200, body) for body in alone]


def test_thousands_of_requests_at_once(live):
    count = 3 * PIECE // len(LIVE)
    with connected(live) as connection:
        connection.sendall(LIVE * count)
        assert read_answers(connection, count) == [ALIVE] * count


def test_requests_without_end_wait_for_their_answers(serving, held):
    """Nothing is read while one is computed: what has come is a piece and the socket's buffers."""
    held.gate.clear()
    live = serving(held)
    many = LIVE * 1000
    with connected(live) as connection:
        connection.sendall(post("great"))
        assert held.entered.acquire(timeout=10)
        connection.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < MOST:
                sent += connection.send(many)
        assert sent < MOST
        (protocol,) = [one for one in live.server.server_state.connections if one.must_wait]
        assert len(protocol.pipeline) <= PIECE // len(LIVE) + 1
        connection.settimeout(10)
        held.gate.set()
        count = 1 + sent // len(LIVE)
        assert [status for status, _ in read_answers(connection, count)] == [200] * count


def test_half_a_head_behind_a_request_that_is_computed(serving, held):
    held.gate.clear()
    live = serving(held)
    half = len(LIVE) // 2
    with connected(live) as connection:
        connection.sendall(post("great") + LIVE + LIVE[:half])
        assert held.entered.acquire(timeout=10)
        held.gate.set()
        assert [status for status, _ in read_answers(connection, 2)] == [200, 200]
        connection.sendall(LIVE[half:])
        assert read_answers(connection, 1) == [ALIVE]


def test_garbage_behind_a_request_is_answered_after_it(live):
    with connected(live) as connection:
        connection.sendall(post("great") + b"\x00 zanzibar\r\n\r\n" + LIVE)
        (first, second) = read_answers(connection, 2)
        assert (first[0], second[0]) == (200, 400)
        assert read_all(connection) == b""
    assert alive(live)


@pytest.mark.parametrize(
    "head",
    [
        LIVE.replace(b"Host: x\r\n", b""),
        LIVE.replace(b"Host: x\r\n", b"Host: x\r\nHost: x\r\n"),
        LIVE.replace(b" HTTP/1.1", b""),
        LIVE.replace(b"HTTP/1.1", b"HTTP/2.0"),
        CHUNKED.replace(b"chunked", b"gzip, chunked"),
        CHUNKED.replace(b"Host", b"Content-Length: 5\r\nHost"),
    ],
    ids=["no host", "two hosts", "0.9", "2.0", "gzip", "two lengths"],
)
def test_heads_that_are_refused(head, live):
    with connected(live) as connection:
        connection.sendall(head)
        assert read_all(connection).startswith(b"HTTP/1.1 400")


def test_a_body_that_comes_after_its_answer(live):
    """The type is refused before the body is read; what follows is a request of its own."""
    request = post("great" * 30_000).replace(b"application/json", b"text/plain")
    with connected(live) as connection:
        connection.sendall(request[:2000])
        assert [status for status, _ in read_answers(connection, 1)] == [415]
        connection.sendall(request[2000:] + LIVE)
        assert read_answers(connection, 1) == [ALIVE]


@pytest.mark.parametrize("begun", [b"", LIVE[:9], LIVE, LIVE + b"\r\n"])
def test_silence_ends_a_connection(begun, serving, tiny_explainer):
    live = serving(tiny_explainer)
    live.server.config.timeout_keep_alive = 1
    with connected(live) as connection:
        connection.sendall(begun)
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200") == begun.count(LIVE)


def test_a_client_that_leaves_with_requests_sent_ahead(serving, tiny_explainer, caplog, wait_until):
    live = serving(tiny_explainer)
    head = CHUNKED.replace(b"/predict", b"/predict/stream")
    head = head.replace(b"application/json", b"application/x-ndjson")
    lines = b'{"text": "great"}\n' * 500
    with connected(live) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(lines), lines) + LIVE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not live.server.server_state.tasks)
    assert not [one for one in caplog.records if one.levelno > logging.WARNING]


def test_garbage_in_a_body_is_answered_at_once(live):
    with connected(live) as connection:
        connection.sendall(CHUNKED + b"zz\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert alive(live)


def test_garbage_in_the_body_of_an_answer_that_has_begun_ends_it(live, wait_until):
    line = b'{"text": "great"}\n'
    head = CHUNKED.replace(b"/predict", b"/predict/stream")
    head = head.replace(b"application/json", b"application/x-ndjson")
    with connected(live) as connection:
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(line), line))
        begun = connection.recv(65536)
        assert begun.startswith(b"HTTP/1.1 200")
        connection.sendall(b"zz\r\n")
        assert b"HTTP/1.1" not in read_all(connection)
    wait_until(lambda: not live.server.server_state.tasks)
    assert alive(live)


def test_methods_that_nobody_knows_are_garbage(live):
    assert live.client.request("PROPFIND", "/predict").status_code == 405
    assert live.client.request("ZANZIBAR", "/predict").status_code == 400


def test_http_1_0(live):
    with connected(live) as connection:
        connection.sendall(LIVE.replace(b"1.1", b"1.0"))
        assert read_all(connection).endswith(b'{"status":"live"}')


def serve(transport, app, request):
    """Answers a request with `app`, which is given the protocol in place of the scope."""

    async def answer():
        async def asgi(_scope, receive, send):
            await app(protocol, receive, send)

        config = Config(asgi, http=Protocol, lifespan="off", log_config=None)
        config.load()
        protocol = Protocol(config, ServerState(), {})
        protocol.connection_made(transport)
        protocol.data_received(request)
        while protocol.tasks:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        protocol.connection_lost(None)

    asyncio.run(answer())


def pieces_of(transport, head, *bodies, request=LIVE):
    """What is written for an application that pauses at each None of its answer."""

    async def app(_protocol, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [*head]})
        for number, body in enumerate(bodies, 1):
            if body is None:
                await asyncio.sleep(0.01)
                assert transport.pieces, "what comes before a pause is sent"
            else:
                more = number < len(bodies)
                await send({"type": "http.response.body", "body": body, "more_body": more})

    serve(transport, app, request)
    return transport.pieces


LENGTH = [(b"content-length", b"2")]


def test_a_head_leaves_together_with_its_body(transport):
    (piece,) = pieces_of(transport, LENGTH, b"ab")
    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert piece.endswith(b"content-length: 2\r\n\r\nab")


def test_a_head_does_not_wait_for_a_body_that_comes_later(transport):
    head, *body = pieces_of(transport, [], None, b"a", None, b"bc", None, b"")
    assert head.endswith(b"\r\n\r\n")
    assert body == [b"1\r\na\r\n", b"2\r\nbc\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("between", [b"", LIVE])
def test_an_answer_without_a_body_is_sent_before_the_next(between, transport):
    request = LIVE.replace(b"GET", b"HEAD") + between + b"what?\r\n\r\n"
    found = b"".join(pieces_of(transport, LENGTH, b"ab", request=request))
    answers = found.split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, *[200] * bool(between), 400]
    assert found.count(b"\r\n\r\nab") == bool(between)
    assert transport.closed


def test_all_is_sent_before_a_connection_closes(transport):
    request = LIVE.replace(b"Host", b"Connection: close\r\nHost").replace(b"GET", b"HEAD")
    (piece,) = pieces_of(transport, LENGTH, b"ab", request=request)
    assert piece.endswith(b"content-length: 2\r\nconnection: close\r\n\r\n")
    assert transport.closed


def test_nothing_is_written_to_who_left(transport, caplog):
    async def app(protocol, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        transport.close()
        protocol.connection_lost(None)
        await asyncio.sleep(0.01)

    serve(transport, app, LIVE)
    assert transport.pieces == []
    assert caplog.records == []


def test_what_is_answered_before_a_refusal_is_sent_before_it(transport):
    async def app(protocol, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        protocol.data_received(b"zz\r\n")

    serve(transport, app, CHUNKED)
    (piece,) = transport.pieces
    assert piece.startswith(b"HTTP/1.1 200")
    assert transport.closed


def test_departures_in_the_middle_of_answers_are_no_errors(
    serving, tiny_explainer, caplog, wait_until
):
    live = serving(tiny_explainer)
    head = CHUNKED.replace(b"/predict", b"/predict/stream")
    head = head.replace(b"application/json", b"application/x-ndjson")
    lines = b'{"text": "great"}\n' * 50
    for _ in range(60):
        with connected(live) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(head + b"%x\r\n%s\r\n" % (len(lines), lines))
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not live.server.server_state.tasks)
    assert not [one for one in caplog.records if one.levelno > logging.WARNING]
