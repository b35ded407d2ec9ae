# SPDX-License-Identifier: Apache-2.0
"""The weights' arenas, kept by the node for the next generation: pages that were touched once are filled ten times faster."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from vla_policy_node.worker.api import PrepareError

_PAGE = os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Return how much memory can be taken without swapping: the kernel's MemAvailable, or what a cgroup leaves, if less."""
    available = _meminfo("MemAvailable")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return available


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/meminfo has no {key}")


class WeightArena:
    """One memfd for the weights of one full bundle, or for those that an adapter changes."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("vla_ota_weights", os.MFD_CLOEXEC)
        self.users = 0
        self.holds = ""
        """Digest of the full bundle whose weights are in it, complete and checked; empty: none are."""

    @property
    def size(self) -> int:
        """Bytes it holds."""
        return os.fstat(self.fd).st_size


class WeightArenas:
    """One for each generation that may be in memory at a time, and one for the base of each, which adapters share."""

    def __init__(self, count: int, reserve_bytes: int) -> None:
        self._arenas = [WeightArena() for _ in range(2 * count)]  # an empty one takes no memory
        self._count, self._taken = count, 0
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()

    def take(self, size: int) -> WeightArena:
        """Return a free arena of at least ``size`` bytes for a generation of its own, the one that needs to grow least.

        Raises :class:`PrepareError` ``NO_FREE_SLOT`` or ``OUT_OF_MEMORY``; memory is checked before it is used, because
        afterwards the kernel would kill any process to get it.
        """
        with self._lock:
            if self._taken >= self._count:
                raise PrepareError("NO_FREE_SLOT", f"{self._count} generations are in memory; release one first")
            arena = self._free(size)
            self._taken += 1
            return arena

    def take_adapter(self, digest: str, base_size: int, size: int) -> tuple[WeightArena, WeightArena]:
        """Return the arena that holds an adapter's base (``holds`` says so) or will, and a free one for what it changes.

        The base comes first: the largest free arena is for it, or holds it already. Raises as :meth:`take`.
        """
        with self._lock:
            base = next((arena for arena in self._arenas if arena.holds == digest), None)
            if base is None:
                base = self._free(base_size)
            else:
                base.users += 1
        try:
            return base, self.take(size)
        except PrepareError:
            with self._lock:
                base.users -= 1
            raise

    def _free(self, size: int) -> WeightArena:
        size = max(_PAGE, size)
        free = [arena for arena in self._arenas if not arena.users]
        if not free:
            raise PrepareError("NO_FREE_SLOT", "every arena is in use; release a generation first")
        arena = min(free, key=lambda a: (max(0, size - a.size), bool(a.holds), a.size))
        growth = max(0, size - arena.size)
        available = available_bytes()
        if growth + self._reserve_bytes > available:
            raise PrepareError(
                "OUT_OF_MEMORY",
                f"the generation needs {growth >> 20} MiB more for its weights, and {self._reserve_bytes >> 20} MiB "
                f"must stay free; {available >> 20} MiB are available",
            )
        if growth:
            os.ftruncate(arena.fd, size)
        arena.users, arena.holds = 1, ""
        return arena

    def holds_two(self) -> bool:
        """Whether two generations are in memory, or another one as large as the one there may and does fit beside it."""
        if self._count < 2:
            return False
        with self._lock:
            used, free = ([a.size for a in self._arenas if bool(a.users) is state] for state in (True, False))
            taken = self._taken
        if taken != 1:
            return taken > 1
        growth = max(0, max(used, default=0) - max(free, default=0))
        return growth + self._reserve_bytes <= available_bytes()

    def let_go(self, *arenas: WeightArena) -> None:
        """Call when a generation's process has unmapped its arenas: it lives without them."""
        with self._lock:
            for arena in arenas:
                arena.users -= 1

    def give_back(self, *arenas: WeightArena) -> None:
        """Call when the process of a generation has ended, with those of its arenas that it had not let go."""
        with self._lock:
            self._taken -= 1
            for arena in arenas:
                arena.users -= 1

    def close(self) -> None:
        """Free the memory (as soon as no process maps it any more)."""
        with self._lock:
            for arena in self._arenas:
                os.close(arena.fd)
            self._arenas = []
