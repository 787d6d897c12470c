"""A plain FastAPI server: one `def` endpoint, torch, no batches.

    PEER_BUNDLE=DIR PEER_PORT=8001 python -m tests.bench.peers.fastapi_torch

Starlette runs such an endpoint in a pool of 40 threads. As torch uses all processors for one text
already, PEER_CONCURRENCY of them (by default 1, which is faster) compute at a time.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench.peers.torch_pair import answer, port, torch_explainer


class Body(BaseModel):
    """One text."""

    text: str


def create_app() -> FastAPI:
    """The application, loaded."""
    app = FastAPI()
    explainer = torch_explainer()
    turn = threading.Semaphore(int(os.environ.get("PEER_CONCURRENCY", "1")))

    @app.post("/predict")
    def predict(body: Body) -> dict[str, Any]:
        with turn:
            return answer(explainer, [body.text])[0]

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), host="127.0.0.1", port=port(), access_log=False, log_level="warning")
