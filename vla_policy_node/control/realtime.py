# SPDX-License-Identifier: Apache-2.0
"""What a process can do for punctual ticks, as far as the machine lets it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import resource
import threading
from pathlib import Path

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_CPUS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_CPU_LIMIT = 4096


def freeze_garbage_collector() -> None:
    """No collection from now on; what lives stays where it is."""
    gc.collect()
    gc.freeze()
    gc.disable()


def take_fifo(priority: int) -> int:
    """Put the calling thread, and no other, under SCHED_FIFO. Return the priority, 0 if that is not allowed."""
    try:
        reset_on_fork = getattr(os, "SCHED_RESET_ON_FORK", 0)
        os.sched_setscheduler(0, os.SCHED_FIFO | reset_on_fork, os.sched_param(priority))
    except (OSError, ValueError):
        return 0
    return priority


def take_fifo_for_process(priority: int) -> int:
    """Put the calling thread under SCHED_FIFO, and every other thread of the process just below it.

    The others hold what the caller needs: the interpreter's lock, and DDS's locks on its writers and its graph. While such a
    thread is an ordinary one, any busy process of the machine can push it aside, and the caller waits for that process.
    Threads that these start later inherit the policy; call this when the caller starts none any more. Linux has no priority
    below 1: there the others share the caller's.

    Returns:
        The priority; 0 if that is not allowed, and nothing has changed then.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, ValueError):
        return 0
    lifted = {threading.get_native_id()}
    while new := {int(entry.name) for entry in Path("/proc/self/task").iterdir()} - lifted:
        for thread in new:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(max(1, priority - 1)))
        lifted |= new
    return priority


def parse_cpus(text: str) -> set[int]:
    """Return the processors that a list such as ``2,6-7`` names; none for an empty text. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        match = _CPUS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < _CPU_LIMIT:
            raise ValueError(f"control_cpus {text!r} is no list of processors below {_CPU_LIMIT} such as 3 or 2,6-7")
        found |= set(range(first, last + 1))
    return found


def take_cpus(cpus: set[int]) -> bool:
    """Let this process, with the threads it starts from now on, run on these processors only. Return whether that was allowed."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return False
    return True


def lock_memory() -> bool:
    """Keep the process's memory in RAM. Return whether that was allowed.

    Future memory is locked too only without a limit: under one, later mappings would fail.
    """
    unlimited = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.mlockall(_MCL_CURRENT | (_MCL_FUTURE if unlimited else 0)) == 0)
    except (OSError, AttributeError):
        return False
