# SPDX-License-Identifier: Apache-2.0
"""Finds damage before it is needed: reads every version on disk at the start, and again on a slow schedule.

In a thread of its own, at the lowest priority and at a low rate: the engine's thread keeps the lease alive, and the control loop
must not notice.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vla_checkpoint import CancelledCheckError
from vla_ota_manager.errors import CancelledError, StoreError
from vla_ota_manager.fetch.pace import Bandwidth
from vla_ota_manager.records import check_version
from vla_ota_manager.store.damage import find_damage
from vla_ota_manager.store.store import Store

log = logging.getLogger("vla_ota_manager")

_BYTES_S = 32 << 20
_LOWEST_PRIORITY = 19
_STOP_S = 2.0
_TOLD = 3
"""Files of one version that are named."""


class Scrubber:
    """Reads a store's versions until it is stopped.

    Args:
        store: whose versions.
        period_s: from the end of one reading to the next [s]; 0 = none at all.
        on_damage: takes a version and what is wrong with it, when that is new; called from the scrubber's thread.
    """

    def __init__(self, store: Store, period_s: float, on_damage: Callable[[str, str], None]) -> None:
        self._store, self._period_s, self._on_damage = store, period_s, on_damage
        self._found: dict[Path, tuple[int, str]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def damaged(self) -> dict[Path, str]:
        """Folders that were found damaged and have not been repaired or removed since, and what is wrong (thread-safe)."""
        found = list(self._found.items())
        return {path: damage for path, (changes, damage) in found if damage and self._store.changes[path] == changes}

    def start(self) -> None:
        """Begin, with a first reading at once."""
        if self._period_s:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="vla_ota_scrub", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End. It only reads, so a disk that answers late is not waited for."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        with suppress(CancelledCheckError, CancelledError):
            while True:
                folders = list(filter(is_version, self._store.folders()))
                self._found = {folder: self._found[folder] for folder in folders if folder in self._found}
                for folder in folders:
                    self._read(folder)
                if self._stopping.wait(self._period_s):
                    return

    def _read(self, folder: Path) -> None:
        changes, known = self._store.changes[folder], self.damaged.get(folder)
        bandwidth, stopped = Bandwidth(_BYTES_S), self._stopping.is_set
        problems = find_damage(folder, progress=lambda count: bandwidth.spend(count, stopped), cancel=stopped)
        damage = "; ".join(itertools.islice(problems, _TOLD))
        if not os.path.lexists(folder):  # removed meanwhile
            return
        self._found[folder] = (changes, damage)
        if self.damaged.get(folder, known) != known:
            self._on_damage(folder.name, damage)


def is_version(folder: Path) -> bool:
    """Whether a folder has a version's name; others are not ours."""
    try:
        check_version(folder.name)
    except StoreError:
        return False
    return True
