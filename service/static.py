"""The page and the documentation: a handful of files, read once and served from memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from starlette.responses import JSONResponse

from service import errors

_FOLDER = Path(__file__).resolve().parent / "page"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def build_router(openapi: Mapping[str, Any]) -> APIRouter:
    """`/`, `/docs` and what they load.

    The files are looked up by name in a dictionary, so that no path of a request ever reaches the
    file system.

    Args:
        openapi: the OpenAPI document, which `/docs` shows.
    """
    router = APIRouter(include_in_schema=False)
    files = {
        path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES
    }
    methods = ["GET", "HEAD"]

    def answer(name: str) -> Response:
        if name not in files:
            raise errors.not_found()
        media_type = _MEDIA_TYPES[Path(name).suffix]
        return Response(files[name], headers={"Cache-Control": "no-cache"}, media_type=media_type)

    @router.api_route("/", methods=methods)
    async def page() -> Response:
        return answer("index.html")

    @router.api_route("/docs", methods=methods)
    async def docs() -> Response:
        return answer("docs.html")

    @router.api_route("/openapi.json", methods=methods)
    async def description() -> Response:
        return JSONResponse(openapi)

    @router.api_route("/page/{name}", methods=methods)
    async def file(name: str) -> Response:
        return answer(name)

    return router
