# SPDX-License-Identifier: Apache-2.0
"""The folder of the episodes: what it keeps longest, what was uploaded, and what a killed recorder left."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_learning.episodes.format import METADATA
from vla_recorder.episodes.format import BEGUN, STEP
from vla_recorder.mcap_file import Item, note_of
from vla_recorder.records import Note
from vla_recorder.shelf import Rank, Shelf

LOG = logging.getLogger("vla_recorder")

UPLOADED, REFUSED = ".uploaded", ".refused"
"""Added to an episode's name: an empty file beside it, or one that says why."""


@dataclass(frozen=True, order=True)
class Kept:
    """A whole episode."""

    rank: Rank  # what has less goes first
    path: Path
    size: int  # [bytes]
    plain: bool  # it has succeeded without anybody's help: the least that there is to learn from
    uploaded: bool
    refused: bool  # by the server, for good


class EpisodeShelf(Shelf):
    """Plain successes go before failures and corrections, uploaded ones before others, the oldest first."""

    names = re.compile(r"\d{8}T\d{6}Z_[A-Za-z0-9._-]+\.mcap")

    def __init__(self, folder: Path, max_bytes: int, min_free_bytes: int) -> None:
        super().__init__(folder, max_bytes, min_free_bytes)
        self._plain: dict[Path, bool] = {}

    def recover(self) -> None:
        """See Shelf; marks without their files are removed too."""
        super().recover()
        for mark in (UPLOADED, REFUSED):
            for path in self.folder.glob(f"*.mcap{mark}"):
                if self.names.fullmatch(path.stem) and not path.with_suffix("").exists():
                    path.unlink(missing_ok=True)

    def _is_plain_success(self, path: Path) -> bool:
        plain = self._plain.get(path)
        if plain is None:
            note = note_of(path, METADATA) or {}
            plain = self._plain[path] = note.get("success") == "true" and note.get("intervention") != "true"
        return plain

    def kept(self) -> list[Kept]:
        """Return the whole episodes, in the order in which they go."""
        try:
            names = {path.name for path in self.folder.iterdir()}
        except FileNotFoundError:
            return []
        found = []
        for name in filter(self.names.fullmatch, names):
            path = self.folder / name
            with contextlib.suppress(FileNotFoundError):  # a person may remove one at any moment
                status = path.stat()
                plain, uploaded = self._is_plain_success(path), name + UPLOADED in names
                rank = (int(not plain), int(not uploaded), status.st_mtime_ns)
                found.append(Kept(rank, path, status.st_size, plain, uploaded, name + REFUSED in names))
        return sorted(found)

    def mark(self, path: Path, mark: str, why: str = "") -> None:
        """Remember for good that an episode was uploaded, or refused. Raises OSError."""
        path.with_name(path.name + mark).write_text(why)

    def _sized(self) -> list[tuple[Rank, Path, int]]:
        return [(episode.rank, episode.path, episode.size) for episode in self.kept()]

    def _remove(self, path: Path) -> None:
        super()._remove(path)
        self._plain.pop(path, None)
        for mark in (UPLOADED, REFUSED):
            path.with_name(path.name + mark).unlink(missing_ok=True)

    def _mend(self, items: Iterator[Item]) -> Iterator[Item]:
        """Close an episode that was interrupted: nobody knows how it would have ended. One without a step yields nothing."""
        begun: dict[str, str] = {}
        waiting: list[Item] = []
        times: list[int] = []
        intervention = False
        for item in items:
            if isinstance(item, Note) and item.name == METADATA:
                yield from (*waiting, item)
                return
            if isinstance(item, Note):
                begun = item.values if item.name == BEGUN else begun
            elif item.topic.name == STEP.name:
                times.append(item.published_ns)
                intervention |= bool(json.loads(item.data)["intervention"])
            waiting.append(item)
            if times:
                yield from waiting
                waiting = []
        if times:
            values = {**begun, "success": "", "intervention": str(intervention).lower()}
            yield Note(METADATA, {**values, "duration_s": f"{(times[-1] - times[0]) / 1e9:.3f}"})
