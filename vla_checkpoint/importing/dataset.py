# SPDX-License-Identifier: Apache-2.0
"""What a LeRobot data set says of the robot it was recorded on: ``meta/info.json``.

``{"fps": 30, "robot_type": "so101_follower", "features": {"action": {"shape": [6], "names": ["shoulder_pan.pos", …]}, …}}``;
older releases write ``names`` as an object of one list, ``{"motors": […]}``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_checkpoint.config import ACTION
from vla_checkpoint.errors import ImportFolderError
from vla_checkpoint.strict_json import is_number, load_object

_INFO = Path("meta", "info.json")


@dataclass(frozen=True)
class Dataset:
    """The part of a data set's ``meta/info.json`` that a bundle needs."""

    path: Path
    rate_hz: float
    robot_type: str
    """Empty: not said."""
    action: tuple[str, ...]
    """Names of an action's numbers, in order; empty: not said."""


def read_dataset(folder: Path) -> Dataset:
    """Read ``meta/info.json``.

    Raises:
        FileError, JsonError: it is missing, unreadable or no JSON object.
        ImportFolderError: ``IMPORT_DATASET``: it is not LeRobot's.
    """
    path = folder / _INFO
    info = load_object(path)
    rate = info.get("fps")
    if not is_number(rate) or not 0 < rate < 1e6:
        raise ImportFolderError("IMPORT_DATASET", path, "fps must be a number above 0 [Hz]")
    features = info.get("features")
    action = features.get(ACTION) if isinstance(features, dict) else None
    if not isinstance(action, dict):
        raise ImportFolderError("IMPORT_DATASET", path, f"features must have {ACTION!r}")
    robot_type = info.get("robot_type")
    return Dataset(
        path, float(rate), robot_type if isinstance(robot_type, str) else "", _names(action.get("names"), path)
    )


def find_dataset(name: str, root: str = "") -> Path | None:
    """Return the local folder of a data set, if there is one.

    Args:
        name: a folder, or ``org/name``, looked up where LeRobot keeps its data sets.
        root: a folder that it was trained from, tried first.
    """
    for places in ([Path(root)] if root else [], _places(name)):
        with contextlib.suppress(OSError, ValueError):  # a name that no folder can have
            for folder in places:
                if (folder / _INFO).is_file():
                    return folder
    return None


def _places(name: str) -> Iterator[Path]:
    if not name:
        return
    yield Path(name)
    if not Path(name).is_absolute():
        home = _lerobot_home()
        yield home / name
        yield from sorted((home / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots").glob("*"))


def _lerobot_home() -> Path:
    hugging_face = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_LEROBOT_HOME") or Path(hugging_face) / "lerobot").expanduser()


def _names(value: Any, path: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        value = [name for names in value.values() for name in (names if isinstance(names, list) else [names])]
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ImportFolderError("IMPORT_DATASET", path, f"features.{ACTION}.names must be a list of names")
    return tuple(value)
