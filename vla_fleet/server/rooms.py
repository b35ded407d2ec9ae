# SPDX-License-Identifier: Apache-2.0
"""The parts of the server, put together."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vla_fleet.clock import Clock, SystemClock
from vla_fleet.experiments.manager import ABTestManager
from vla_fleet.registry.registry import Registry
from vla_fleet.robots.commands import Commands
from vla_fleet.robots.directory import Directory
from vla_fleet.robots.inbox import Inbox
from vla_fleet.rollouts.rollouts import Rollouts
from vla_fleet.server.keys import Keys, Role
from vla_fleet.storage.blobs import LocalBlobs
from vla_fleet.storage.bus import Bus, LocalBus
from vla_fleet.storage.database import Database

ADMIN_KEY = "admin.key"


@dataclass(frozen=True)
class Settings:
    """How the server runs."""

    data: Path
    """Folder of the database and the blobs."""
    public_url: str
    """How robots and people reach this server, for example ``https://fleet.example``."""
    heartbeat_s: float = 10.0
    """How often a robot says something [s]; after three of these in silence it is offline."""
    step_s: float = 1.0
    """How often rollouts and experiments are looked at [s]."""
    max_blob_bytes: int = 64 << 30
    """Largest file that can be uploaded [bytes]."""


class Rooms:
    """Everything that a request may need. Open it, use it, close it."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings, self.clock = settings, clock or SystemClock()
        settings.data.mkdir(parents=True, exist_ok=True)
        self.database = Database(f"sqlite+aiosqlite:///{settings.data.absolute() / 'fleet.db'}", self.clock)
        self.blobs = LocalBlobs(settings.data / "blobs")
        self.bus: Bus = LocalBus()
        self.keys = Keys(self.database, self.clock)
        self.registry = Registry(self.database, self.blobs, self.clock)
        self.directory = Directory(self.database, self.clock)
        self.commands = Commands(self.database, self.bus, self.clock)
        self.inbox = Inbox(self.database, self.commands, self.clock)
        self.rollouts = Rollouts(
            self.database, self.registry, self.commands, self.clock, self.manifest_url, self.online
        )
        self.experiments = ABTestManager(
            self.database, self.registry, self.directory, self.commands, self.rollouts, self.clock, self.manifest_url
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.database.migrate()
        if not await self.keys.exist():
            write_secret(self.settings.data / ADMIN_KEY, await self.keys.make("admin", Role.ADMIN, "first start"))
        self._tasks = [
            asyncio.create_task(part.run(self.settings.step_s)) for part in (self.rollouts, self.experiments)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.database.close()

    def manifest_url(self, name: str, version: str) -> str:
        """Return where robots fetch a version."""
        return f"{self.settings.public_url.rstrip('/')}/files/{name}/{version}/manifest.json"

    def online(self, last_seen_s: float) -> bool:
        """Whether a robot that was seen then counts as connected."""
        return self.clock.now() - last_seen_s <= 3 * self.settings.heartbeat_s


def write_secret(path: Path, secret: str) -> None:
    """Write a file that only its owner can read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(secret + "\n")
