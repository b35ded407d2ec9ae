# SPDX-License-Identifier: Apache-2.0
"""Around every request: a line in the log, a time in the metrics, and a bound on what is read of it. Logs hold no secrets."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vla_fleet.server.rooms import Rooms

MAX_BODY_BYTES = 8 << 20
"""Of a request that is no upload: a manifest, and what JSON adds to it."""
_UPLOADS = ("/v1/blobs/", "/v1/robot/")

log = structlog.get_logger("vla_fleet")


class Watch:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rooms: Rooms) -> None:
        self._app, self._rooms = app, rooms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        scope.setdefault("state", {})

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, _Bounded(scope, receive), sent)
        finally:
            self._note(scope, status, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # the route's pattern, not the path: paths may hold a pass, and are too many for a metric
        route = getattr(scope.get("route"), "path", "none")
        self._rooms.metrics.requests.labels(scope["method"], route, str(status)).observe(seconds)
        who = scope["state"].get("who", "")
        log.info("request", method=scope["method"], route=route, status=status, ms=round(1000 * seconds, 1), who=who)


class _Bounded:
    """Refuses a body beyond ``MAX_BODY_BYTES`` while it arrives."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._left = float("inf") if scope["path"].startswith(_UPLOADS) else MAX_BODY_BYTES

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"BODY_TOO_LARGE: at most {MAX_BODY_BYTES} bytes")
        return message
