# SPDX-License-Identifier: Apache-2.0
"""ROS domains that nobody else on this machine uses, and the Fast DDS files that killed processes leave in /dev/shm."""

from __future__ import annotations

import fcntl
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TEST_DOMAINS = range(1, 80)
DEMO_DOMAINS = range(80, 102)  # above 101 a domain's ports meet those that the system gives to outgoing connections
_SHARED_MEMORY = Path("/dev/shm")
_STEM = re.compile(r"fastrtps_(?:port\d+|[0-9a-f]+)")
_YOUNG_S = 30.0


class NoDomainError(RuntimeError):
    """Every domain is taken."""


@contextmanager
def claim_domain(domains: Sequence[int] = TEST_DOMAINS) -> Iterator[int]:
    """Hold a ROS_DOMAIN_ID; a lock on a file gives it back even if the process is killed. Raises NoDomainError."""
    folder = Path(tempfile.gettempdir()) / f"vla_ota_domains-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in random.sample(domains, len(domains)):  # other users of this machine have locks of their own
        with (folder / str(domain)).open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise NoDomainError(f"ROS domains {domains[0]} to {domains[-1]} are all in use: end what runs in them")


def stems_of(pid: int) -> set[str]:
    """Return what the shared-memory files that a process maps or has open are named after; nothing if it has gone."""
    process = Path(f"/proc/{pid}")
    try:
        names = [(process / "maps").read_text()]
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return set()
    for descriptor in descriptors:
        try:
            names.append(str(descriptor.readlink()))
        except OSError:
            continue
    return {stem for name in names for stem in _STEM.findall(name)}


def remove_orphans(stems: set[str] | None = None) -> None:
    """Unlink the files of every segment and port of ``stems`` that no process uses; None: of whatever is older than 30 s.

    A segment's ``_el`` file is open but not mapped, its ``sem.…_mutex`` neither: one of a stem in use keeps all of it, or other
    processes on this machine lose their messages. Young files may belong to a process that is just opening them.
    """
    if stems == set():
        return
    used = {
        stem for process in Path("/proc").iterdir() if process.name.isdigit() for stem in stems_of(int(process.name))
    }
    for path in _SHARED_MEMORY.glob("*fastrtps_*"):
        found = _STEM.search(path.name)
        if found is None or found[0] in used:
            continue
        try:
            wanted = found[0] in stems if stems is not None else time.time() - path.stat().st_mtime >= _YOUNG_S
        except FileNotFoundError:
            continue
        if wanted:
            path.unlink(missing_ok=True)
