"""Requests one after the other through curl, a client whose own work hardly counts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

from tests.bench.load import Load
from training.evaluation.timing import server_timing

PROGRAM = "curl"
OLDEST = (7, 84)  # which can print a header


def lacks_curl() -> str | None:
    """Says in one line what is missing on this machine; None where nothing is."""
    if shutil.which(PROGRAM) is None:
        return f"no {PROGRAM} on this machine: install it"
    told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", told)
    if found is None or tuple(map(int, found.groups())) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        return f"{told.splitlines()[0]}: install {PROGRAM} {needed} or newer"
    return None


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
        RuntimeError: a request had no answer; in curl's words.
    """
    found = subprocess.run(
        [
            PROGRAM, "--disable",  # first, or a file in the home folder has a say
            "--silent", "--show-error", "--fail-early", "--noproxy", "*",
            "--header", "Content-Type: application/json",
            "--data-binary", json.dumps(value),
            "--output", "/dev/null",
            "--write-out", "%{http_code} %{num_connects} %{time_total} %header{server-timing}\\n",
            # Its own numbering of addresses is what makes it ask so often.
            f"http://127.0.0.1:{port}{path}?number=[0-{count}]",
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if found.returncode:
        raise RuntimeError(found.stderr.strip() or f"{PROGRAM} ended with {found.returncode}")
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
