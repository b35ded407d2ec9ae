# SPDX-License-Identifier: Apache-2.0
"""The parts of the server, put together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fastapi.requests import HTTPConnection

from vla_fleet.adapters.store import AdapterStore
from vla_fleet.clock import Clock, SystemClock
from vla_fleet.episodes.data_sets import DataSets
from vla_fleet.episodes.store import EpisodeStore
from vla_fleet.errors import ConflictError, FleetError, UnavailableError
from vla_fleet.experiments.manager import ABTestManager
from vla_fleet.page.sessions import Sessions
from vla_fleet.page.shared import Shared
from vla_fleet.registry.deltas import Deltas
from vla_fleet.registry.garbage import GarbageCollector
from vla_fleet.registry.registry import Registry
from vla_fleet.registry.signing import LOOK_S, Signing
from vla_fleet.robots.commands import Commands, topic
from vla_fleet.robots.directory import Directory
from vla_fleet.robots.history import History
from vla_fleet.robots.inbox import Inbox
from vla_fleet.robots.overview import Overview
from vla_fleet.rollouts.rollouts import Rollouts
from vla_fleet.secret_file import write_secret
from vla_fleet.server.keys import Keys, Role
from vla_fleet.server.limits import Buckets
from vla_fleet.server.metrics import Metrics
from vla_fleet.server.passes import Passes
from vla_fleet.steering import loop
from vla_fleet.steering.leader import Leader
from vla_fleet.storage.blobs import BlobStore, FilesBy, LocalBlobs
from vla_fleet.storage.bus import Bus, LocalBus
from vla_fleet.storage.database import Database, shared_secret
from vla_fleet.storage.object_blobs import ObjectBlobs
from vla_fleet.uploads.files import UploadFiles

ADMIN_KEY, FILES_KEY = "admin.key", "files.key"
_FILES_KEY_BYTES = 32
_LOOK_AGAIN_S = 5.0


@dataclass(frozen=True)
class Settings:
    """How the server runs."""

    data: Path
    """Folder of the database and the blobs; of a server among several, of what it needs for itself."""
    public_url: str
    """How robots and people reach this server, for example ``https://fleet.example``."""
    heartbeat_s: float = 10.0
    """How often a robot says something [s]; after three of these in silence it is offline."""
    step_s: float = 1.0
    """How often rollouts and experiments are looked at [s]."""
    max_episodes_per_robot: int = 10_000
    """Episodes of one robot that are kept; failures and corrections longest."""
    max_blob_bytes: int = 64 << 30
    """Largest file that can be uploaded [bytes]."""
    open_files: bool = False
    """Whoever can reach the server may read manifests and blobs, so that a CDN can keep them."""
    robot_messages_s: float = 100.0
    """Messages a second of one robot that are read in the long run; what comes faster is read later [1/s]."""
    key_requests_s: float = 100.0
    """Requests a second with one key, in the long run [1/s]."""
    database: str = ""
    """URL of a PostgreSQL database; empty: SQLite in ``data``."""
    bus: str = ""
    """URL of NATS, through which several servers tell each other to look; empty: this is the only one."""
    blobs: str = ""
    """URL of an object store for the files; empty: ``data``."""
    files_by: FilesBy = FilesBy.SERVER
    """Who sends the files of versions."""
    signing_keys: Path | None = None
    """Folder of the keys that sign what is published; None: nothing is signed here."""
    enrolment_failures_s: float = 1 / 60
    """Wrong enrolment codes a second from one address, in the long run [1/s]."""


class Rooms:
    """Everything that a request may need. Open it, use it, close it."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings, self.clock = settings, clock or SystemClock()
        self._lock = lock_folder(settings.data)
        self._files_url = f"{settings.public_url.rstrip('/')}/files"
        self.database = Database(settings.database or embedded(settings.data), self.clock)
        self.blobs, episodes, adapters = stores(settings)
        self.bus: Bus = nats_bus(settings.bus) if settings.bus else LocalBus()
        self.leader = Leader(self.database, self.clock, f"{socket.gethostname()[:40]} {secrets.token_hex(4)}")
        self.keys = Keys(self.database, self.clock)
        self.registry = Registry(self.database, self.blobs, self.clock)
        self.deltas = Deltas(self.database, self.blobs, self.registry, self.clock)
        self.signing = Signing(self.database, self.clock, settings.signing_keys)
        self.garbage = GarbageCollector(self.database, self.blobs, self.clock)
        self.episodes = EpisodeStore(self.database, episodes, self.clock, settings.max_episodes_per_robot)
        self.adapters = AdapterStore(self.database, adapters, self.clock)
        self.uploads: dict[str, EpisodeStore | AdapterStore] = {"episodes": self.episodes, "adapters": self.adapters}
        self.data_sets = DataSets(self.database, self.clock)
        self.directory = Directory(self.database, self.bus, self.clock)
        self.commands = Commands(self.database, self.bus, self.clock)
        self.inbox = Inbox(self.database, self.commands, self.clock)
        self.rollouts = Rollouts(
            self.database, self.registry, self.commands, self.clock, self.manifest_url, self.online
        )
        self.experiments = ABTestManager(
            self.database,
            self.registry,
            self.directory,
            self.commands,
            self.rollouts,
            self.clock,
            self.manifest_url,
            self.online,
        )
        self.history = History(self.database)
        self.overview = Overview(self.database)
        self.sessions, self.shared = Sessions(self.database, self.keys, self.clock), Shared()
        self.metrics = Metrics()
        self.passes = Passes(self._files_key(), self._files_url, self.clock)
        self.robot_messages = Buckets(self.clock, settings.robot_messages_s, 1000)
        self.key_requests = Buckets(self.clock, settings.key_requests_s, 2000)
        self.enrolment_failures = Buckets(self.clock, settings.enrolment_failures_s, 10)
        self._tasks: list[asyncio.Task[None]] = []

    async def reach(self) -> None:
        """Raise why the server cannot start, if the database, the bus or the object store does not answer."""
        if self.settings.database:
            await self.database.migrate()
            await self.database.close()
        if self.settings.bus:
            bus = nats_bus(self.settings.bus)
            await bus.open()
            await bus.close()
        if self.settings.blobs:
            await self.blobs.size("0" * 64)

    async def __aenter__(self) -> Self:
        await self.bus.open()
        await self.database.migrate()
        for store in self.uploads.values():
            await store.open()
        if not await self.keys.exist():
            path = self.settings.data / ADMIN_KEY
            with suppress(ConflictError):  # another server was faster
                await self.keys.make("admin", Role.ADMIN, "first start", lambda key: write_secret(path, key))
        steps = [part.run(self.settings.step_s, self.leader.leads) for part in (self.rollouts, self.experiments)]
        if self.settings.signing_keys is not None:
            steps.append(loop.run(self.signing.bring_up_to_date, self.clock, LOOK_S, self.leader.leads))
        if self.database.shared:
            self.passes.key = await shared_secret(self.database, FILES_KEY, self.passes.key)
            steps.append(loop.run(self._look_again, self.clock, _LOOK_AGAIN_S, _always))
        self._tasks = [asyncio.create_task(step) for step in steps]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(UnavailableError):  # then the lease ends by itself
            await self.leader.leave()
        await self.bus.close()
        await self.database.close()
        os.close(self._lock)

    async def _look_again(self) -> None:
        """Let the lines of this server look for what no message told them of."""
        for robot in await self.commands.unheard():
            await self.bus.local.publish(topic(robot))

    def manifest_url(self, name: str, version: str) -> str:
        """Return where robots fetch a version."""
        return f"{self._files_url}/{name}/{version}/manifest.json"

    def _files_key(self) -> bytes:
        """Return the secret behind the passes; the first start makes it."""
        path = self.settings.data / FILES_KEY
        if not path.exists() or path.stat().st_size < 2 * _FILES_KEY_BYTES:  # a short key could be guessed
            write_secret(path, secrets.token_hex(_FILES_KEY_BYTES))
        return path.read_bytes()

    def online(self, last_seen_s: float) -> bool:
        """Whether a robot that was seen then counts as connected."""
        return last_seen_s >= self.online_since_s()

    def online_since_s(self) -> float:
        """Return since when a robot must have been seen to count as connected [s since 1970 UTC]."""
        return self.clock.now() - 3 * self.settings.heartbeat_s


async def _always() -> bool:
    return True


def nats_bus(url: str) -> Bus:
    """Return the bus of several servers."""
    from vla_fleet.storage.nats_bus import NatsBus  # a tenth of a second that a single server does not need

    return NatsBus(url)


def embedded(data: Path) -> str:
    """Return the URL of the database in a server's folder."""
    return f"sqlite+aiosqlite:///{data.absolute() / 'fleet.db'}"


def stores(settings: Settings) -> tuple[BlobStore, UploadFiles, UploadFiles]:
    """Return where the files of versions are, and those of episodes and adapters."""
    data, url = settings.data, settings.blobs

    def uploads(kind: str, suffix: str) -> UploadFiles:
        return UploadFiles(data / kind, suffix, ObjectBlobs(url, kind, data / f"{kind}-out") if url else None)

    blobs = ObjectBlobs(url, "blobs", data / "blobs" / "incoming") if url else LocalBlobs(data / "blobs")
    return blobs, uploads("episodes", ".mcap"), uploads("adapters", ".tar")


def rooms_of(request: HTTPConnection) -> Rooms:
    """Return the parts of the server that a request came to."""
    rooms: Rooms = request.app.state.rooms
    return rooms


def lock_folder(data: Path) -> int:
    """Keep the folder for this server until the descriptor is closed: two would each order the robots about."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as e:
        raise FleetError("DATA_UNUSABLE", f"{data}: {e.strerror}; make the folder writable, or name another") from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise FleetError("DATA_IN_USE", f"{data}: another vla-fleet server works here; end it, or name another") from e
    return descriptor
