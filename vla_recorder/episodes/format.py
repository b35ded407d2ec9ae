# SPDX-License-Identifier: Apache-2.0
"""What the robot says of an episode, as its file holds it (``vla_learning.episodes.format``)."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from vla_learning.episodes.format import (
    IMAGE_SCHEMA,
    IMAGE_TYPE,
    STEP_JSON_SCHEMA,
    STEP_SCHEMA,
    STEP_TOPIC,
    Channel,
    EpisodeMeta,
    Feature,
)
from vla_policy_node.contract.model import Contract, Observation
from vla_recorder.records import Topic

BEGUN = "vla_ota.episode.begun"
"""Name of the metadata records that say what is known so far: the last one counts if the recorder dies."""
STEP = Topic(STEP_TOPIC, STEP_SCHEMA, STEP_JSON_SCHEMA, encoding="json", schema_encoding="jsonschema")


def picture_topic(feature: str) -> Topic:
    """Return the topic of a picture feature."""
    return Topic(feature, IMAGE_TYPE, IMAGE_SCHEMA)


class StepMaker:
    """Makes JSON of the robot's steps."""

    def __init__(self, contract: Contract) -> None:
        self.channels = len(contract.channels)
        self._parts: list[tuple[str, slice]] = []
        begin = 0
        for observation in contract.observations:
            if not observation.is_image:
                end = begin + observation.spec.shape[0]
                self._parts.append((observation.key, slice(begin, end)))
                begin = end
        self.numbers = begin

    def step(self, message: Any, index: int) -> bytes:
        """Return step ``index`` of a ``vla_ota/PolicySteps``. Raises ValueError: it is another robot's."""
        channels = slice(index * self.channels, (index + 1) * self.channels)
        action, wanted = list(message.actions[channels]), list(message.policy_actions[channels])
        state = [round(value, 7) for value in message.states[index * self.numbers : (index + 1) * self.numbers]]
        if len(action) != self.channels or len(wanted) != self.channels or len(state) != self.numbers:
            raise ValueError(f"a step has {len(action)} channels and {len(state)} numbers")
        step = {
            "time_ns": message.times_ns[index],
            "instruction": message.instruction,
            "state": {key: state[part] for key, part in self._parts},
            "action": action,
            "policy_action": wanted if all(map(math.isfinite, wanted)) else None,
            "intervention": message.interventions[index],
            "generation": message.generation,
            "version": message.version,
        }
        return json.dumps(step, separators=(",", ":")).encode()


def meta_of(contract: Contract, robot: str) -> EpisodeMeta:
    """Return what is known of every episode of a robot."""
    return EpisodeMeta(
        episode_id="",
        policy="",
        version="",
        rate_hz=contract.rate_hz,
        channels=tuple(Channel(c.name, c.unit) for c in contract.channels),
        features={o.key: _feature(o) for o in contract.observations},
        robot=robot,
        robot_type=contract.robot_type,
        contract_sha256=hashlib.sha256(contract.text.encode()).hexdigest(),
    )


def _feature(observation: Observation) -> Feature:
    if observation.is_image:
        return Feature("image", observation.spec.shape)
    names = tuple(name for source in observation.sources for name in source.select)
    return Feature("float32", observation.spec.shape, names)
