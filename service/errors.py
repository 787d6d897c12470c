"""Errors as RFC 9457 problems: what went wrong and the cure, never a word of the text."""

import logging
import math
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
_MAX_FAULTS = 20  # a body of a million wrong fields must not become an answer of a million lines

_BY_STATUS = {
    404: ("not-found", "There is nothing here", "see /docs for what this service answers"),
    405: ("method-not-allowed", "The method is not allowed here", "see /docs for the methods"),
}

_DRAINING_SECONDS = 5.0
_log = logging.getLogger("l2e.service")


class Fault(BaseModel):
    """One bad place in a request."""

    pointer: str = Field(description="JSON pointer to the place, as a URI fragment.")
    detail: str = Field(description="What is wrong there; reads on from its name.")


class ProblemBody(BaseModel):
    """An error in the form of RFC 9457."""

    type: str = Field(description="A stable name for this kind of error.")
    title: str = Field(description="The same in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened here, and what to do about it.")
    instance: str | None = Field(None, description="Finds this occurrence in the server's log.")
    errors: list[Fault] | None = Field(None, description="The bad places, for status 422.")


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818 - the RFC's word
    """An error that is answered with its own status.

    Attributes:
        status: HTTP status.
        kind: the last part of the RFC's `type`, stable for clients.
        title: the kind in words.
        detail: one line with the cure; must not quote the request.
        faults: the bad places of a 422.
        headers: for the response, such as Retry-After.
        instance: finds the occurrence in the log.
    """

    status: int
    kind: str
    title: str
    detail: str
    faults: Sequence[Fault] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    instance: str | None = None

    def body(self) -> dict[str, Any]:
        """The JSON object of RFC 9457."""
        return self._body().model_dump(exclude_none=True)

    def response(self) -> Response:
        """The HTTP response."""
        body = self._body().model_dump_json(exclude_none=True)
        return Response(body, self.status, headers=self.headers, media_type=MEDIA_TYPE)

    def _body(self) -> ProblemBody:
        return ProblemBody(
            type=f"urn:l2e:problem:{self.kind}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            instance=self.instance,
            errors=list(self.faults) or None,
        )


def not_json(detail: str) -> Problem:
    """400: the body is not a JSON text."""
    return Problem(400, "not-json", "The body is not JSON", detail)


def not_found() -> Problem:
    """404: no such place."""
    return Problem(404, *_BY_STATUS[404])


def too_large(limit: int) -> Problem:
    """413: the body has more than `limit` bytes."""
    detail = f"the body may have at most {limit:,} bytes: send fewer or shorter texts"
    # What is left of the body is not read, so the connection cannot be used again.
    headers = {"Connection": "close"}
    return Problem(413, "too-large", "The body is too large", detail, headers=headers)


def unsupported_media_type(detail: str) -> Problem:
    """415: the body is not declared as plain JSON."""
    return Problem(415, "unsupported-media-type", "The body's type is not supported", detail)


def invalid(faults: Sequence[Fault]) -> Problem:
    """422: JSON that does not fit the request's schema."""
    first = faults[0]
    where = "the body" if first.pointer == "#" else first.pointer.removeprefix("#/")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    detail = f"{where} {first.detail}{more}"
    return Problem(422, "invalid", "The request has invalid fields", detail, faults[:_MAX_FAULTS])


def unavailable(kind: str, detail: str, retry_after: float) -> Problem:
    """503: overloaded, draining or loading.

    Args:
        kind: which of the three.
        detail: in words.
        retry_after: seconds, rounded up, at least 1.
    """
    headers = {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return Problem(503, kind, "The service cannot answer now", detail, headers=headers)


def deadline_passed(seconds: float) -> Problem:
    """504: no answer within the time of a request."""
    detail = f"no answer within {seconds:g} s: send shorter texts, or try again later"
    return Problem(504, "deadline-passed", "The deadline has passed", detail)


def draining() -> Problem:
    """503: the server is shutting down; another may answer."""
    return unavailable("draining", "the server is shutting down", _DRAINING_SECONDS)


def internal(error: BaseException) -> Problem:
    """500: logs where `error` came from and names the log line to the client.

    The error's own message may quote the text, so it goes neither to the log nor to the client.
    """
    instance = f"urn:uuid:{uuid.uuid4()}"
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    _log.error("%s failed: %s at %s", instance, type(error).__name__, where or "unknown place")
    detail = "the server failed on this request; its log has the place under this instance"
    return Problem(500, "internal", "The server failed", detail, instance=instance)


def client_gone() -> Response:
    """499: nobody is there to read it; the access log shows the status."""
    return Response(status_code=499)


def describe(errors: Sequence[ErrorDetails], known: Mapping[str, object]) -> list[Fault]:
    """Pydantic's errors in our words, without any of the input.

    Args:
        errors: of one `ValidationError`.
        known: the fields that the request has; an unknown field's own name is not repeated,
            because it is the client's text like any other.
    """
    return [_fault(error, known) for error in errors]


def _fault(error: ErrorDetails, known: Mapping[str, object]) -> Fault:
    place, detail, limits = list(error["loc"]), error["msg"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            place.pop()
            detail = f"has an unknown field; the fields are {', '.join(known)}"
        case "missing":
            detail = "is required"
        case "model_type" | "dict_type":
            detail = "must be a JSON object"
        case "string_too_short":
            detail = "must not be empty"
        case "string_too_long":
            detail = f"may have at most {limits['max_length']:,} characters"
        case "too_short":
            detail = f"must have at least {limits['min_length']:,} entry"
        case "too_long":
            detail = f"may have at most {limits['max_length']:,} entries"
        case "string_unicode":
            detail = "has a lone surrogate: send valid Unicode"
        case "value_error":
            detail = str(limits.get("error", detail)).removeprefix("text ")
        case _:
            detail = detail.replace("Input should be", "must be")
    return Fault(pointer="/".join(["#", *map(str, place)]), detail=detail)


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem, the framework's own included."""

    async def on_problem(_: Request, error: Exception) -> Response:
        return error.response() if isinstance(error, Problem) else internal(error).response()

    async def on_http_exception(_: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return internal(error).response()
        default = ("error", "The request cannot be answered", "see /docs")
        kind, title, detail = _BY_STATUS.get(error.status_code, default)
        headers = error.headers or {}
        return Problem(error.status_code, kind, title, detail, headers=headers).response()

    async def on_client_gone(*_: object) -> Response:
        return client_gone()

    app.add_exception_handler(ClientDisconnect, on_client_gone)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
