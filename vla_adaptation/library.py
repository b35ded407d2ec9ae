# SPDX-License-Identifier: Apache-2.0
"""The robot's own episodes, by what the last record of each file says; the files are read whole by the training process only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vla_learning.episodes.format import METADATA
from vla_recorder.mcap_file import note_of


@dataclass(frozen=True)
class Own:
    """An episode that shows how a task is done."""

    path: Path
    corrected: bool
    """By an operator; else the policy succeeded by itself."""
    size: int
    """[bytes]"""


class Library:
    """Looks at a folder again and again; what was looked at is remembered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, bool | None] = {}

    def own(self) -> list[Own]:
        """Return the successes and the corrected episodes, the oldest first."""
        try:
            with os.scandir(self._folder) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".mcap")}
        except OSError:  # there is none yet, or one has made room for others this moment
            return []
        self._known = {name: self._known[name] if name in self._known else _kind(self._folder / name) for name in sizes}
        return [
            Own(self._folder / name, corrected, sizes[name])
            for name, corrected in sorted(self._known.items())
            if corrected is not None
        ]


def _kind(path: Path) -> bool | None:
    """Whether an operator corrected it; ``None``: nothing is shown in it."""
    note = note_of(path, METADATA) or {}
    if note.get("intervention") == "true":
        return True
    return False if note.get("success") == "true" else None


def keep(paths: Iterable[Path], folder: Path) -> None:
    """Give the files a second name, or on another file system a copy. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except FileNotFoundError:  # the recorder has made room for others
            continue
        except OSError:
            shutil.copyfile(path, folder / path.name)
