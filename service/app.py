"""The application and its process: `create_app` for any ASGI server, `main` for ours."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp, Receive, Scope, Send

from models.explainer import Explainer
from service import errors, logs, static
from service.backend import Backend
from service.middleware import BodyLimit, Envelope
from service.routes import Predictions, build_router
from service.schemas import RequestModels, request_models
from service.server import listen, serve
from service.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from service.tracing import Tracing

_DESCRIPTION = (
    "Labels a text and says which of its words decided, from one run of one model. "
    "Offsets are Unicode code points, half-open: `text[start:end]`. "
    "Errors are `application/problem+json` (RFC 9457) and never repeat the text."
)

_log = logging.getLogger("l2e.service")


class _Service(FastAPI):
    """FastAPI beside the predictions, which pass its middleware and none of its own layers.

    So its exception handlers and dependencies do not reach them, and each middleware is made twice.
    It also describes the bodies which they read by themselves.
    """

    def __init__(self, models: RequestModels, predictions: Predictions, **options: Any) -> None:
        super().__init__(**options)
        self._models = models
        self._predictions = predictions

    @cached_property
    def _direct(self) -> ASGIApp:
        app: ASGIApp = self._predictions
        for layer, arguments, named in reversed(self.user_middleware):
            app = layer(app, *arguments, **named)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if self._predictions.has(scope):
            scope["app"] = self
            await self._direct(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        schema = super().openapi()
        bodies: list[type[BaseModel]] = [*self._models, errors.ProblemBody]
        _, definitions = models_json_schema(
            [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"] |= definitions["$defs"]
        return schema


def create_app(settings: Settings | None = None, explainer: Explainer | None = None) -> FastAPI:
    """The service as an ASGI application.

    The bundle is loaded in the background when the application starts; until then `/health/ready`
    and the predictions answer 503. `app.state.backend` holds the state, `app.state.tracing` what
    makes spans, None unless `settings.traces` asks for them.

    Args:
        settings: None reads them from the environment.
        explainer: one that is loaded already, instead of `settings.bundle`.

    Raises:
        SettingsError: a setting in the environment is bad, or traces are asked for and the extra
            `otel` is not installed or cannot do what `OTEL_*` say.
    """
    settings = settings or read_settings()
    tracing = None if settings.traces == "none" else _tracing()
    backend = Backend(settings, explainer)
    models = request_models(settings)
    router = build_router(backend, models)
    app = _Service(
        models,
        Predictions(router),
        title="l2e",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
        # The framework's own pages load their scripts from elsewhere; ours are in static.py.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=lambda route: route.name,
        # The framework's own spans hold paths and queries, its own logs the messages of errors.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.backend = backend
    app.state.tracing = tracing
    app.include_router(router)
    app.include_router(static.build_router(app.openapi()))
    errors.install(app)
    # The last one added is the first to see a request.
    limit = settings.max_body_bytes
    app.add_middleware(BodyLimit, max_bytes=limit, unbounded={"/predict/stream"})
    app.add_middleware(Envelope, metrics=backend.metrics, lines=logs.AccessLines())
    if tracing is not None:
        tracing.install(app)
    return app


def main(settings: Settings | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        settings: None reads them from the environment.

    Returns:
        The exit status: 0 after an orderly shutdown, 2 for a bad setting or bundle (one line on
        standard error says which), 1 when the port or the runtime fails.
    """
    logs.set_up("text")
    try:
        settings = settings or read_settings()
        logs.set_up(settings.log_format)
        app = create_app(settings)
    except SettingsError as error:
        _log.error("%s", error)
        return 2
    try:
        sock = listen(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        _log.error("cannot listen on %s: %s: choose another host or port", where, error.strerror)
        return 1
    with sock:
        return serve(app, sock)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    backend: Backend = app.state.backend
    tracing: Tracing | None = app.state.tracing
    if tracing is not None:
        tracing.start()
    loading = asyncio.create_task(backend.start())
    await asyncio.sleep(0)  # with an explainer at hand, this is all the time it takes
    try:
        yield
    finally:
        try:
            await loading
            await backend.stop()
        finally:
            if tracing is not None:
                await asyncio.to_thread(tracing.stop)


def _tracing() -> "Tracing":
    try:
        from service.tracing import Tracing  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as error:
        needed = f"traces (L2E_TRACES) need {error.name}: pip install 'l2e[otel]'"
        raise SettingsError(f"bad setting: {needed}") from None
    except ValueError as error:  # some of its limits the SDK reads when it is imported
        raise SettingsError(f"bad setting: OTEL_*: {error}") from None
    return Tracing(_version())


def _version() -> str:
    try:
        return version("l2e")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
