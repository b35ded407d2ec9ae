# SPDX-License-Identifier: Apache-2.0
"""Which generations are in memory and which part each plays: active, standby, prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vla_policy_node.shadow.judge import ShadowReport
from vla_policy_node.worker.api import Generation


class Loss(NamedTuple):
    """Why a generation has gone."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, eq=False)
class Resident:
    """A generation, the folder it was loaded from (for a reload), and what its shadow has shown."""

    generation: Generation
    path: Path
    shadow: ShadowReport = field(default_factory=ShadowReport)

    @property
    def id(self) -> int:
        """Number of the generation."""
        return self.generation.id

    @property
    def version(self) -> str:
        """Version of its bundle."""
        return self.generation.handle.version

    @property
    def digest(self) -> str:
        """Digest of its bundle."""
        return self.generation.handle.digest


@dataclass(frozen=True)
class OnDisk:
    """A bundle that is loaded when it is to act: it was checked on disk, or has acted from there (``load_in_place``)."""

    version: str
    digest: str
    path: Path
    checked_s: float = 0.0
    """What the check took [s]."""
    id: int = 0
    """No generation yet."""

    @classmethod
    def of(cls, resident: Resident) -> OnDisk:
        """The folder that a generation was loaded from."""
        return cls(resident.version, resident.digest, resident.path)


class Residents:
    """At most one generation in each part. Not thread-safe: the engine calls it under its lock."""

    def __init__(self) -> None:
        self.active: Resident | None = None
        self.standby: Resident | None = None
        self.prepared: Resident | None = None

    def all(self) -> list[Resident]:
        """Everything in memory."""
        return [r for r in (self.active, self.standby, self.prepared) if r is not None]

    def find(self, digest: str) -> Resident | None:
        """The living generation of a bundle."""
        return next((r for r in self.all() if r.digest == digest and r.generation.alive), None)

    def by_id(self, generation: int) -> Resident | None:
        """The generation of that number."""
        return next((r for r in self.all() if r.id == generation), None)

    def in_the_way(self, capacity: int) -> list[Resident]:
        """What has to go before another generation can be prepared: the one prepared before, and the standby if need be."""
        leaving = [] if self.prepared is None else [self.prepared]
        if self.standby is not None and len(self.all()) - len(leaving) >= capacity:
            leaving.append(self.standby)
        return leaving

    def activated(self, resident: Resident) -> Resident | None:
        """Make a generation the active one; what was active becomes the standby. Returns what lost its place, if anything."""
        if self.active is resident:
            return None
        displaced = None if self.standby is resident else self.standby
        if self.prepared is resident:
            self.prepared = None
        self.active, self.standby = resident, self.active
        if self.standby is None:  # nothing acted before: what stood by goes on standing by
            self.standby, displaced = displaced, None
        return displaced

    def forget(self, resident: Resident) -> None:
        """Take a generation out of its part."""
        if self.active is resident:
            self.active = None
        if self.standby is resident:
            self.standby = None
        if self.prepared is resident:
            self.prepared = None
