# SPDX-License-Identifier: Apache-2.0
"""The fleet server on a real socket in this process, with a clock that the test sets."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from support.waits import wait_for
from vla_fleet.client import Client
from vla_fleet.clock import SystemClock
from vla_fleet.server.app import create_app
from vla_fleet.server.rooms import ADMIN_KEY, Rooms, Settings


class ShiftedClock(SystemClock):
    """The machine's clock, ``ahead_s`` seconds ahead; it can also stand still."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.stands_at_s: float | None = None

    def now(self) -> float:
        """Return the shifted time."""
        return (super().now() if self.stands_at_s is None else self.stands_at_s) + self.ahead_s


class FleetApp:
    """Use as a context manager."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.clock = ShiftedClock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # its log is no test's output
        self.rooms = Rooms(Settings(data=data, public_url=self.url, **settings), self.clock)
        config = uvicorn.Config(
            create_app(self.rooms), log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)

    def __enter__(self) -> FleetApp:
        self._thread.start()
        wait_for(lambda: self._server.started, "the server")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def key(self) -> str:
        """The admin's key."""
        return (self.rooms.settings.data / ADMIN_KEY).read_text().strip()

    def client(self, key: str | None = None) -> Client:
        """Return a client with the admin's key, or another one."""
        return Client(self.url, self.key if key is None else key)
