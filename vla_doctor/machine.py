# SPDX-License-Identifier: Apache-2.0
"""Memory, scheduling, shared memory and clock of this computer. Probes read; checks judge."""

from __future__ import annotations

import getpass
import os
import resource
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


# -- memory and privileges --------------------------------------------------------------------------------------------------


def check_memory(
    available: int, bundle: int, worker: int, resident: int, reserve: int, *, generations: int = 2
) -> list[Finding]:
    """Judge whether as many loaded policies fit as the policy node is to hold.

    Args:
        available: what can be taken without swapping [bytes].
        bundle: largest bundle [bytes]; 0 = none known.
        worker: an interpreter with its imports [bytes].
        resident: generations that the policy node has loaded already.
        reserve: to stay free [bytes].
        generations: that are in memory at a time: 2, or 1 with `load_in_place`.
    """
    what = "memory"
    missing = max(0, generations - resident)
    needed = missing * (bundle + worker) + reserve
    size = f"{bundle // MIB} MiB (largest bundle)" if bundle else "unknown size (no bundle yet)"
    one = "one policy" if generations == 1 else "one more policy"
    more = {1: one, 2: "two policies"}.get(missing)
    there = "one policy is" if generations == 1 else "two policies are"
    load = f"{more} of {size}, {worker // MIB} MiB for each one's process" if more else f"{there} loaded already"
    text = f"{available // MIB} MiB available, {needed // MIB} needed: {load}, {reserve // MIB} MiB reserve"
    if needed > available:
        return [problem("MEMORY_SHORT", what, text, missing_mib=(needed - available) / MIB)]
    return [ok(what, text)]


@dataclass(frozen=True)
class Privileges:
    """What this user may do."""

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
    return Privileges(fifo=given == [priority] or priority == 0, memlock_bytes=memlock)


def check_privileges(found: Privileges, priority: int) -> list[Finding]:
    """Judge SCHED_FIFO at ``priority`` (0 = not wanted) and locked memory."""
    what, user, result = "processor", user_name(), []
    if not found.fifo:
        result.append(problem("FIFO_REFUSED", what, f"SCHED_FIFO {priority} is refused", user=user, priority=priority))
    if 0 <= found.memlock_bytes < _LOCKED_BYTES:
        text = f"{found.memlock_bytes // MIB} MiB may be locked"
        result.append(problem("MEMLOCK_LOW", what, text, user=user))
    return result or [ok(what, f"SCHED_FIFO {priority or 'not asked for'}; memory may be locked")]


def _has_capability(bit: int) -> bool:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return bool(next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")) >> bit & 1)
    except (OSError, StopIteration, ValueError):
        return False


def user_name() -> str:
    """Return the name of this process's user, or its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


# -- middleware -------------------------------------------------------------------------------------------------------------


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


def check_middleware(rmw: str, environment: Mapping[str, str], largest_message: int) -> list[Finding]:
    """Judge whether pictures get through shared memory; ``largest_message`` [bytes] as seen."""
    found, what = [], "middleware"
    if "fastrtps" in rmw:
        segment, error = profile_segment(environment)
        if error:
            found.append(problem("DDS_PROFILE_UNREADABLE", what, error))
        segment = segment or _DEFAULT_SEGMENT_BYTES
        if largest_message * _MESSAGES_IN_SEGMENT > segment:
            text = f"messages of {largest_message / MIB:.1f} MiB, a segment of {segment / MIB:.1f} MiB"
            found.append(problem("SHM_SEGMENT_SMALL", what, text))
    domain, discovery = (environment.get(name) for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"))
    return found or [ok(what, f"{rmw}, ROS_DOMAIN_ID {domain or '0'}, discovery {discovery or 'SUBNET'}")]


# -- clock ------------------------------------------------------------------------------------------------------------------


def check_clock(wall_s: float) -> list[Finding]:
    """Judge the wall clock's time [s since 1970]."""
    date = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(wall_s))
    if wall_s < _EARLIEST_S:
        return [problem("CLOCK_WRONG", "clock", f"it says {date}")]
    return [ok("clock", date)]
