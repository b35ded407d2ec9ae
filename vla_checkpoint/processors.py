# SPDX-License-Identifier: Apache-2.0
"""Statistics in LeRobot >= 0.4's processor files.

``policy_preprocessor.json`` and ``policy_postprocessor.json`` are ``{"name", "steps": [{"registry_name" | "class", "config",
"state_file"?}]}``. The state files of the (un)normaliser steps hold tensors such as ``action.mean``. Their names carry a step
number that differs by policy and release, so they are found by ``state_file`` and never by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.config import PolicyConfig
from vla_checkpoint.errors import StatsError
from vla_checkpoint.header import read_header
from vla_checkpoint.limits import DEFAULT_LIMITS, Limits
from vla_checkpoint.strict_json import load_object
from vla_checkpoint.tensors import numpy_dtype, read_array

PREPROCESSOR_NAME = "policy_preprocessor.json"
POSTPROCESSOR_NAME = "policy_postprocessor.json"
PROCESSOR_NAMES = (PREPROCESSOR_NAME, POSTPROCESSOR_NAME)

_FloatStats = dict[str, dict[str, npt.NDArray[np.float64]]]


def read_processor_stats(
    folder: Path, names: Collection[str], config: PolicyConfig, limits: Limits = DEFAULT_LIMITS
) -> _FloatStats:
    """Return the statistics that the processors use: inputs from the pre-, outputs from the postprocessor.

    Args:
        folder: the bundle.
        names: relative paths of its files.
        config: says which features are inputs and outputs.
        limits: bounds on what is read.

    Raises:
        FileError, JsonError, HeaderError: a file is unreadable or malformed.
        StatsError: a processor file is not the format above, or a state file is not there.
    """
    result: _FloatStats = {}
    for processor, features in (
        (PREPROCESSOR_NAME, config.input_features),
        (POSTPROCESSOR_NAME, config.output_features),
    ):
        if processor not in names:
            continue
        for state_file in _state_files(folder / processor, names, limits):
            for feature, entry in _read_state(folder / state_file, limits).items():
                if feature in features:
                    result.setdefault(feature, {}).update(entry)
    return result


def _state_files(path: Path, names: Collection[str], limits: Limits) -> Iterator[str]:
    steps = load_object(path, limits=limits).get("steps")
    if not isinstance(steps, list):
        raise StatsError("STATS_FORMAT", path, "'steps' must be a list")
    for i, step in enumerate(steps):
        if not isinstance(step, dict):
            raise StatsError("STATS_FORMAT", path, f"steps[{i}] must be an object")
        state_file = step.get("state_file")
        if state_file is None:
            continue
        if not isinstance(state_file, str) or state_file not in names:
            raise StatsError("STATS_STATE_FILE", path, f"steps[{i}]: state file {str(state_file)[:80]!r} is not there")
        if _is_normalizer(step):
            yield state_file


def _is_normalizer(step: dict[str, Any]) -> bool:
    name = str(step.get("registry_name") or step.get("class") or "").rpartition(".")[2].lower().replace("_", "")
    return name.removesuffix("step").endswith("normalizerprocessor")


def _read_state(path: Path, limits: Limits) -> _FloatStats:
    result: _FloatStats = {}
    for key, info in read_header(path, limits).tensors.items():
        feature, _, name = key.rpartition(".")
        if info.dtype == "C64" or (numpy_dtype(info.dtype) is None and info.dtype != "BF16"):
            raise StatsError("STATS_FORMAT", path, f"{key!r} is {info.dtype}")
        result.setdefault(feature, {})[name] = read_array(path, info).astype(np.float64).reshape(-1)
    return result
