"""The endpoints: thin, because reading, computing and rendering live in their own modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from models.bundle import Bundle
from service import errors, metrics, render
from service.backend import Backend
from service.batching.tickets import Outcome, Query, Reply
from service.errors import ProblemBody
from service.middleware import ITEMS, STAGES
from service.requests import (
    check_type,
    is_small,
    read,
    read_options,
    target_fault,
    while_connected,
)
from service.schemas import (
    BadItem,
    BatchItem,
    BatchRequest,
    BatchResponse,
    Health,
    Models,
    Options,
    Prediction,
    QueryOptions,
    RequestModels,
    wish,
)
from service.stream import MEDIA_TYPE, StreamResponse

_EXAMPLE = "A slow start, but the last hour is really great."
# Of an answer that is rendered in a few tenths of a millisecond.
_FEW_SPANS, _FEW_CHARS = 100, 10_000
_MEANINGS = {
    400: "The body is not JSON.",
    413: "The body is over the limit.",
    415: "The body is not declared as JSON.",
    422: "A field is missing, wrong or over its limit.",
    500: "The server failed; its log has the place.",
    503: "Overloaded, loading or shutting down; see Retry-After.",
    504: "No answer in time.",
}


def build_router(backend: Backend, models: RequestModels) -> APIRouter:
    """The endpoints of one server.

    Args:
        backend: what answers.
        models: the requests with this server's limits.
    """
    router = APIRouter()
    _add_predictions(router, backend, models)
    _add_stream(router, backend, models)
    _add_state(router, backend)
    return router


class Predictions:
    """Answers the predictions by themselves, as an ASGI application.

    FastAPI describes them, too, and could serve them; its layers would cost .2 ms of each answer.

    Args:
        router: with the endpoints, each of which takes the request and nothing else.
    """

    def __init__(self, router: APIRouter) -> None:
        self._routes = {
            (method, route.path): route
            for route in router.routes
            if isinstance(route, APIRoute) and route.path.startswith("/predict")
            for method in route.methods or ()
        }

    def has(self, scope: Scope) -> bool:
        """Whether it answers a request."""
        return scope["type"] == "http" and (scope["method"], scope["path"]) in self._routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that it `has`."""
        scope["route"] = route = self._routes[scope["method"], scope["path"]]
        try:
            response = await route.endpoint(Request(scope, receive, send))
        except errors.Problem as problem:
            response = problem.response()
        except ClientDisconnect:
            response = errors.client_gone()
        await response(scope, receive, send)


def _add_predictions(router: APIRouter, backend: Backend, models: RequestModels) -> None:
    @router.post(
        "/predict",
        summary="Label one text and say which words decided",
        tags=["predict"],
        response_model=Prediction,
        response_model_exclude_none=True,
        responses=_problems(400, 413, 415, 422, 500, 503, 504),
        openapi_extra=_body("PredictRequest", {"text": _EXAMPLE}),
    )
    async def predict(request: Request) -> Response:
        """Answers the label with its probability and the rationale as spans of code points.

        `target` asks for the words that speak for and against another label than the predicted one.
        """
        explainer = backend.explainer
        if is_small(request):  # and here by now: nobody is left in the middle of sending it
            backend.check_room()
        wanted = await read(request, models.predict)
        if fault := target_fault(wanted.target, explainer.labels):
            raise errors.invalid([fault])
        asked = backend.ask([Query(wanted.text, wanted.target)], wish(wanted))
        outcome = (await while_connected(request, asked))[0]
        if isinstance(outcome, Exception):
            raise backend.problem(outcome)
        request.scope[STAGES] = outcome.stages
        if _is_short(outcome, wanted):  # two changes of thread would cost more
            return _one(outcome, wanted, explainer.bundle)
        return await run_in_threadpool(_one, outcome, wanted, explainer.bundle)

    @router.post(
        "/predict/batch",
        summary="Label several texts, each with its own result or error",
        tags=["predict"],
        response_model=BatchResponse,
        response_model_exclude_none=True,
        responses=_problems(400, 413, 415, 422, 500, 503, 504),
        openapi_extra=_body("BatchRequest", {"items": [{"id": "a", "text": _EXAMPLE}]}),
    )
    async def predict_batch(request: Request) -> Response:
        """Answers in the order of the items; a bad item fails alone and the status stays 200."""
        explainer = backend.explainer
        wanted = await read(request, models.batch)
        items = [_with_good_target(item, explainer.labels) for item in wanted.items]
        good = [item for item in items if isinstance(item, BatchItem)]
        outcomes: list[Outcome] = []
        if good:
            queries = [Query(item.text, item.target) for item in good]
            asked = backend.ask(queries, wish(wanted), urgent=False)
            outcomes = await while_connected(request, asked)
        body, ok = await run_in_threadpool(_many, items, outcomes, wanted, backend)
        request.scope[ITEMS] = {"ok": ok, "failed": len(items) - ok}
        return Response(body, media_type="application/json")


def _add_stream(router: APIRouter, backend: Backend, models: RequestModels) -> None:
    @router.post(
        "/predict/stream",
        summary="Label any number of texts, line by line",
        tags=["predict"],
        response_class=Response,
        responses={
            200: {"description": "One line an item, then a summary.", "content": {MEDIA_TYPE: {}}},
            **_problems(415, 422, 503),
        },
        openapi_extra=_stream_body(),
    )
    async def predict_stream(request: Request) -> Response:
        """Answers each line with a line, in order, while more are sent; the last is a summary.

        A bad line fails alone. Read while you send: when you do not, the server stops reading, too.
        """
        try:
            backend.check_ready()
            check_type(request, MEDIA_TYPE)
            options = read_options(request)
        except errors.Problem as problem:
            # Nobody will read a body that may have no end.
            raise replace(problem, headers={**problem.headers, "Connection": "close"}) from None
        return StreamResponse(backend, models.item, options)


def _add_state(router: APIRouter, backend: Backend) -> None:
    @router.get(
        "/models",
        summary="What is loaded",
        tags=["state"],
        response_model=Models,
        responses=_problems(503),
    )
    async def models() -> Response:
        """The loaded bundle's card: labels, limits of its use, how it was made, how good it is."""
        return _json({"models": [render.card(backend.explainer)]})

    @router.get(
        "/metrics",
        summary="Numbers for Prometheus",
        tags=["state"],
        response_class=Response,
        responses={200: {"content": {metrics.MEDIA_TYPE: {}}}},
    )
    async def numbers() -> Response:
        """Requests, stages, batches, what waits and what was dropped; never a text."""
        return Response(backend.metrics.render(), media_type=metrics.MEDIA_TYPE)

    @router.get(
        "/health/live",
        summary="Is the process alive?",
        tags=["state"],
        response_model=Health,
        responses=_problems(503),
    )
    async def live() -> Response:
        """200 unless the server cannot recover by itself and should be restarted."""
        if not backend.alive:
            raise errors.unavailable("dead", "a thread has ended: restart the server", 60)
        return _json({"status": "live"})

    @router.get(
        "/health/ready",
        summary="Are requests welcome?",
        tags=["state"],
        response_model=Health,
        responses=_problems(503),
    )
    async def ready() -> Response:
        """200 once the bundle is loaded, checked and warm, and until the server shuts down."""
        backend.check_ready()
        return _json({"status": "ready"})


def _with_good_target(item: BatchItem | BadItem, labels: Sequence[str]) -> BatchItem | BadItem:
    if isinstance(item, BatchItem) and (fault := target_fault(item.target, labels)):
        return BadItem(item.id, [fault])
    return item


def _is_short(reply: Reply, options: Options) -> bool:
    found = reply.explanation
    spans = len(found.rationale) + len(found.word_scores) * options.words
    # Spans do not overlap, so that all of them hold the text once at most.
    chars = len(found.text) * (1 + options.words + options.html)
    return spans <= _FEW_SPANS and chars <= _FEW_CHARS


def _one(reply: Reply, options: Options, bundle: Bundle) -> Response:
    return _json(render.prediction(reply, options, bundle))


def _many(
    items: Sequence[BatchItem | BadItem],
    outcomes: Sequence[Outcome],
    options: BatchRequest,
    backend: Backend,
) -> tuple[bytes, int]:
    """The batch's body and how many items are results.

    `outcomes` has one entry for each good item, in order.
    """
    results = []
    ok = 0
    answered = iter(outcomes)
    for index, item in enumerate(items):
        outcome = next(answered) if isinstance(item, BatchItem) else errors.invalid(item.faults)
        body, good = render.item(index, item.id, outcome, options, backend)
        results.append(body)
        ok += good
    summary = render.to_json({"ok": ok, "failed": len(results) - ok})
    return b'{"results":[' + b",".join(results) + b'],"summary":' + summary + b"}", ok


def _json(body: object) -> Response:
    return Response(render.to_json(body), media_type="application/json")


def _body(name: str, example: object) -> dict[str, Any]:
    """The OpenAPI of a request body that the endpoint reads by itself."""
    content = {"schema": {"$ref": f"#/components/schemas/{name}"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _stream_body() -> dict[str, Any]:
    """The OpenAPI of lines of items, and of the options in the query."""
    fields = QueryOptions.model_json_schema()["properties"]
    lines = f'{{"id": "a", "text": "{_EXAMPLE}"}}\n'
    return {
        "requestBody": {
            "required": True,
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": lines}},
        },
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in fields.items()
        ],
    }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {errors.MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }
