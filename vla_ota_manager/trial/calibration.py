# SPDX-License-Identifier: Apache-2.0
"""What is normal for a version: its scores in blocks and its successes, collected while it acts and kept by digest."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.context import Context
from vla_ota_manager.records import EpisodeResult, Score
from vla_ota_manager.trial.inbox import HARD_LIMIT_SOURCE

MAX_SOURCES = 32
_SAVE_PERIOD_S = 30.0


class BlockBuilder:
    """Makes one observation of the largest of several consecutive scores: of ``block_chunks`` chunks, or of an episode if 0.

    Scores of neighbouring chunks are alike, so single ones would count the same trouble many times. Blocks never span episodes;
    a block that an episode's end cuts short is dropped.
    """

    def __init__(self, block_chunks: int) -> None:
        self._size = block_chunks
        self._open: dict[str, tuple[str, int, float]] = {}

    def add(self, score: Score) -> float | None:
        """Take a score in; return the observation that it completes, if it does."""
        episode, count, largest = self._open.get(score.source, (score.episode_id, 0, -math.inf))
        finished: float | None = None
        if episode != score.episode_id:
            finished = largest if self._size == 0 and episode and count else None
            count, largest = 0, -math.inf
        count, largest = count + 1, max(largest, score.value)
        if self._size and count >= self._size:
            finished, count, largest = largest, 0, -math.inf
        self._open[score.source] = (score.episode_id, count, largest)
        return finished

    def end_episode(self, episode_id: str) -> dict[str, float]:
        """Return the observations that the end of an episode completes, by source."""
        ended = {source: entry for source, entry in self._open.items() if entry[0] == episode_id and episode_id}
        for source in ended:
            del self._open[source]
        return {source: largest for source, (_, count, largest) in ended.items() if self._size == 0 and count}


@dataclass
class Calibration:
    """Observations of one version."""

    block_chunks: int
    limit: int
    """Observations kept per source; the latest."""
    blocks: dict[str, deque[float]] = field(default_factory=dict)
    episodes: int = 0
    """With a known outcome."""
    successes: int = 0

    @staticmethod
    def empty(config: OtaConfig) -> Calibration:
        """Return one without observations."""
        return Calibration(config.block_chunks, config.calibration_samples)

    @staticmethod
    def from_json(document: dict[str, Any], config: OtaConfig) -> Calibration:
        """Read what ``to_json`` wrote. What was observed in blocks of another size, or makes no sense, is left out."""
        calibration = Calibration.empty(config)
        try:
            episodes, successes = int(document["episodes"]), int(document["successes"])
            if 0 <= successes <= episodes:
                calibration.episodes, calibration.successes = episodes, successes
            if document["block_chunks"] == config.block_chunks:
                for source, values in document["blocks"].items():
                    for value in values:
                        calibration.add_block(source, float(value))
        except (KeyError, TypeError, ValueError, AttributeError):
            return calibration
        return calibration

    def to_json(self) -> dict[str, Any]:
        """Return it as ``state.json`` keeps it."""
        return {
            "block_chunks": self.block_chunks,
            "episodes": self.episodes,
            "successes": self.successes,
            "blocks": {source: [float(f"{value:.9g}") for value in values] for source, values in self.blocks.items()},
        }

    def add_block(self, source: str, value: float) -> None:
        """Take an observation in."""
        if math.isfinite(value) and (source in self.blocks or len(self.blocks) < MAX_SOURCES):
            self.blocks.setdefault(source, deque(maxlen=self.limit)).append(value)

    def add_episode(self, success: bool) -> None:
        """Count an episode with a known outcome."""
        self.episodes += 1
        self.successes += success


def succeeded(result: EpisodeResult) -> bool | None:
    """Whether an episode counts as a success; None if it does not count. An intervention is a failure."""
    if not result.known or result.mixed:
        return None
    return result.success and not result.intervention


@dataclass(frozen=True)
class Acting:
    """What acts, to tell whether a score or outcome is about it."""

    version: str
    generation: int
    boot_id: str
    """Of the policy node: it counts generations anew at each boot."""
    since_s: float
    """By the clock that stamps scores [s]."""

    def did(self, item: Score | EpisodeResult) -> bool:
        """Whether a score or outcome is about what acts.

        Generation and boot decide; a clock may be set back. A score without a generation is another stack's: its stamp decides.
        """
        if item.version not in ("", self.version):
            return False
        if isinstance(item, EpisodeResult) or (item.generation and self.generation):
            return (item.generation, item.boot_id) == (self.generation, self.boot_id)
        return item.stamp_s >= self.since_s


class Collector:
    """Fills a calibration with what one generation does."""

    def __init__(self, config: OtaConfig, calibration: Calibration, acting: Acting) -> None:
        self.calibration = calibration
        self._blocks = BlockBuilder(config.block_chunks)
        self._acting = acting

    def add(self, item: Score | EpisodeResult) -> bool:
        """Take a score or an outcome in; false if it is of another generation."""
        if not self._acting.did(item):
            return False
        if isinstance(item, EpisodeResult):
            for source, value in self._blocks.end_episode(item.episode_id).items():
                self.calibration.add_block(source, value)
            success = succeeded(item)
            if success is not None:
                self.calibration.add_episode(success)
        elif item.source != HARD_LIMIT_SOURCE and math.isfinite(item.value):
            block = self._blocks.add(item)
            if block is not None:
                self.calibration.add_block(item.source, block)
        return True


class CalibrationKeeper:
    """Collects the committed version's calibration while nothing is on trial, and saves it now and then."""

    def __init__(self, context: Context) -> None:
        self._ctx = context
        self._collector: Collector | None = None
        self._of: tuple[str, str, int] = ("", "", 0)
        self._changed = False
        self._saved_at = time.monotonic()

    def collect(self) -> None:
        """Take in what arrived, if it is the committed version that acts."""
        items = self._ctx.inbox.drain()
        state, snapshot = self._ctx.store.state, self._ctx.gate.policy()
        committed = state.committed
        if snapshot is None or committed is None or snapshot.active_digest != committed.digest or snapshot.on_trial:
            return
        of = (committed.digest, snapshot.boot_id, snapshot.generation)
        if of != self._of or self._collector is None:
            self.save()
            known = Calibration.from_json(state.calibration.get(committed.digest, {}), self._ctx.config)
            since = 0.0 if snapshot.generation else self._ctx.stamp_clock()
            self._of = of
            acting = Acting(committed.version, snapshot.generation, snapshot.boot_id, since)
            self._collector = Collector(self._ctx.config, known, acting)
        for item in items:
            self._changed = self._collector.add(item) or self._changed
        if time.monotonic() - self._saved_at > _SAVE_PERIOD_S:
            self.save()

    def save(self) -> None:
        """Write what is new into the state."""
        self._saved_at = time.monotonic()
        if self._changed and self._collector is not None:
            self._changed = False
            with self._ctx.store.edit() as state:
                state.calibration[self._of[0]] = self._collector.calibration.to_json()
