# SPDX-License-Identifier: Apache-2.0
"""Episodes: one task attempt with its outcome, which generations acted in it, and how it ended."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from vla_policy_node.errors import PolicyNodeError

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class EpisodeError(PolicyNodeError):
    """An episode cannot be opened or closed as asked. Codes: EPISODE_OPEN, NO_EPISODE, WRONG_EPISODE, EPISODE_ID_INVALID."""


@dataclass
class Episode:
    """An open episode. Times are monotonic [s]."""

    episode_id: str
    instruction: str
    started_s: float
    timeout_s: float
    arm: str = ""  # of the experiment that drew its version; empty = none did
    generations: set[int] = field(default_factory=set)  # that acted during it
    intervention: bool = False  # an operator has taken over during it


@dataclass(frozen=True)
class Outcome:
    """How an episode ended; ``known`` false: it was closed by timeout or shutdown, not by a report."""

    episode_id: str
    instruction: str
    success: bool
    known: bool
    intervention: bool
    mixed: bool
    duration_s: float
    arm: str = ""


class Episodes:
    """At most one open episode."""

    def __init__(self) -> None:
        self.open: Episode | None = None

    def name(self, episode_id: str) -> str:
        """Return the name of an episode that may be opened now; a made-up one for an empty name. Raises :class:`EpisodeError`."""
        if self.open is not None:
            raise EpisodeError("EPISODE_OPEN", f"episode {self.open.episode_id!r} is open: end it first")
        name = episode_id or uuid.uuid4().hex[:12]
        if not _NAME.fullmatch(name):
            raise EpisodeError("EPISODE_ID_INVALID", "an episode_id has 1 to 128 characters of A-Z a-z 0-9 . _ : -")
        return name

    def start(self, episode_id: str, instruction: str, timeout_s: float, now_s: float, arm: str = "") -> Episode:
        """Open an episode. Raises :class:`EpisodeError`."""
        self.open = Episode(self.name(episode_id), instruction, now_s, timeout_s, arm)
        return self.open

    def acted(self, generation: int) -> None:
        """Note that a generation acts now."""
        if self.open is not None and generation:
            self.open.generations.add(generation)

    def intervened(self) -> None:
        """Note that an operator has taken over."""
        if self.open is not None:
            self.open.intervention = True

    def end(
        self, episode_id: str, now_s: float, *, success: bool, known: bool = True, intervention: bool = False
    ) -> Outcome:
        """Close the open episode. Raises :class:`EpisodeError`."""
        if self.open is None:
            raise EpisodeError("NO_EPISODE", "no episode is open")
        if episode_id and episode_id != self.open.episode_id:
            raise EpisodeError("WRONG_EPISODE", f"the open episode is {self.open.episode_id!r}, not {episode_id!r}")
        episode, self.open = self.open, None
        return Outcome(
            episode.episode_id,
            episode.instruction,
            success=success and known,
            known=known,
            intervention=intervention or episode.intervention,
            mixed=len(episode.generations) > 1,
            duration_s=now_s - episode.started_s,
            arm=episode.arm,
        )

    def overdue(self, now_s: float) -> bool:
        """Whether the open episode has outlived its time."""
        return self.open is not None and now_s - self.open.started_s > self.open.timeout_s
