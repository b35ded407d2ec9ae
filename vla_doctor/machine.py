# SPDX-License-Identifier: Apache-2.0
"""Memory, cores, scheduling, shared memory, clock and middleware of this computer. Probes read; checks judge."""

from __future__ import annotations

import ctypes
import getpass
import os
import resource
import shutil
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_doctor.findings import Finding, ok, problem
from vla_policy_node.control.realtime import take_fifo

MIB = 1 << 20
_CAP_IPC_LOCK = 14
_DEFAULT_SEGMENT_BYTES = 512 << 10  # Fast DDS without a profile
_MESSAGES_IN_SEGMENT = 4  # a picture that fits less often than this is overwritten while it is read
_LOCKED_BYTES = 512 * MIB  # address space of a control process, mlockall(MCL_FUTURE) counts all of it
_EARLIEST_S = 1735689600.0  # 2025-01-01: no robot with this package had its clock set before
_JUMP_S = 0.2
_STA_UNSYNC = 0x40
_LAST_SAFE_DOMAIN = 101


# -- memory and cores -------------------------------------------------------------------------------------------------------


def check_memory(available: int, bundle: int, worker: int, resident: int, reserve: int) -> list[Finding]:
    """Judge whether two loaded policies fit.

    Args:
        available: what can be taken without swapping [bytes].
        bundle: largest bundle [bytes]; 0 = none known.
        worker: an interpreter with its imports [bytes].
        resident: generations that the policy node has loaded already.
        reserve: to stay free [bytes].
    """
    what = "memory"
    missing = max(0, 2 - resident)
    needed = missing * (bundle + worker) + reserve
    size = f"{bundle // MIB} MiB (largest bundle)" if bundle else "unknown size (no bundle yet)"
    more = {1: "one more policy", 2: "two policies"}.get(missing)
    load = (
        f"{more} of {size}, {worker // MIB} MiB for each one's process" if more else "two policies are loaded already"
    )
    text = f"{available // MIB} MiB available, {needed // MIB} needed: {load}, {reserve // MIB} MiB reserve"
    if needed > available:
        return [problem("MEMORY_SHORT", what, text, missing_mib=(needed - available) / MIB)]
    return [ok(what, text)]


@dataclass(frozen=True)
class Privileges:
    """What this user may do."""

    cores: int
    fifo: bool  # a thread may run under SCHED_FIFO at the asked priority
    memlock_bytes: int  # -1 = no limit


def probe_privileges(priority: int) -> Privileges:
    """Try SCHED_FIFO in a thread of its own, which ends at once, and read the limits."""
    given: list[int] = []
    if priority > 0:
        thread = threading.Thread(target=lambda: given.append(take_fifo(priority)))
        thread.start()
        thread.join()
    memlock = -1 if _has_capability(_CAP_IPC_LOCK) else resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return Privileges(len(os.sched_getaffinity(0)), fifo=given == [priority] or priority == 0, memlock_bytes=memlock)


def check_privileges(found: Privileges, priority: int, user: str = "") -> list[Finding]:
    """Judge cores, SCHED_FIFO at ``priority`` (0 = not wanted) and locked memory."""
    what, user = "processor", user or _user()
    result = []
    if found.cores < 2:
        result.append(problem("CPU_FEW", what, f"{found.cores} core"))
    if not found.fifo:
        result.append(problem("FIFO_REFUSED", what, f"SCHED_FIFO {priority} is refused", user=user, priority=priority))
    if 0 <= found.memlock_bytes < _LOCKED_BYTES:
        text = f"{found.memlock_bytes // MIB} MiB may be locked"
        result.append(problem("MEMLOCK_LOW", what, text, user=user))
    return result or [ok(what, f"{found.cores} cores; SCHED_FIFO {priority or 'not asked for'}; memory may be locked")]


def _has_capability(bit: int) -> bool:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return bool(next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")) >> bit & 1)
    except (OSError, StopIteration, ValueError):
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


# -- middleware -------------------------------------------------------------------------------------------------------------


def shared_memory_free(path: Path = Path("/dev/shm")) -> int | None:
    """Return the free bytes of /dev/shm, or None."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def profile_segment(environment: Mapping[str, str]) -> tuple[int, str]:
    """Return the largest shared-memory segment that the Fast DDS profile asks for [bytes] (0 = default), and an error."""
    file = environment.get("FASTRTPS_DEFAULT_PROFILES_FILE") or environment.get("FASTDDS_DEFAULT_PROFILES_FILE")
    if not file:
        return 0, ""
    try:
        root = ET.parse(file).getroot()
        sizes = [int(e.text or "") for e in root.iter() if e.tag.rpartition("}")[2] == "segment_size"]
    except (OSError, ET.ParseError, ValueError) as e:
        return 0, f"{file}: {e}"
    return max(sizes, default=0), ""


def check_middleware(
    rmw: str, environment: Mapping[str, str], shm_free: int | None, largest_message: int
) -> list[Finding]:
    """Judge domain, discovery, and whether pictures get through shared memory; ``largest_message`` [bytes] as seen."""
    domain, discovery = (
        environment.get("ROS_DOMAIN_ID") or "0",
        environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") or "SUBNET",
    )
    found, what = [], "middleware"
    if discovery.upper() == "OFF":
        found.append(problem("DISCOVERY_OFF", what, "the discovery range is OFF"))
    if domain.isdecimal() and int(domain) > _LAST_SAFE_DOMAIN:
        found.append(problem("DOMAIN_HIGH", what, f"ROS_DOMAIN_ID is {domain}"))
    if "fastrtps" in rmw:
        found += _check_shared_memory(environment, shm_free, largest_message)
    return found or [ok(what, f"{rmw}, ROS_DOMAIN_ID {domain}, discovery {discovery}")]


def _check_shared_memory(environment: Mapping[str, str], free: int | None, largest: int) -> list[Finding]:
    segment, error = profile_segment(environment)
    found, what = [], "shared memory"
    if error:
        found.append(problem("DDS_PROFILE_UNREADABLE", what, error))
    segment = segment or _DEFAULT_SEGMENT_BYTES
    if largest * _MESSAGES_IN_SEGMENT > segment:
        text = f"messages of {largest / MIB:.1f} MiB, a segment of {segment / MIB:.1f} MiB"
        found.append(problem("SHM_SEGMENT_SMALL", what, text))
    if free is not None and free < 2 * segment:  # node and control process, each with a segment of its own
        text = f"{free // MIB} MiB free in /dev/shm, a segment takes {segment / MIB:.1f} MiB a process"
        found.append(problem("SHM_SMALL", what, text))
    return found


# -- clock ------------------------------------------------------------------------------------------------------------------


class _Timex(ctypes.Structure):
    """``struct timex``: the fields that are read, and room for the rest."""

    _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
                ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_char * 256)]  # fmt: skip


@dataclass(frozen=True)
class ClockSeen:
    """Wall clock at two instants, with the monotonic clock beside it."""

    wall_s: float
    jump_s: float  # how much further the wall clock went than the monotonic one [s]
    synchronised: bool | None  # None = the kernel does not say
    went_back: bool  # the monotonic clock


class ClockWatch:
    """Watches the clocks from its creation to :meth:`look`."""

    def __init__(self) -> None:
        self._wall_s, self._monotonic_s = time.time(), time.monotonic()

    def look(self) -> ClockSeen:
        """Return what the clocks did since."""
        wall_s, monotonic_s = time.time(), time.monotonic()
        passed_s = monotonic_s - self._monotonic_s
        return ClockSeen(wall_s, wall_s - self._wall_s - passed_s, _synchronised(), passed_s < 0)


def _synchronised() -> bool | None:
    try:
        timex = _Timex()  # modes 0: read only
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not timex.status & _STA_UNSYNC


def check_clock(seen: ClockSeen) -> list[Finding]:
    """Judge the clocks."""
    found, what = [], "clock"
    date = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seen.wall_s))
    if seen.wall_s < _EARLIEST_S or seen.went_back:
        text = "the monotonic clock went back" if seen.went_back else f"the wall clock says {date}"
        found.append(problem("CLOCK_WRONG", what, text))
    if abs(seen.jump_s) > _JUMP_S:
        found.append(problem("CLOCK_JUMPED", what, f"by {seen.jump_s:+.2f} s"))
    if seen.synchronised is False:
        found.append(problem("CLOCK_UNSYNCED", what, f"{date}, not synchronised"))
    return found or [ok(what, f"{date}" + (", synchronised" if seen.synchronised else ""))]
