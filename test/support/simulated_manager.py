# SPDX-License-Identifier: Apache-2.0
"""A robot's manager without ROS, for tests of the line: it installs what is offered, and tells of it as the real one does."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

from vla_fleet import protocol
from vla_fleet.client import Client
from vla_fleet_bridge.engine import BridgeConfig, BridgeEngine
from vla_fleet_bridge.port import Answer

WAY = ("CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL")


class SimulatedManager:
    """Keeps versions in memory and outlives its bridge, as the real one does. ``end`` is how the next updates end."""

    def __init__(self) -> None:
        self.versions: list[tuple[str, str]] = []
        """Version and digest of what was committed, oldest first."""
        self.offers: list[str] = []
        self.rollbacks: list[str] = []
        self.end, self.error_code = "COMMITTED", ""
        self.seen: dict[str, str] = {}
        self._status = protocol.Status(time_s=time.time(), state="IDLE")
        self._mutex = threading.RLock()
        self.bridge: BridgeEngine | None = None

    def attach(self, server: str, token: str, folder: Path) -> BridgeEngine:
        """Start a bridge for it."""
        server = server.replace("http", "ws", 1)
        self.bridge = BridgeEngine(BridgeConfig(server, token, folder / "outbox.db", software="simulated"), self)
        self.bridge.start()
        self._tell()
        return self.bridge

    def _tell(self, **fields: object) -> None:
        active = self.versions[-1] if self.versions else ("", "")
        previous = self.versions[-2][0] if len(self.versions) > 1 else ""
        about = {"committed_version": active[0], "committed_digest": active[1], "active_version": active[0]}
        self._status = self._status.model_copy(update={**about, "previous_version": previous, **fields})
        if self.bridge is not None:
            self.bridge.on_status(self._status)

    def _go(self, update_id: str, version: str, before: str, after: str, code: str = "") -> None:
        if self.bridge is not None:
            event = protocol.Event(
                time_s=time.time(),
                update_id=update_id,
                from_state=before,
                to_state=after,
                version=version,
                error_code=code,
            )
            self.bridge.on_event(event)
        self._tell(update_id=update_id, state=after, error_code=code)

    def offer(self, update_id: str, order: protocol.ModelUpdate) -> None:
        """Carry an update out at once; an id that is known changes nothing."""
        with self._mutex:
            self.offers.append(update_id)
            if update_id in self.seen:
                return
            self.seen[update_id] = order.version
            steps = ("IDLE", *WAY, self.end)
            if self.end == "COMMITTED":
                self.versions.append((order.version, order.manifest_sha256))
            for before, after in itertools.pairwise(steps):
                self._go(update_id, order.version, before, after, self.error_code if after == self.end else "")

    def rollback(self, version: str, reason: str) -> Answer:
        """Go back."""
        with self._mutex:
            self.rollbacks.append(version)
            names = [name for name, _ in self.versions]
            if version not in names:
                return Answer(False, "MODEL_NOT_FOUND", f"{version} is not on disk")
            self.versions = self.versions[: names.index(version) + 1]
            self._go("", version, "ROLLING_BACK", "ROLLED_BACK")
            return Answer(True, "", reason, version)

    def pin(self, version: str, *, unpin: bool) -> Answer:
        """Keep a version."""
        return Answer(True, "", f"{version} {unpin}", version)


def enrolled(client: Client, name: str, group: str = "default") -> str:
    """Enrol a robot and return its token."""
    return client.enrol(client.make_code(name, group))[1]
