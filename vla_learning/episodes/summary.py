# SPDX-License-Identifier: Apache-2.0
"""What is kept of an episode beside its file: enough to list it, and to choose it for a data set without opening it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vla_learning.episodes.reading import read_episode


@dataclass(frozen=True)
class EpisodeSummary:
    """An episode in a few words."""

    sha256: str
    """Of the file."""
    size_bytes: int
    robot: str
    robot_type: str
    episode_id: str
    policy: str
    version: str
    digest: str
    arm: str
    experiment: str
    instructions: tuple[str, ...]
    """Those of its steps, in their order, each once."""
    success: bool | None
    steps: int
    corrections: int
    """Steps that an operator commanded."""
    rate_hz: float
    started_s: float
    """Wall clock [s since 1970 UTC]."""
    duration_s: float
    interface: str
    """See ``EpisodeMeta.interface``."""

    @property
    def usable(self) -> bool:
        """Whether it shows how a task is done: it succeeded, or an operator showed it."""
        return self.success is True or self.corrections > 0


def summarize(path: str | Path) -> EpisodeSummary:
    """Read an episode through and through, every picture too, and return what to keep of it.

    Raises:
        EpisodeError: as ``read_episode``.
    """
    path = Path(path)
    episode = read_episode(path)
    for pictures in episode.pictures.values():
        for index in range(len(pictures.encoded)):
            pictures.decoded(index)
    meta = episode.meta
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return EpisodeSummary(
        sha256=sha256,
        size_bytes=path.stat().st_size,
        robot=meta.robot,
        robot_type=meta.robot_type,
        episode_id=meta.episode_id,
        policy=meta.policy,
        version=meta.version,
        digest=meta.digest,
        arm=meta.arm,
        experiment=meta.experiment,
        instructions=tuple(dict.fromkeys(episode.instructions)),
        success=meta.success,
        steps=episode.steps,
        corrections=episode.corrections,
        rate_hz=meta.rate_hz,
        started_s=meta.started_ns / 1e9,
        duration_s=meta.duration_s,
        interface=meta.interface,
    )
