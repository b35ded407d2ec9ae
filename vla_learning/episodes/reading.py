# SPDX-License-Identifier: Apache-2.0
"""An episode file as arrays. What is not an episode through and through is refused, whoever made it; the file stays as it is."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mcap.records import Channel, Message, Metadata

from vla_learning.episodes.container import records
from vla_learning.episodes.format import METADATA, OBSERVATION, STEP_TOPIC, EpisodeMeta, decode_image, is_text
from vla_learning.episodes.pictures import Pictures, check_header
from vla_learning.errors import EpisodeError

Floats = npt.NDArray[np.float32]

MAX_STEPS = 200_000
"""An hour at 50 Hz."""
_MAX_STEP_BYTES = 1 << 20
_MOST_INSTRUCTIONS = 64
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Episode:
    """T steps of one robot."""

    meta: EpisodeMeta
    times_ns: npt.NDArray[np.int64]
    """Wall clock [ns since 1970 UTC], ``[T]``."""
    states: Mapping[str, Floats]
    """Feature → ``[T, D]``, physical units."""
    pictures: Mapping[str, Pictures]
    actions: Floats
    """What was commanded, ``[T, A]``, physical units."""
    policy_actions: Floats
    """What the policy wanted, ``[T, A]``; NaN where it wanted nothing."""
    intervention: npt.NDArray[np.bool_]
    """Steps that an operator commanded, ``[T]``."""
    instructions: Sequence[str]

    @property
    def steps(self) -> int:
        """Return T."""
        return len(self.times_ns)

    @property
    def corrections(self) -> int:
        """How many steps an operator commanded."""
        return int(self.intervention.sum())

    @cached_property
    def features(self) -> Mapping[str, npt.NDArray[Any]]:
        """Feature → ``[T, D]`` float32, or ``[T, H, W, 3]`` uint8: pictures are decoded here."""
        return {**self.states, **{name: pictures.array() for name, pictures in self.pictures.items()}}


def read_episode(path: str | Path) -> Episode:
    """Return an episode.

    Leading steps for which a camera had not yet given a picture are left out.

    Raises:
        EpisodeError: EPISODE_UNREADABLE, EPISODE_TRUNCATED, EPISODE_FORMAT or EPISODE_LIMIT.
    """
    path = Path(path)
    found = _collect(path)
    if found.meta is None:
        raise EpisodeError("EPISODE_FORMAT", path.name, f"no metadata {METADATA!r}: this is no episode of vla_ota")
    return _assemble(found.meta, found, path.name)


@dataclass
class _Found:
    """What lies in a file."""

    meta: EpisodeMeta | None = None
    steps: list[tuple[int, bytes]] = field(default_factory=list)  # log time [ns], JSON
    images: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)  # topic → log time, PNG or JPEG


def _collect(path: Path) -> _Found:
    found = _Found()
    channels: dict[int, Channel] = {}
    for record in records(path):
        if isinstance(record, Metadata):
            if record.name == METADATA:
                found.meta = EpisodeMeta.from_record(record.metadata, path.name)
        elif isinstance(record, Channel):
            channels[record.id] = record
        elif (channel := channels.get(record.channel_id)) is None:
            raise EpisodeError(
                "EPISODE_FORMAT", path.name, f"a message on channel {record.channel_id}, which is not declared"
            )
        else:
            _keep(found, channel, record, path.name)
    return found


def _keep(found: _Found, channel: Channel, message: Message, where: str) -> None:
    if channel.topic == STEP_TOPIC:
        if channel.message_encoding != "json" or len(message.data) > _MAX_STEP_BYTES:
            raise EpisodeError("EPISODE_FORMAT", where, f"channel {STEP_TOPIC!r} is not JSON, or a step is too long")
        if len(found.steps) >= MAX_STEPS:
            raise EpisodeError("EPISODE_LIMIT", where, f"more than {MAX_STEPS} steps")
        found.steps.append((message.log_time, message.data))
    elif channel.message_encoding == "cdr" and channel.topic.startswith(OBSERVATION):
        try:
            image = decode_image(message.data)
        except ValueError as e:
            raise EpisodeError("EPISODE_FORMAT", where, f"{channel.topic}: no CompressedImage: {e}") from e
        found.images.setdefault(channel.topic, []).append((message.log_time, image))


def _assemble(meta: EpisodeMeta, found: _Found, where: str) -> Episode:
    found.steps.sort(key=lambda step: step[0])  # stable: equal times stay in the file's order
    times = [time for time, _ in found.steps]
    pictures, first = {}, 0
    for name, feature in meta.features.items():
        if feature.is_picture:
            pictures[name] = _pictures(name, feature.shape, found.images.get(name, []), times, where)
            first = max(first, int((pictures[name].which < 0).sum()))
    steps = [_step(data, meta, f"{where}: step {number}") for number, (_, data) in enumerate(found.steps)][first:]
    if not steps:
        raise EpisodeError("EPISODE_FORMAT", where, "no step with all its observations")
    instructions = [step["instruction"] for step in steps]
    if len(set(instructions)) > _MOST_INSTRUCTIONS:
        raise EpisodeError("EPISODE_LIMIT", where, f"more than {_MOST_INSTRUCTIONS} instructions")
    states = [name for name, feature in meta.features.items() if not feature.is_picture]
    nothing = [float("nan")] * len(meta.channels)
    return Episode(
        meta,
        np.array([step["time_ns"] for step in steps], np.int64),
        {name: np.array([step["state"][name] for step in steps], np.float32) for name in states},
        {name: Pictures(p.name, p.shape, p.encoded, p.which[first:]) for name, p in pictures.items()},
        np.array([step["action"] for step in steps], np.float32),
        np.array([step["policy_action"] or nothing for step in steps], np.float32),
        np.array([step["intervention"] for step in steps], np.bool_),
        instructions,
    )


def _pictures(
    name: str, shape: tuple[int, ...], images: list[tuple[int, bytes]], times: list[int], where: str
) -> Pictures:
    """Return a camera's pictures as of each step; -1 where there was none yet."""
    images.sort(key=lambda image: image[0])
    for _, image in images:
        check_header(image, shape, f"{where}: {name}")
    image_times = [time for time, _ in images]
    which = [bisect.bisect_right(image_times, time) - 1 for time in times]
    return Pictures(f"{where}: {name}", shape, [image for _, image in images], np.array(which, np.int64))


def _step(data: bytes, meta: EpisodeMeta, where: str) -> dict[str, Any]:
    """Return a step whose fields have the types and lengths that the episode's metadata promises."""
    try:
        step = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise EpisodeError("EPISODE_FORMAT", where, "this is not JSON") from e
    problem = _problem(step, meta)
    if problem:
        raise EpisodeError("EPISODE_FORMAT", where, problem)
    return dict(step)


def _problem(step: Any, meta: EpisodeMeta) -> str:
    if not isinstance(step, dict) or not isinstance(step.get("state"), dict):
        return "a step must be an object with a state"
    if type(step.get("time_ns")) is not int or not 0 <= step["time_ns"] < 2**63:
        return "time_ns must be a time [ns]: an integer from 0 to 2**63 - 1"
    if type(step.get("intervention")) is not bool:
        return "intervention must be true or false"
    if not is_text(step.get("instruction")):
        return "instruction must be text, and not too long"
    vectors = {name: (step["state"].get(name), f.shape[0]) for name, f in meta.features.items() if not f.is_picture}
    vectors["action"] = step.get("action"), len(meta.channels)
    if step.get("policy_action", ...) is not None:
        vectors["policy_action"] = step.get("policy_action"), len(meta.channels)
    for name, (values, length) in vectors.items():
        if not isinstance(values, list) or len(values) != length or not all(map(_is_number, values)):
            return f"{name} is not a list of {length} numbers that float32 can hold"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # NaN compares false
