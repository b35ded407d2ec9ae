# SPDX-License-Identifier: Apache-2.0
"""What LeRobot >= 0.4's processor files do to a policy's inputs and outputs, and the statistics that they do it with.

``policy_preprocessor.json`` and ``policy_postprocessor.json`` are ``{"name", "steps": [{"registry_name" | "class", "config",
"state_file"?}]}``. The normaliser's ``config`` is ``{"eps", "features": {key: {"type", "shape"}}, "norm_map": {type: mode},
"normalize_observation_keys"?: [key]}``; its state file holds tensors such as ``action.mean``. That file's name carries a
step number that differs by policy and release, so it is found by ``state_file`` and never by name.

A step is found by ``registry_name`` among LeRobot's own, or else by ``class``: LeRobot imports whatever module that names. So
only LeRobot's own classes are accepted there.

LeRobot normalises by these files alone and passes what they leave out through unchanged, whatever ``config.json`` says. So they
have to say the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.config import Feature, PolicyConfig
from vla_checkpoint.errors import StatsError
from vla_checkpoint.files import PathLike
from vla_checkpoint.header import read_header
from vla_checkpoint.strict_json import load_object
from vla_checkpoint.tensors import numpy_dtype, read_array

PREPROCESSOR_NAME = "policy_preprocessor.json"
POSTPROCESSOR_NAME = "policy_postprocessor.json"
PROCESSOR_NAMES = (PREPROCESSOR_NAME, POSTPROCESSOR_NAME)

_EPS = 1e-8
"""What LeRobot adds to a standard deviation, with every policy that it has."""

_OWN_CLASS = re.compile(r"lerobot\.(?:processor|policies)\.[A-Za-z0-9_.]*Processor(?:Step)?")

FloatStats = dict[str, dict[str, npt.NDArray[np.float64]]]


def processor_of(feature: str, config: PolicyConfig) -> str:
    """Return which processor file normalises a feature: inputs the pre-, outputs the postprocessor."""
    return PREPROCESSOR_NAME if feature in config.input_features else POSTPROCESSOR_NAME


def read_processor_stats(folder: Path, names: Collection[str], config: PolicyConfig) -> FloatStats:
    """Check that the processors normalise what ``config`` says as it says, and return the statistics that they use.

    Args:
        folder: the bundle.
        names: relative paths of its files.
        config: says which features are inputs and outputs, and how they are normalised.

    Returns:
        Those of inputs from the pre-, those of outputs from the postprocessor; nothing for a processor that is not there.

    Raises:
        FileError, JsonError, HeaderError: a file is unreadable or malformed.
        StatsError: a processor file is not the format above, contradicts ``config``, or lacks its state file.
    """
    result: FloatStats = {}
    states: list[tuple[Path, FloatStats]] = []
    for processor, features, role in (
        (PREPROCESSOR_NAME, config.input_features, "normalizer"),
        (POSTPROCESSOR_NAME, config.output_features, "unnormalizer"),
    ):
        if processor not in names:
            continue
        path = folder / processor
        step = _find_step(path, role, names)
        if step is None:  # that its statistics are missing is said by who needs them
            continue
        for key, feature in features.items():
            step.check(key, feature, config.normalization_mapping.get(feature.type, "IDENTITY"))
        if step.state_file is not None:
            state = _read_state(folder / step.state_file)
            states.append((folder / step.state_file, state))
            result.update({key: entry for key, entry in state.items() if key in features})
    if len(states) == 2:
        _check_same(*states)
    return result


def _check_same(before: tuple[Path, FloatStats], after: tuple[Path, FloatStats]) -> None:
    """LeRobot writes all statistics of a data set into both: where they differ, one is of another training."""
    (_, pre), (path, post) = before, after
    for key, entry in post.items():
        for name, array in entry.items():
            other = pre.get(key, {}).get(name, array)
            if array.shape == other.shape and not np.allclose(array, other, rtol=1e-4, atol=1e-6, equal_nan=True):
                reason = f"{key}.{name} is not that of {before[0].name}: put back the files that were saved together"
                raise StatsError("STATS_CONFLICT", path, reason)


@dataclass(frozen=True)
class _Step:
    """The step of a processor that (un)normalises."""

    path: PathLike
    where: str
    features: Mapping[str, Any]
    norm_map: Mapping[str, Any]
    keys: Collection[Any] | None
    state_file: str | None

    def check(self, key: str, feature: Feature, mode: str) -> None:
        """Refuse the step unless it treats a feature as the configuration does."""
        lacking = "features" if key not in self.features else ""
        if not lacking and self.keys is not None and key not in self.keys:
            lacking = "normalize_observation_keys"
        if lacking:
            if mode != "IDENTITY":
                self._refuse(f"{lacking} lacks {key!r}, which config.json normalises by {mode}")
            return
        entry = self.features[key]
        if entry != {"type": feature.type, "shape": list(feature.shape)}:
            self._refuse(
                f"features has {key!r} as {str(entry)[:200]}, config.json as {feature.type} {list(feature.shape)}"
            )
        found = self.norm_map.get(feature.type, "IDENTITY")
        if found != mode:
            self._refuse(f"norm_map has {str(found)[:200]} for {feature.type} ({key!r}), config.json has {mode}")

    def _refuse(self, reason: str) -> None:
        raise StatsError("STATS_PROCESSOR_MISMATCH", self.path, f"{self.where}: {reason}")


def _find_step(path: Path, role: str, names: Collection[str]) -> _Step | None:
    """Return the one step that (un)normalises, or ``None``."""
    steps = load_object(path).get("steps")
    if not isinstance(steps, list):
        raise StatsError("STATS_FORMAT", path, "'steps' must be a list")
    found: _Step | None = None
    for i, step in enumerate(steps):
        if not isinstance(step, dict):
            raise StatsError("STATS_FORMAT", path, f"steps[{i}] must be an object")
        state_file = step.get("state_file")
        if state_file is not None and (not isinstance(state_file, str) or state_file not in names):
            raise StatsError("STATS_STATE_FILE", path, f"steps[{i}]: state file {str(state_file)[:80]!r} is not there")
        if "registry_name" not in step and not _OWN_CLASS.fullmatch(str(step.get("class"))):
            name = str(step.get("class"))[:80]
            reason = f"steps[{i}]: class {name!r} is none of LeRobot's processors; LeRobot would import and run it"
            raise StatsError("PROCESSOR_CLASS", path, reason)
        its_role = _role(step)
        if its_role is None:
            continue
        if its_role != role or found is not None:
            reason = f"steps[{i}]: {'a second ' * (its_role == role)}{its_role}, where one {role} belongs"
            raise StatsError("STATS_PROCESSOR_MISMATCH", path, reason)
        found = _parse_step(path, f"steps[{i}]", step, role)
    return found


def _role(step: Mapping[str, Any]) -> str | None:
    name = str(step.get("registry_name") or step.get("class") or "").rpartition(".")[2].lower().replace("_", "")
    name = name.removesuffix("step")
    if name.endswith("unnormalizerprocessor"):
        return "unnormalizer"
    return "normalizer" if name.endswith("normalizerprocessor") else None


def _parse_step(path: Path, where: str, step: Mapping[str, Any], role: str) -> _Step:
    config = step.get("config")
    fields = config if isinstance(config, dict) else {}
    features, norm_map = fields.get("features"), fields.get("norm_map")
    keys = fields.get("normalize_observation_keys") if role == "normalizer" else None  # actions go by norm_map alone
    if not (isinstance(features, dict) and isinstance(norm_map, dict) and (keys is None or isinstance(keys, list))):
        raise StatsError(
            "STATS_FORMAT", path, f"{where}: config must have features and norm_map, as LeRobot writes them"
        )
    if fields.get("eps", _EPS) != _EPS:
        reason = f"{where}: eps is {str(fields['eps'])[:80]}, policies are trained with LeRobot's {_EPS:g}"
        raise StatsError("STATS_PROCESSOR_MISMATCH", path, reason)
    if fields.get("stats"):
        reason = f"{where}: stats in its config would be used in place of its state file"
        raise StatsError("STATS_PROCESSOR_MISMATCH", path, reason)
    return _Step(path, where, features, norm_map, keys, step.get("state_file"))


def _read_state(path: Path) -> FloatStats:
    result: FloatStats = {}
    for key, info in read_header(path).tensors.items():
        feature, _, name = key.rpartition(".")
        if info.dtype == "C64" or (numpy_dtype(info.dtype) is None and info.dtype != "BF16"):
            raise StatsError("STATS_FORMAT", path, f"{key!r} is {info.dtype}")
        result.setdefault(feature, {})[name] = read_array(path, info).astype(np.float64)
    return result
