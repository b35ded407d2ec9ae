# SPDX-License-Identifier: Apache-2.0
"""A fleet's data in memory, for a notebook; a fleet server keeps it on disk, and ``vla-fleet dataset build`` mixes it alike."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

from vla_learning.datasets.mix import mix
from vla_learning.datasets.selection import BuildSettings
from vla_learning.errors import DataSetError


@dataclass(frozen=True)
class FleetEpisode:
    """An episode, and its place in the sequence in which everything was added."""

    number: int
    robot_id: str
    observations: Any
    actions: Any
    success: bool


@dataclass(frozen=True)
class Correction:
    """A step in which an operator commanded something else than the policy wanted."""

    number: int
    robot_id: str
    observation: Any
    original: Any
    corrected: Any


class FleetDataAggregator:
    """Collects a fleet's episodes and corrections, bounded for each robot.

    Args:
        max_buffer_per_robot: episodes, and corrections, of one robot that are kept. The oldest success goes first; a failure goes
            when there is no success, since failures are what is to be learned.
    """

    def __init__(self, max_buffer_per_robot: int = 10_000) -> None:
        if max_buffer_per_robot < 1:
            raise ValueError(f"max_buffer_per_robot is {max_buffer_per_robot}; at least 1")
        self.max_buffer = max_buffer_per_robot
        self.buffers: defaultdict[str, list[FleetEpisode]] = defaultdict(list)
        self._corrections: defaultdict[str, deque[Correction]] = defaultdict(lambda: deque(maxlen=max_buffer_per_robot))
        self._numbers, self._built = itertools.count(1), 0

    @property
    def correction_buffer(self) -> list[Correction]:
        """Every correction that is kept."""
        return [correction for buffer in self._corrections.values() for correction in buffer]

    def add_episode(self, robot_id: str, observations: Any, actions: Any, success: bool) -> None:
        """Add an episode of a robot."""
        buffer = self.buffers[robot_id]
        buffer.append(FleetEpisode(next(self._numbers), robot_id, observations, actions, success))
        if len(buffer) > self.max_buffer:
            older = range(len(buffer) - 1)
            del buffer[next((index for index in older if buffer[index].success), 0)]

    def add_correction(self, robot_id: str, observation: Any, original_action: Any, corrected_action: Any) -> None:
        """Add a step that an operator corrected."""
        added = Correction(next(self._numbers), robot_id, observation, original_action, corrected_action)
        self._corrections[robot_id].append(added)

    def build_training_set(self, old_data_ratio: float = 0.7) -> dict[str, Any]:
        """Return what to train on, and how often to draw each of it. What is added from then on is new to the next set.

        Returns:
            ``total_episodes``; ``corrections``: new ones; ``effective_corrections``: as many other new samples as they are drawn
            like; ``replay_ratio``: of all draws (0 in the first set, where nothing is old); ``robots_contributing``;
            ``samples``: every episode and correction; ``weights``: of each of them, with a sum of their number;
            ``effective_samples``: Kish's ``(Σw)² / Σw²``.

        Raises:
            DataSetError: DATASET_NO_EPISODES, DATASET_NOTHING_NEW, DATASET_SETTING.
        """
        settings = BuildSettings(replay_share=old_data_ratio)
        episodes = [episode for buffer in self.buffers.values() for episode in buffer]
        samples: list[FleetEpisode | Correction] = [*episodes, *self.correction_buffer]
        new = [sample for sample in samples if sample.number > self._built]
        if not new:
            code = "DATASET_NOTHING_NEW" if samples else "DATASET_NO_EPISODES"
            raise DataSetError(code, "the aggregator", "nothing was added since the last training set")
        corrections = sum(isinstance(sample, Correction) for sample in new)
        mixed = mix(len(samples) - len(new), len(new), corrections, old_data_ratio, settings.correction_weight)

        def weight(sample: FleetEpisode | Correction) -> float:
            if sample.number <= self._built:
                return mixed.replay_weight
            return mixed.correction_weight if isinstance(sample, Correction) else mixed.new_weight

        weights = [weight(sample) for sample in samples]
        self._built = max(sample.number for sample in new)
        return {
            "total_episodes": len(episodes),
            "corrections": corrections,
            "effective_corrections": round(corrections * settings.correction_weight),
            "replay_ratio": mixed.replay_share,
            "robots_contributing": len({sample.robot_id for sample in samples}),
            "samples": samples,
            "weights": weights,
            "effective_samples": mixed.effective_frames,
        }
