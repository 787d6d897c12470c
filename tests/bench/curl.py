"""Requests one after the other through curl, a client whose own work hardly counts."""

from __future__ import annotations

import json
import subprocess

from tests.bench.load import Load
from training.evaluation.timing import server_timing

PROGRAM = "curl"  # 7.84 or newer, which can print a header


def ask_by_curl(port: int, path: str, value: object, count: int) -> Load:
    """Posts the same JSON again and again on one connection.

    Args:
        port: of the server.
        path: of the request.
        value: its body.
        count: requests, after one that connects and is not counted.

    Returns:
        Latencies as curl measures them, from the start of a request to the end of its answer.

    Raises:
        subprocess.CalledProcessError: a request had no answer.
    """
    found = subprocess.run(
        [
            PROGRAM, "--silent", "--show-error", "--fail-early", "--noproxy", "*",
            "--header", "Content-Type: application/json",
            "--data-binary", json.dumps(value),
            "--output", "/dev/null",
            "--write-out", "%{http_code} %{num_connects} %{time_total} %header{server-timing}\\n",
            # Its own numbering of addresses is what makes it ask so often.
            f"http://127.0.0.1:{port}{path}?number=[0-{count}]",
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    load = Load()
    for line in found.stdout.splitlines()[1:]:
        status, connects, seconds, stages = line.split(" ", 3)
        if status != "200":
            load.refused += 1
            continue
        assert connects == "0", "the connection was not kept"
        load.seconds.append(float(seconds))
        load.stages.append(server_timing(stages))
    return load
