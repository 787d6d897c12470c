"""What HTTP adds to a reply: the texts of `l2e bench` through a server of their own."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from models.explainer import Explainer
from training.evaluation.efficiency import QUICK_SECONDS, Plan
from training.evaluation.texts import texts_of
from training.evaluation.timing import in_turns, quartiles, server_timing

_PATIENCE = 120.0  # seconds until a server is ready at the latest


def measure_http(explainer: Explainer, plan: Plan) -> dict[str, Any]:
    """Times replies through `l2e serve` in turns with replies of this process.

    One request at a time, over one connection that is kept: /predict for one text, /predict/batch
    for more. Server and client share the processors, of which only one at a time has work.

    Args:
        explainer: the bundle, in this process.
        plan: whose texts are sent; its rivals do not matter here.

    Returns:
        `sharing` and `rows`: tokens, batch, and milliseconds of one text: `http_ms`, `reply_ms`,
        their difference `overhead_ms` (the median over rounds), each with its quartiles, and
        `server_ms`, the medians of the stages that the server names.
    """
    rows: list[dict[str, Any]] = []
    with _server(explainer) as connection:
        end = time.monotonic() + QUICK_SECONDS / 3 if plan.quick else math.inf
        for tokens, batch in plan.pairs:
            if plan.leaves_out(tokens, batch) or (time.monotonic() > end and rows):
                continue
            texts = texts_of(explainer, tokens, batch, plan.seed)
            found = _time(explainer, connection, texts, plan.rounds)
            rows.append({"tokens": tokens, "batch": batch, **found})
    return {"sharing": "one request at a time, all cores for whoever works", "rows": rows}


def _time(
    explainer: Explainer,
    connection: http.client.HTTPConnection,
    texts: Sequence[str],
    rounds: int,
) -> dict[str, Any]:
    stages: list[dict[str, float]] = []
    if len(texts) == 1:
        path, body = "/predict", json.dumps({"text": texts[0]})
    else:
        path, body = "/predict/batch", json.dumps({"items": [{"text": text} for text in texts]})

    def ask() -> None:
        stages.append(server_timing(_post(connection, path, body)))

    spent = in_turns({"http": ask, "reply": partial(explainer.explain, texts)}, rounds)
    pairs = zip(spent["http"], spent["reply"], strict=True)
    spent["overhead"] = [over - inside for over, inside in pairs]
    result: dict[str, Any] = {}
    for name, values in spent.items():
        low, middle, high = quartiles([value / len(texts) for value in values])
        result |= {f"{name}_ms": middle, f"{name}_ms_quartiles": [low, high]}
    medians = {
        stage: float(np.median([found[stage] for found in stages[1:]])) / len(texts)
        for stage in stages[-1]
    }
    return result | {"server_ms": medians}


def _post(connection: http.client.HTTPConnection, path: str, body: str) -> str:
    connection.request("POST", path, body.encode(), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the server answered {path} with {answer.status}")
    return answer.headers.get("Server-Timing", "")


@contextmanager
def _server(explainer: Explainer) -> Iterator[http.client.HTTPConnection]:
    """Starts `l2e serve` on a free port; yields a connection once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bundle, session = explainer.bundle.path, explainer.session
    command = ["-m", "l2e", "serve", "--bundle", str(bundle), "--device", session.device]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, *command, "--port", str(port)],
        env={**os.environ, "L2E_THREADS": str(session.threads)},
        stderr=subprocess.DEVNULL,  # a pipe that nobody reads would fill up
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        end = time.monotonic() + _PATIENCE
        while not _is_ready(connection):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(
                    f"no server for {bundle}: run `l2e serve --bundle {bundle}` to see why"
                )
            time.sleep(0.05)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait()


def _is_ready(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):  # nobody listens yet
        connection.close()
        return False
    return answer.status == 200
