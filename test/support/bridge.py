# SPDX-License-Identifier: Apache-2.0
"""A bridge whose manager goes where the test says, and a server that is not ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.server import ServerConnection, serve

from vla_fleet import protocol
from vla_fleet_bridge.engine import BridgeConfig, BridgeEngine
from vla_fleet_bridge.port import Answer


class Robot:
    """A manager that goes where the test says, and a bridge."""

    def __init__(self, server: str, secret: str, folder: Path, **config: Any) -> None:
        self.config = BridgeConfig(server.replace("http", "ws", 1), secret, folder / "outbox.db", **config)
        self.rolled_back: Callable[[str], None] = lambda version: None
        self.offers: list[tuple[str, protocol.ModelUpdate]] = []
        self.engine = BridgeEngine(self.config, self)  # type: ignore[arg-type]

    def __enter__(self) -> Robot:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()

    def offer(self, update_id: str, order: protocol.ModelUpdate) -> None:
        self.offers.append((update_id, order))

    def rollback(self, version: str, reason: str) -> Answer:
        self.rolled_back(version)
        return Answer(True, "", "", version)

    def acts(self, time_s: float, version: str, state: str = "COMMITTED", update_id: str = "", **more: Any) -> None:
        digest = version and (version.replace(".", "") * 64)[:64]
        status = protocol.Status(
            time_s=time_s, state=state, update_id=update_id, active_version=version, active_digest=digest, **more
        )
        self.engine.on_status(status)


@contextmanager
def stub(talk: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server that is not ours."""
    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(10)
