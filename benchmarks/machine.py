# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PROBE = """
import json
from vla_policy_node.control.realtime import lock_memory, take_fifo
print(json.dumps({"fifo": take_fifo(10) > 0, "mlock": lock_memory()}))
"""


def describe() -> dict[str, Any]:
    """Return processor, kernel, versions, and what a control process is allowed here (asked for in a process of its own)."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], check=True, capture_output=True, text=True, timeout=60)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_mb": int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "torch": importlib.metadata.version("torch"),
        **json.loads(probe.stdout),
        "load_average": os.getloadavg()[0],
    }


def sentence(machine: dict[str, Any]) -> str:
    """Return the description as a line or two of text."""
    allowed = {True: "allowed", False: "not allowed"}
    text = (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_mb']} MB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, torch {machine['torch']}\n"
        f"SCHED_FIFO {allowed[machine['fifo']]}, mlockall {allowed[machine['mlock']]}"
    )
    if machine["load_average"] > 0.5:
        text += f"\nNOT ALONE: load average {machine['load_average']:.1f} at the start; lateness below includes other programs"
    return text


def _field(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
