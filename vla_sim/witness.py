# SPDX-License-Identifier: Apache-2.0
"""A witness beside a control loop: a bare process on every processor that only sleeps to absolute deadlines.

A machine can stall, a virtual one for tens of milliseconds and often one of its processors alone, and then even a perfect loop
misses ticks. The witness suffers the same stall at the same moment: a tick that was missed in it is the machine's, every other
one the loop's own. It runs this file alone, without DDS or any package, one step of SCHED_FIFO above the loop, so that nothing
that the loop does can make it late; and it wakes five times in a period of the loop, so that it sees how long a stall was::

    with Witness(rate_hz=50) as witness:
        begin_s = time.monotonic()
        ...
        ours = missed - witness.share(missed, begin_s)

Where SCHED_FIFO is not allowed (``fifo`` is 0), the witness competes with every process, as the loop does. It then also suffers
from the load that the loop's own workers make.
"""

from __future__ import annotations

import gc
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

FIFO_PRIORITY = 10
"""The control loop's by default (``fifo_priority`` of policy_node)."""
WAKE_UPS_A_PERIOD = 5
SLACK_S = 0.1
"""Two processes write down the two sides of one moment: an interval counts from so much earlier [s]."""
_LATE_NS = 1_000_000  # what is less is of no interest
_HEAD = struct.Struct("=qq")  # last wake-up [ns], SCHED_FIFO priority
_RECORD = struct.Struct("=qqq")  # a Late [ns]
_START_S = 20.0


class Late(NamedTuple):
    """A late wake-up [s]: a process was awake at ``awake_s`` and then not before ``woke_s``, which was ``late_s`` too late."""

    awake_s: float
    woke_s: float
    late_s: float


def between(late: Iterable[Late], begin_s: float, end_s: float) -> list[Late]:
    """Return the wake-ups that touch an interval, which begins a little earlier than its stamp says."""
    return [wake_up for wake_up in late if wake_up.woke_s >= begin_s - SLACK_S and wake_up.awake_s <= end_s]


def machines_share(missed: int, period_s: float, late: Iterable[Late]) -> int:
    """Return how many of the ticks that a loop missed are the machine's: at most those that fit into the witness's late wake-ups.

    A stall of length L makes a loop miss ``ceil(L / period)`` ticks if it is longer than a period, else none. What overlaps,
    because several processors stood still, is one stall.
    """
    stalls: list[tuple[float, float]] = []
    for wake_up in sorted(late):
        if stalls and wake_up.awake_s <= stalls[-1][1]:
            stalls[-1] = (stalls[-1][0], max(stalls[-1][1], wake_up.woke_s))
        else:
            stalls.append((wake_up.awake_s, wake_up.woke_s))
    lengths_s = [end_s - begin_s for begin_s, end_s in stalls]
    return min(missed, sum(math.ceil(length_s / period_s) for length_s in lengths_s if length_s > period_s))


class Witness:
    """The processes and what they have written down. Use as a context manager.

    Args:
        rate_hz: the loop's rate [Hz].
        loops_priority: the loop's SCHED_FIFO priority; 0 = both are ordinary processes.
    """

    def __init__(self, rate_hz: float, loops_priority: int = FIFO_PRIORITY) -> None:
        self._rate_hz = rate_hz
        self._period_ns = round(1e9 / rate_hz / WAKE_UPS_A_PERIOD)
        self._priority = loops_priority + 1 if loops_priority else 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._records: list[int] = []  # files in memory: writing to one never waits

    def __enter__(self) -> Witness:
        for processor in sorted(os.sched_getaffinity(0)):
            self._start(processor)
        deadline_s = time.monotonic() + _START_S
        while not all(os.fstat(records).st_size for records in self._records):
            if any(process.poll() is not None for process in self._processes) or time.monotonic() > deadline_s:
                self.__exit__(None, None, None)
                raise RuntimeError("a process of the witness did not start")
            time.sleep(0.005)
        return self

    def _start(self, processor: int) -> None:
        records = os.memfd_create("witness")
        self._records.append(records)
        # Isolated and without site-packages: it starts at once and imports nothing but the standard library.
        command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        numbers = (records, processor, self._period_ns, self._priority, os.getpid())
        self._processes.append(
            subprocess.Popen(
                [*command, *map(str, numbers)], stdin=subprocess.DEVNULL, pass_fds=(records,), start_new_session=True
            )
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for records in self._records:
            os.close(records)

    @property
    def pids(self) -> list[int]:
        """Process ids, one a processor."""
        return [process.pid for process in self._processes]

    @property
    def fifo(self) -> int:
        """SCHED_FIFO priority that it has; 0: ordinary processes."""
        return int(_HEAD.unpack(os.pread(self._records[0], _HEAD.size, 0))[1])

    def late(
        self, begin_s: float = 0.0, end_s: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> list[Late]:
        """Return the wake-ups that were late between two times of a clock [s], those that are overdue included."""
        now_ns = time.monotonic_ns()
        offset_s = clock() - now_ns / 1e9 if clock is not time.monotonic else 0.0
        found: list[tuple[int, int, int]] = []
        for records in self._records:
            data = os.pread(records, os.fstat(records).st_size, 0)
            whole = (len(data) - _HEAD.size) // _RECORD.size * _RECORD.size
            found += _RECORD.iter_unpack(data[_HEAD.size : _HEAD.size + whole])
            awake_ns = int(_HEAD.unpack_from(data)[0])
            if (overdue_ns := now_ns - awake_ns - self._period_ns) >= _LATE_NS:
                found.append((awake_ns, now_ns, overdue_ns))
        late = [Late(a / 1e9 + offset_s, b / 1e9 + offset_s, late_ns / 1e9) for a, b, late_ns in sorted(found)]
        return between(late, begin_s, end_s)

    def share(self, missed: int, begin_s: float, end_s: float = math.inf) -> int:
        """Return how many of the ticks that the loop missed between two times of the monotonic clock [s] are the machine's."""
        return machines_share(missed, 1.0 / self._rate_hz, self.late(begin_s, end_s))


def _watch(records: int, processor: int, period_ns: int, priority: int, parent: int) -> None:
    """Main of a process: until the parent has gone."""
    os.sched_setaffinity(0, {processor})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, ValueError):
        priority = 0
    gc.disable()
    os.lseek(records, _HEAD.size, os.SEEK_SET)
    awake_ns = time.monotonic_ns()
    due_ns = awake_ns + period_ns
    os.pwrite(records, _HEAD.pack(awake_ns, priority), 0)
    while os.getppid() == parent:
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        now_ns = time.monotonic_ns()
        late_ns = now_ns - due_ns
        if late_ns >= _LATE_NS:
            os.write(records, _RECORD.pack(awake_ns, now_ns, late_ns))
        os.pwrite(records, _HEAD.pack(now_ns, priority), 0)
        awake_ns = now_ns
        due_ns += period_ns * (1 + max(0, late_ns) // period_ns)


if __name__ == "__main__":
    _watch(*(int(argument) for argument in sys.argv[1:]))
