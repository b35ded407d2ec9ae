# SPDX-License-Identifier: Apache-2.0
"""``config.json`` as LeRobot writes it, reduced to what every policy has; the rest stays in :attr:`PolicyConfig.raw`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeGuard

from vla_checkpoint import limits
from vla_checkpoint.errors import ConfigError
from vla_checkpoint.files import PathLike
from vla_checkpoint.strict_json import is_int, load_object

CONFIG_NAME = "config.json"
ACTION = "action"
_VQBET_CHUNK = "action_chunk_size"
"""VQ-BeT's word for ``chunk_size``; it executes all of it unless a bundle says otherwise by ``n_action_steps``."""

REQUIRED_KEYS = ("type", "input_features", "output_features", "normalization_mapping", "n_action_steps")
"""Keys of ``config.json`` without which no policy is accepted."""
REQUIRED_STATS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
})  # fmt: skip
"""LeRobot's normalisation modes and the statistics each of them divides by."""


@dataclass(frozen=True)
class Feature:
    """One input or output of a policy."""

    type: str
    """LeRobot's feature type: ``STATE``, ``VISUAL``, ``ACTION``, ``ENV``, …"""
    shape: tuple[int, ...]
    """As LeRobot has it: state ``(S,)``, action ``(A,)``, picture ``(C, H, W)``."""

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Shape in shared memory and in ``golden.safetensors``: pictures are ``(H, W, C)`` there."""
        if self.type == "VISUAL" and len(self.shape) == 3 and self.shape[0] in (1, 3, 4):
            return (self.shape[1], self.shape[2], self.shape[0])
        return self.shape

    @property
    def stats_size(self) -> int:
        """Numbers in each of its statistics: one a channel for pictures, one an element otherwise."""
        if self.type == "VISUAL":
            return self.array_shape[-1]
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class PolicyConfig:
    """What every policy's configuration says."""

    type: str
    input_features: Mapping[str, Feature]
    output_features: Mapping[str, Feature]
    normalization_mapping: Mapping[str, str]
    """Feature type → mode, a key of :data:`REQUIRED_STATS`; a type that is absent is not normalised."""
    chunk_size: int
    """H: actions in a chunk, the first of them meant for the newest observation's moment."""
    n_action_steps: int
    """Actions executed before the next chunk takes over, 1 to H."""
    n_obs_steps: int
    """Observations that a chunk is made from, one period apart; the last of them is the newest."""
    raw: Mapping[str, Any]
    """The whole document."""

    @property
    def action_dim(self) -> int:
        """A: numbers in an action."""
        return self.output_features[ACTION].shape[0]

    def normalized_features(self) -> dict[str, tuple[Feature, str]]:
        """Return feature → (feature, mode) for every input and output that is normalised."""
        result = {}
        for key, feature in {**self.input_features, **self.output_features}.items():
            mode = self.normalization_mapping.get(feature.type, "IDENTITY")
            if REQUIRED_STATS[mode]:
                result[key] = (feature, mode)
        return result


def load_config(bundle_dir: PathLike) -> PolicyConfig:
    """Read ``config.json`` of a folder.

    Raises:
        FileError, JsonError: it is missing, unreadable or no JSON object.
        ConfigError: a key is missing or has no usable value.
    """
    path = Path(bundle_dir) / CONFIG_NAME
    return parse_config(load_object(path), path)


def parse_config(document: Mapping[str, Any], path: PathLike) -> PolicyConfig:
    """Check a parsed ``config.json``; ``path`` is for messages only.

    Raises:
        ConfigError: ``CONFIG_FIELD_MISSING`` or ``CONFIG_FIELD_INVALID``.
    """
    return _Reader(document, path).config()


def _is_shape(value: Any, dimensions: int) -> TypeGuard[list[int]]:
    sized = isinstance(value, list) and 0 < len(value) <= dimensions
    return sized and all(is_int(n) and 0 < n < 1 << 31 for n in value)


class _Reader:
    def __init__(self, document: Mapping[str, Any], path: PathLike) -> None:
        self._document = document
        self._path = path

    def config(self) -> PolicyConfig:
        kind = self._get("type")
        if not isinstance(kind, str) or not kind:
            self._invalid("type", "must be a policy type's name")
        inputs, outputs = self._features("input_features"), self._features("output_features")
        if not inputs:
            self._invalid("input_features", "a policy without inputs")
        action = outputs.get(ACTION)
        if action is None or len(action.shape) != 1:
            self._invalid("output_features", f"must have {ACTION!r} with a shape of one dimension")
        if inputs.keys() & outputs.keys():
            self._invalid("input_features", "a feature is both input and output")
        n_obs_steps = self._count("n_obs_steps") if "n_obs_steps" in self._document else 1
        executed = "n_action_steps" in self._document or _VQBET_CHUNK not in self._document
        n_action_steps = self._count("n_action_steps" if executed else _VQBET_CHUNK)
        chunk_size = self._chunk_size(n_obs_steps, n_action_steps)
        if n_action_steps > chunk_size:
            self._invalid("n_action_steps", f"{n_action_steps} exceeds chunk_size, {chunk_size}")
        return PolicyConfig(
            type=kind,
            input_features=inputs,
            output_features=outputs,
            normalization_mapping=self._normalization(),
            chunk_size=chunk_size,
            n_action_steps=n_action_steps,
            n_obs_steps=n_obs_steps,
            raw=MappingProxyType(dict(self._document)),
        )

    def _chunk_size(self, n_obs_steps: int, n_action_steps: int) -> int:
        """LeRobot's ``chunk_size``; of diffusion's ``horizon`` what lies after the newest observation; else all are executed."""
        if "chunk_size" in self._document:
            return self._count("chunk_size")
        if _VQBET_CHUNK in self._document:
            return self._count(_VQBET_CHUNK)
        if "horizon" not in self._document:
            return n_action_steps
        horizon = self._count("horizon") - n_obs_steps + 1  # it begins at the oldest observation
        if horizon < 1:
            self._invalid("horizon", f"no action is left after {n_obs_steps} observations")
        return horizon

    def _features(self, key: str) -> Mapping[str, Feature]:
        value = self._get(key)
        if not isinstance(value, dict):
            self._invalid(key, "must be an object of features")
        features = {}
        for name, item in value.items():
            if not 0 < len(name) <= limits.NAME_CHARS or not name.isprintable():
                self._invalid(key, f"feature name {name[:80]!r} is empty, too long or not printable")
            if not isinstance(item, dict) or not isinstance(item.get("type"), str):
                self._invalid(key, f"{name!r} must have a type and a shape")
            shape = item.get("shape")
            if not _is_shape(shape, limits.DIMENSIONS):
                self._invalid(key, f"the shape of {name!r} must be a list of integers > 0")
            features[name] = Feature(item["type"], tuple(shape))
        return MappingProxyType(features)

    def _normalization(self) -> Mapping[str, str]:
        value = self._get("normalization_mapping")
        if not isinstance(value, dict):
            self._invalid("normalization_mapping", "must be an object")
        for kind, mode in value.items():
            if not isinstance(mode, str) or mode not in REQUIRED_STATS:
                self._invalid("normalization_mapping", f"{kind}: {mode!r} must be one of {', '.join(REQUIRED_STATS)}")
        return MappingProxyType(value)

    def _count(self, key: str) -> int:
        value = self._get(key)
        if not is_int(value) or not 0 < value <= 100_000:
            self._invalid(key, "must be an integer from 1 to 100000")
        return value

    def _get(self, key: str) -> Any:
        if key not in self._document:
            text = f"{key!r} is missing; required are {', '.join(REQUIRED_KEYS)}"
            raise ConfigError("CONFIG_FIELD_MISSING", self._path, text)
        return self._document[key]

    def _invalid(self, key: str, reason: str) -> NoReturn:
        raise ConfigError("CONFIG_FIELD_INVALID", self._path, f"{key}: {reason}")
