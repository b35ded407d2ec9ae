# SPDX-License-Identifier: Apache-2.0
"""Reads what a LeRobot dataset says of its robot: ``meta/info.json``, and the ranges in ``meta/stats.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.strict_json import is_int, is_number, load_object
from vla_contract.errors import DraftError
from vla_contract.seen import DatasetSeen, Feature
from vla_policy_node.contract.strict_yaml import MAX_ITEMS

_STATE, _ACTION = "observation.state", "action"


def read_dataset(folder: str) -> DatasetSeen:
    """Read a dataset's folder. Raises :class:`DraftError` DATASET_INVALID."""
    meta = Path(folder) / "meta"
    info = _load(meta / "info.json")
    ranges = _load(meta / "stats.json") if (meta / "stats.json").is_file() else {}
    features = info.get("features")
    fps, robot_type = info.get("fps"), info.get("robot_type")
    if not isinstance(features, dict) or not is_number(fps) or fps <= 0:
        raise DraftError(
            "DATASET_INVALID",
            f"{meta / 'info.json'}: no `features`, or no `fps` above 0, as a LeRobot dataset has them",
        )
    cameras, numbers, action = [], [], None
    for key, value in features.items():
        if not isinstance(value, dict):
            raise DraftError("DATASET_INVALID", f"{meta / 'info.json'}: features.{key} is not an object")
        if value.get("dtype") in ("video", "image"):
            cameras.append(_camera(key, value, meta))
        elif key == _ACTION:
            action = _numbers(key, value, ranges.get(key), meta)
        elif key.startswith("observation."):
            numbers.append(_numbers(key, value, ranges.get(key), meta))
    if action is None:
        raise DraftError("DATASET_INVALID", f"{meta / 'info.json'}: there is no feature {_ACTION!r}")
    numbers.sort(key=lambda feature: feature.key != _STATE)
    name = robot_type if isinstance(robot_type, str) and robot_type != "unknown" else ""
    return DatasetSeen(name, float(fps), tuple(cameras), tuple(numbers), action)


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_object(path)
    except CheckpointError as e:
        raise DraftError("DATASET_INVALID", str(e)) from e


def _shape(key: str, value: dict[str, Any], length: int, meta: Path) -> tuple[int, ...]:
    shape = value.get("shape")
    if not isinstance(shape, list) or len(shape) != length or not all(is_int(n) and n > 0 for n in shape):
        text = f"features.{key}.shape must have {length} number{'s' * (length > 1)} above 0, is {shape}"
        raise DraftError("DATASET_INVALID", f"{meta / 'info.json'}: {text}")
    return tuple(shape)


def _camera(key: str, value: dict[str, Any], meta: Path) -> Feature:
    """LeRobot stores pictures height, width, channels; ``names`` says so, or says that it is the other way round."""
    shape, names = _shape(key, value, 3, meta), value.get("names")
    if isinstance(names, list) and names[:1] in (["channel"], ["channels"]):
        shape = (*shape[1:], shape[0])
    return Feature(key, shape)


def _numbers(key: str, value: dict[str, Any], ranges: Any, meta: Path) -> Feature:
    count = _shape(key, value, 1, meta)[0]
    if count > MAX_ITEMS:
        text = f"features.{key} has {count} numbers, a contract at most {MAX_ITEMS}"
        raise DraftError("DATASET_INVALID", f"{meta / 'info.json'}: {text}")
    names = value.get("names")
    if isinstance(names, dict) and len(names) == 1:  # up to 2.0: {"motors": [...]}
        names = next(iter(names.values()))
    known = isinstance(names, list) and len(names) == count and all(isinstance(n, str) and n for n in names)
    low, high = (_row(ranges, bound, count) for bound in ("min", "max"))
    return Feature(key, (count,), tuple(names) if known and names is not None else (), low, high)


def _row(ranges: Any, bound: str, count: int) -> tuple[float, ...]:
    row = ranges.get(bound) if isinstance(ranges, dict) else None
    fits = isinstance(row, list) and len(row) == count and all(is_number(value) for value in row)
    return tuple(map(float, row)) if fits and row is not None else ()
