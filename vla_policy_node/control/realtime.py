# SPDX-License-Identifier: Apache-2.0
"""What a process can do for punctual ticks, as far as the machine lets it."""

from __future__ import annotations

import ctypes
import gc
import os
import resource

_MCL_CURRENT, _MCL_FUTURE = 1, 2


def freeze_garbage_collector() -> None:
    """No collection from now on; what lives stays where it is."""
    gc.collect()
    gc.freeze()
    gc.disable()


def take_fifo(priority: int) -> int:
    """Put the calling thread, and no other, under SCHED_FIFO. Return the priority, 0 if that is not allowed.

    Threads started later inherit it: call this after DDS has started its own.
    """
    try:
        reset_on_fork = getattr(os, "SCHED_RESET_ON_FORK", 0)
        os.sched_setscheduler(0, os.SCHED_FIFO | reset_on_fork, os.sched_param(priority))
    except (OSError, ValueError):
        return 0
    return priority


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
