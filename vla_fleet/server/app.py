# SPDX-License-Identifier: Apache-2.0
"""The web application."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from vla_fleet.errors import BusyError, FleetError
from vla_fleet.page.render import page
from vla_fleet.page.routes import add_page
from vla_fleet.server import adapters, episodes, experiments, files, models, people, robots, rollouts, socket, uploads
from vla_fleet.server.rooms import Rooms
from vla_fleet.server.watch import Watch
from vla_fleet.uploads.files import OffsetError


class Refusal(BaseModel):
    """Why a request was refused."""

    error_code: str
    """Stable; docs/errors.md lists them."""
    message: str
    received_bytes: int | None = None
    """Of an upload: where to go on."""


_REFUSALS = {
    400: "The body cannot be read.",
    401: "No key or token, or a wrong one.",
    403: "The key's role does not allow it.",
    404: "What the request names does not exist.",
    409: "It contradicts what is there.",
    413: "The body is too large.",
    422: "The request does not say what it must.",
    429: "Too many of them; see Retry-After.",
    503: "What the server stands on does not answer; see Retry-After.",
    507: "The server's disk is full.",
}
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _BODY} for status, text in _REFUSALS.items()
}
_NAMED: dict[int | str, dict[str, Any]] = {400: {"description": _REFUSALS[400], "model": Refusal}}
"""FastAPI makes a validator of each model for each route, for nothing. So one router names it, and the others refer to it."""
_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "BODY_TOO_LARGE"}


class _App(FastAPI):
    """Requests as ever; robots' lines go past what only requests need: each step on the way costs every line its memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            scope["app"] = self
            await socket.serve(WebSocket(scope, receive, send))
        else:
            await super().__call__(scope, receive, send)


def create_app(rooms: Rooms) -> FastAPI:
    """Return the application over the server's parts; it opens and closes them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with rooms:
            yield

    app = _App(title="vla_fleet", lifespan=lifespan, responses=_ANSWERS)
    app.state.rooms = rooms
    app.add_middleware(Watch, rooms=rooms)
    app.add_exception_handler(FleetError, _refuse)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _refuse_input)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _refuse_http)  # type: ignore[arg-type]
    app.add_exception_handler(404, _refuse_http)  # type: ignore[arg-type]
    app.add_exception_handler(405, _refuse_http)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _fail)
    for part in (models, files, robots, uploads, episodes, adapters, rollouts, experiments, people):
        app.include_router(part.router, responses=_NAMED if part is models else None)
    add_page(app)
    return app


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: int) -> JSONResponse:
    text = message.encode(errors="replace").decode()  # a request may hold half a character
    return JSONResponse({"error_code": code, "message": text, **more}, status, headers)


async def _refuse(_: Request, error: FleetError) -> JSONResponse:
    retry = {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, BusyError) else None
    more = {"received_bytes": error.received_bytes} if isinstance(error, OffsetError) else {}
    return _answer(error.status, error.code, error.message, retry, **more)


async def _refuse_input(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(422, "INPUT_INVALID", f"{where}: {first['msg']}")


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    code = _CODES.get(error.status_code, "INPUT_INVALID")
    if error.status_code == 404 and "text/html" in request.headers.get("accept", ""):
        return page(request, "error.html", 404, code=code, message=f"nothing is at {request.url.path}")
    headers = dict(error.headers) if error.headers else None
    return _answer(error.status_code, code, str(error.detail).removeprefix(f"{code}: "), headers)


async def _fail(_: Request, error: Exception) -> JSONResponse:
    return _answer(500, "INTERNAL_ERROR", f"{type(error).__name__}; the server's log has the traceback")
