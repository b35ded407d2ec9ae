# SPDX-License-Identifier: Apache-2.0
"""An episode file from arrays, without ROS: what simulated robots record. A robot's recorder writes while it runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mcap.writer import Writer

from vla_learning.episodes.format import (
    IMAGE_SCHEMA,
    IMAGE_TYPE,
    METADATA,
    PART,
    PROFILE,
    STEP_JSON_SCHEMA,
    STEP_SCHEMA,
    STEP_TOPIC,
    EpisodeMeta,
    encode_image,
)
from vla_learning.episodes.pictures import encode_png
from vla_learning.errors import EpisodeError

_CHUNK_BYTES = 1 << 20


def write_episode(
    path: str | Path,
    meta: EpisodeMeta,
    features: Mapping[str, npt.NDArray[Any]],
    actions: npt.NDArray[Any],
    *,
    policy_actions: npt.NDArray[Any] | None = None,
    intervention: npt.NDArray[np.bool_] | None = None,
    instructions: Sequence[str] | None = None,
) -> None:
    """Write an episode of T steps; the file appears under its name when it is whole.

    Args:
        path: of the file; it is replaced if it exists.
        meta: of the episode. Its times, duration and ``intervention`` are set from the arrays: step i is at
            ``started_ns + i / rate_hz``.
        features: feature → ``[T, D]`` float, or ``[T, H, W, 3]`` uint8 of a picture.
        actions: what was commanded, ``[T, A]``.
        policy_actions: what the policy wanted, ``[T, A]``, NaN where it wanted nothing; ``None``: what was commanded.
        intervention: steps that an operator commanded, ``[T]``; ``None``: none.
        instructions: of each step; ``None``: ``meta.instruction``.

    Raises:
        ValueError: the arrays are not those of ``meta``.
        EpisodeError: EPISODE_NOT_WRITTEN.
    """
    path, steps = Path(path), len(actions)
    wanted = actions if policy_actions is None else policy_actions
    taken_over = np.zeros(steps, np.bool_) if intervention is None else intervention
    texts = [meta.instruction] * steps if instructions is None else list(instructions)
    meta = replace(meta, duration_s=steps / meta.rate_hz, intervention=bool(taken_over.any()))
    _check(meta, features, {"actions": actions, "policy_actions": wanted}, {len(taken_over), len(texts), steps})
    times = [meta.started_ns + round(i * 1e9 / meta.rate_hz) for i in range(steps)]
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as stream:
            writer = Writer(stream, chunk_size=_CHUNK_BYTES)
            writer.start(profile=PROFILE, library="vla_ota")
            schema = writer.register_schema(STEP_SCHEMA, "jsonschema", STEP_JSON_SCHEMA.encode())
            step_channel = writer.register_channel(STEP_TOPIC, "json", schema)
            cameras = _Cameras(writer, meta, features)
            states = {name: features[name].astype(np.float64) for name, f in meta.features.items() if not f.is_picture}
            for i, time in enumerate(times):
                cameras.write(i, time)
                step = {
                    "time_ns": time,
                    "instruction": texts[i],
                    "state": {name: values[i].tolist() for name, values in states.items()},
                    "action": actions[i].astype(np.float64).tolist(),
                    "policy_action": None if np.isnan(wanted[i]).any() else wanted[i].astype(np.float64).tolist(),
                    "intervention": bool(taken_over[i]),
                    "generation": meta.generation,
                    "version": meta.version,
                }
                writer.add_message(step_channel, time, json.dumps(step).encode(), time, i)
            writer.add_metadata(METADATA, meta.as_record())
            writer.finish()  # type: ignore[no-untyped-call]
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise EpisodeError("EPISODE_NOT_WRITTEN", path, e.strerror or str(e)) from e


class _Cameras:
    """Writes each camera's picture when it has changed."""

    def __init__(self, writer: Writer, meta: EpisodeMeta, features: Mapping[str, npt.NDArray[Any]]) -> None:
        self._writer = writer
        self._pictures = {name: features[name] for name, feature in meta.features.items() if feature.is_picture}
        if self._pictures:
            schema = writer.register_schema(IMAGE_TYPE, "ros2msg", IMAGE_SCHEMA.encode())
            self._channels = {name: writer.register_channel(name, "cdr", schema) for name in self._pictures}

    def write(self, i: int, time_ns: int) -> None:
        for name, pictures in self._pictures.items():
            if i == 0 or not np.array_equal(pictures[i], pictures[i - 1]):
                message = encode_image(time_ns, "png", encode_png(pictures[i]))
                self._writer.add_message(self._channels[name], time_ns, message, time_ns, i)


def _check(
    meta: EpisodeMeta,
    features: Mapping[str, npt.NDArray[Any]],
    actions: Mapping[str, npt.NDArray[Any]],
    lengths: set[int],
) -> None:
    if features.keys() != meta.features.keys():
        raise ValueError(f"features are {sorted(features)}, the metadata has {sorted(meta.features)}")
    (steps, *others) = lengths
    if others or steps == 0:
        raise ValueError(f"no steps, or arrays of several lengths: {sorted(lengths)}")
    shapes = {name: feature.shape for name, feature in meta.features.items()}
    for name, values in {**features, **actions}.items():
        shape = (steps, *shapes.get(name, (len(meta.channels),)))
        if values.shape != shape:
            raise ValueError(f"{name} is {values.shape}, not {shape}")
