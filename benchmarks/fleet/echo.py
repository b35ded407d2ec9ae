# SPDX-License-Identifier: Apache-2.0
"""The floor: a plain Starlette application as a user would write it. No tokens, no database, nothing is kept.

``/echo`` is a WebSocket that sends back what it hears, ``POST /say`` sends its body to all of them, and ``GET /new`` says that
there is nothing new.
"""

from __future__ import annotations

import json
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from benchmarks.processes import say

_sockets: set[WebSocket] = set()


async def _echo(socket: WebSocket) -> None:
    await socket.accept()
    _sockets.add(socket)
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        _sockets.discard(socket)


async def _say(request: Request) -> Response:
    text = (await request.body()).decode()
    for each in list(_sockets):
        await each.send_text(text)
    return Response(status_code=204)


async def _new(_: Request) -> Response:
    return PlainTextResponse("no")


def main() -> None:
    """Serve until SIGTERM, with ``compression`` or without; say on which port."""
    compression = json.loads(sys.argv[1]).get("compression", True)
    app = Starlette(routes=[WebSocketRoute("/echo", _echo), Route("/say", _say, methods=["POST"]), Route("/new", _new)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    say(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", ws_per_message_deflate=compression)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
