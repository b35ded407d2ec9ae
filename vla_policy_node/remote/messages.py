# SPDX-License-Identifier: Apache-2.0
"""What is in the frames, and what is accepted there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.ipc.arena import Field, Layout
from vla_policy_node.ipc.layouts import HISTORY, INSTRUCTION_BYTES
from vla_policy_node.policies.base import FeatureSpec, PolicySpec
from vla_policy_node.remote.line import broken
from vla_policy_node.worker.inference import FEATURE

MAX_FEATURES = 64
MAX_OBSERVATION_BYTES = 1 << 25
"""Of all features of one observation: five cameras of 1920 × 1080."""
MAX_CHUNK_BYTES = 1 << 24
SILENCE_S = (0.1, 60.0)
"""Shortest and longest silence that a robot may choose [s]."""
_DTYPES = {"float32": 4, "uint8": 1}


def observation_frame(features: Mapping[str, FeatureSpec], history: int) -> Layout:
    """Robot → host: what a chunk is made from; each feature ``[history, …]``, oldest first."""
    fixed = [
        Field("request", "uint64"),
        Field("reset", "uint8"),  # 1: policy.reset() first
        Field("episode", "uint64"),
        Field("instruction", "uint8", (INSTRUCTION_BYTES,)),
    ]
    shown = [Field(FEATURE + k, v.dtype, (history, *v.shape)) for k, v in sorted(features.items())]
    return Layout([*fixed, *shown])


class Record:
    """A frame's body with arrays, which is used again and again: it must have been sent before."""

    def __init__(self, layout: Layout) -> None:
        self.body = bytearray(layout.size)
        self._views = layout.views(memoryview(self.body))

    def fill(self, values: Mapping[str, npt.NDArray[Any] | float | int]) -> bytearray:
        """Return the body with these values; every field must be given."""
        for name, view in self._views.items():
            view[...] = values[name]
        return self.body


def features_to_json(features: Mapping[str, FeatureSpec]) -> dict[str, Any]:
    """Return what :func:`features_of` reads."""
    return {name: [feature.dtype, list(feature.shape)] for name, feature in features.items()}


def features_of(document: Any) -> dict[str, FeatureSpec]:
    """Return the features that a peer names. Raises LineError REMOTE_PROTOCOL."""
    if not isinstance(document, dict) or not 0 < len(document) <= MAX_FEATURES:
        raise broken("no features, or too many")
    found = {str(name): _feature(name, value) for name, value in document.items()}
    size = sum(math.prod(feature.shape) * _DTYPES[feature.dtype] for feature in found.values())
    if size > MAX_OBSERVATION_BYTES:
        raise broken(f"an observation of {size} bytes, at most {MAX_OBSERVATION_BYTES}")
    return found


def _feature(name: str, value: Any) -> FeatureSpec:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list) and 0 < len(value[1]) <= 4:
        dtype, shape = value
        if dtype in tuple(_DTYPES) and all(type(n) is int and 0 < n <= MAX_OBSERVATION_BYTES for n in shape):
            return FeatureSpec(tuple(shape), dtype)
    raise broken(f"feature {name[:80]!r} is {str(value)[:80]}")


def number(document: Mapping[str, Any], key: str, low: float, high: float) -> float:
    """Return a number within bounds. Raises LineError REMOTE_PROTOCOL."""
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise broken(f"{key} is {str(value)[:80]}, not {low:g} to {high:g}")
    return float(value)


def text(document: Mapping[str, Any], key: str) -> str:
    """Return a text. Raises LineError REMOTE_PROTOCOL."""
    value = document.get(key)
    if not isinstance(value, str):
        raise broken(f"{key} is no text")
    return value


def spec_to_json(spec: PolicySpec) -> dict[str, Any]:
    """Return what :func:`spec_of` reads."""
    return {
        "features": features_to_json(spec.observation),
        "horizon": spec.horizon,
        "execute": spec.execute,
        "action_dim": spec.action_dim,
        "uses_instruction": spec.uses_instruction,
        "history": spec.history,
    }


def spec_of(document: Mapping[str, Any]) -> PolicySpec:
    """Return what a host says of a policy. Raises LineError REMOTE_PROTOCOL."""
    horizon, execute, action_dim = (int(number(document, k, 1, 1 << 20)) for k in ("horizon", "execute", "action_dim"))
    if 4 * horizon * action_dim > MAX_CHUNK_BYTES:
        raise broken(f"a chunk of {horizon} × {action_dim} actions")
    history = int(number(document, "history", 1, HISTORY))
    features = features_of(document.get("features"))
    return PolicySpec(features, horizon, execute, action_dim, document.get("uses_instruction") is True, history)


def encoded(instruction: str) -> npt.NDArray[np.uint8]:
    """Return an instruction, which came out of an observation, as it goes into one."""
    return np.frombuffer(instruction.encode()[:INSTRUCTION_BYTES].ljust(INSTRUCTION_BYTES, b"\0"), np.uint8)
