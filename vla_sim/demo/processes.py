# SPDX-License-Identifier: Apache-2.0
"""The demo's nodes as processes of their own: started, killed, ended, each with a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vla_sim.dds import remove_orphans, stems_of

_STOP_S = 15.0


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Processes:
    """Processes by name. Use as a context manager: whatever still runs is ended with it.

    Args:
        log_dir: a log ``<name>.log`` for each, kept over restarts.
        environment: added to this process's.
    """

    def __init__(self, log_dir: Path, environment: Mapping[str, str]) -> None:
        self.log_dir = log_dir
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._left_behind: set[str] = set()  # shared memory of those that were killed
        log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._left_behind |= stems_of(process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        remove_orphans(self._left_behind)

    def start(self, name: str, module: str, parameters: Mapping[str, Any], namespace: str = "") -> None:
        """Start ``python -m module`` as a ROS node with these parameters."""
        file = self.log_dir / f"{name}.parameters.yaml"  # JSON is YAML
        file.write_text(json.dumps({"/**": {"ros__parameters": dict(parameters)}}, indent=1))
        with self.log_file(name).open("ab") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which ends the nodes in order.
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", module, "--ros-args", "-r", f"__ns:=/{namespace}", "--params-file", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def log_file(self, name: str) -> Path:
        """Where a process's output goes."""
        return self.log_dir / f"{name}.log"

    def kill(self, name: str) -> None:
        """SIGKILL: the process gets no chance to say goodbye."""
        process = self._running.pop(name)
        self._left_behind |= stems_of(process.pid)
        process.kill()
        process.wait()

    def ended(self) -> list[str]:
        """What has ended without being asked to, readable."""
        return [
            f"{name} ended with status {process.poll()}: see {self.log_file(name)}"
            for name, process in self._running.items()
            if process.poll() is not None
        ]
