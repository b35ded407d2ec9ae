# SPDX-License-Identifier: Apache-2.0
"""Fast DDS files in /dev/shm that killed processes have left."""

from __future__ import annotations

import re
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_STEM = re.compile(r"fastrtps_(?:port\d+|[0-9a-f]+)")
_YOUNG_S = 30.0


def remove_orphaned_shared_memory() -> None:
    """Unlink the files of every segment and port that no process of this machine maps or holds open.

    A segment's ``_el`` file is open but not mapped, its ``sem.…_mutex`` neither: one of a stem in use keeps all of it, or other
    sessions on this machine lose their messages. Young files may belong to a process that is just opening them.
    """
    used = _stems_in_use()
    for path in SHARED_MEMORY.glob("*fastrtps_*"):
        stem = _STEM.search(path.name)
        try:
            young = time.time() - path.stat().st_mtime < _YOUNG_S
        except FileNotFoundError:
            continue
        if stem is not None and stem[0] not in used and not young:
            path.unlink(missing_ok=True)


def _stems_in_use() -> set[str]:
    stems: set[str] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for name in _files_of(process):
                stems.update(_STEM.findall(name))
    return stems


def _files_of(process: Path) -> list[str]:
    """What a process maps and has open; nothing if it is gone by now."""
    try:
        names = [(process / "maps").read_text()]
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return []
    for descriptor in descriptors:
        try:
            names.append(str(descriptor.readlink()))
        except OSError:
            continue
    return names
