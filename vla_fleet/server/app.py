# SPDX-License-Identifier: Apache-2.0
"""The web application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from vla_fleet.errors import FleetError
from vla_fleet.server import experiments, models, people, robots, rollouts, socket
from vla_fleet.server.rooms import Rooms


def create_app(rooms: Rooms) -> FastAPI:
    """Return the application over the server's parts; it opens and closes them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with rooms:
            yield

    app = FastAPI(title="vla_fleet", lifespan=lifespan)
    app.state.rooms = rooms
    app.add_exception_handler(FleetError, _refuse)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _refuse_input)  # type: ignore[arg-type]
    for part in (models, robots, rollouts, experiments, people, socket):
        app.include_router(part.router)
    return app


async def _refuse(_: Request, error: FleetError) -> JSONResponse:
    return JSONResponse({"error_code": error.code, "message": error.message}, error.status)


async def _refuse_input(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"error_code": "INPUT_INVALID", "message": f"{where}: {first['msg']}"}, 422)
