# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet`` as a person at a desk types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from vla_sim.demo.processes import DemoError

_TOOL = (sys.executable, "-c", "from vla_fleet.cli.main import main; main()")
_TOP = Path(__file__).resolve().parents[3]


def vla_fleet(server: str, key: str, *arguments: Any, timeout_s: float) -> str:
    """Run a command and return what it prints. Raises DemoError if it fails."""
    environment = {
        **os.environ,
        "VLA_FLEET_SERVER": server,
        "VLA_FLEET_KEY": key,
        "PYTHONPATH": f"{_TOP}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "COLUMNS": "200",
    }
    with subprocess.Popen(
        [*_TOOL, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the demonstration, which ends it
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except BaseException as e:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(e, subprocess.TimeoutExpired):
                raise DemoError(f"vla-fleet {arguments[0]} did not end within {timeout_s:g} s") from e
            raise
    if process.returncode:
        raise DemoError(f"vla-fleet {arguments[0]} ended with {process.returncode}: {said.strip()}")
    return said
