# SPDX-License-Identifier: Apache-2.0
"""What a server and a mirror have in common: the socket, the log, and that they say when they serve."""

from __future__ import annotations

import logging
import socket
import sys

import structlog
import uvicorn

from vla_fleet.errors import FleetError

_UNREAD_MS = 60_000
"""A connection whose other end takes nothing for so long ends: else what waits for it would be kept for ever."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise FleetError ADDRESS_UNUSABLE."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)  # connections inherit it
        return listener
    except (OSError, OverflowError) as e:
        raise FleetError("ADDRESS_UNUSABLE", f"{host}:{port}: {e}; choose another --host or --port") from e


def name(host: str) -> str:
    """Return a host as a URL has it."""
    return f"[{host}]" if ":" in host else host


def configure_log() -> None:
    """Write the log to stderr: for people if that is a terminal, else one JSON object a line."""
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class Server(uvicorn.Server):
    """Says that it serves once it does."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup(sockets)
        if self.started:
            print(self._ready, flush=True)
