"""From the bytes of a request to a checked model, and the watch for clients that leave."""

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Sequence
from email.message import Message
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from service import errors
from service.schemas import QueryOptions

# Key of the scope: a future of the server's that is done when the client has left. Without it a
# task listens for the departure, which takes longer.
GONE = "l2e.gone"
_SMALL_BYTES = 10_000  # a sixth of what uvicorn keeps


def _refuse(_: str) -> NoReturn:
    raise ValueError


_JSON = json.JSONDecoder(parse_constant=_refuse)

ModelT = TypeVar("ModelT", bound=BaseModel)
ResultT = TypeVar("ResultT")


async def read(request: Request, model: type[ModelT]) -> ModelT:
    """The request's body as `model`.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    check_type(request, "application/json")
    body = bytearray()  # one buffer: a list of one-byte chunks would cost two hundred times more
    async for chunk in request.stream():
        body += chunk
    value = parse(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = errors.describe(error.errors(include_url=False), model.model_fields)
        raise errors.invalid(faults) from None


def is_small(request: Request) -> bool:
    """Whether the body is announced as one that the server takes in before anybody reads it."""
    announced = request.headers.get("content-length", "")
    return announced.isdecimal() and len(announced) < 9 and int(announced) < _SMALL_BYTES


def target_fault(target: str | None, labels: Sequence[str]) -> errors.Fault | None:
    """What is wrong with a target, or None."""
    if target is None or target in labels:
        return None
    valid = ", ".join(labels)
    return errors.Fault(pointer="#/target", detail=f"is an unknown label; the labels are {valid}")


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`, which is cancelled when the client leaves first.

    Raises:
        ClientDisconnect: the client left.
    """
    this = asyncio.current_task()
    assert this is not None
    watched, gone = True, False

    def leave(_: object) -> None:
        nonlocal gone
        if watched:
            gone = this.cancel()

    ours: asyncio.Future[None] | None = request.scope.get(GONE)
    leaving = ours or asyncio.ensure_future(_until_gone(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and this.cancelling() == 1:  # nobody else cancelled it
            raise ClientDisconnect from None
        raise  # the server ends
    finally:
        watched = False
        if gone:
            this.uncancel()
        if ours is None:
            leaving.cancel()  # nothing waits for it: each turn of the loop counts here
        else:
            leaving.remove_done_callback(leave)


async def _until_gone(request: Request) -> None:
    # What cannot be heard is gone, too.
    with contextlib.suppress(Exception):
        while (await request.receive())["type"] != "http.disconnect":
            pass


def check_type(request: Request, media_type: str) -> None:
    """Returns when the body is declared as plain UTF-8 of `media_type`.

    Raises:
        Problem: 415.
    """
    headers = request.headers
    if headers.get("content-type") == media_type and "content-encoding" not in headers:
        return  # as nearly all say it
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    charset = header.get_content_charset("utf-8")
    encoding = request.headers.get("content-encoding", "identity")
    if "content-type" not in request.headers or header.get_content_type() != media_type:
        raise errors.unsupported_media_type(f"send Content-Type: {media_type}")
    if charset not in {"utf-8", "utf8"}:
        raise errors.unsupported_media_type("send JSON in UTF-8")
    if encoding != "identity":
        raise errors.unsupported_media_type("send the body without Content-Encoding")


def read_options(request: Request) -> QueryOptions:
    """The options in the query of a request.

    Raises:
        Problem: 422.
    """
    try:
        return QueryOptions.model_validate(dict(request.query_params))
    except ValidationError as error:
        faults = errors.describe(error.errors(include_url=False), QueryOptions.model_fields)
        raise errors.invalid(faults) from None


def parse(body: bytearray) -> object:
    """The value of a JSON text.

    Raises:
        Problem: 400.
    """
    try:
        return _JSON.decode(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        detail = f"not JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}"
    except UnicodeDecodeError as error:
        detail = f"not UTF-8 at byte {error.start}"
    except RecursionError:
        detail = "nested too deeply"
    except ValueError:
        detail = "holds a number that JSON does not have, or one of too many digits"
    raise errors.not_json(detail)
