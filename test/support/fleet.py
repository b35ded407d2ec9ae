# SPDX-License-Identifier: Apache-2.0
"""A real fleet server as a process, and bundles to publish on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vla_fleet.client import Client

_READY = re.compile(r"serves (\S+); the admin's key is in (\S+)")
TOP = Path(__file__).resolve().parents[2]


class FleetServer:
    """``vla-fleet serve`` on a free port. Use as a context manager; ``kill`` and ``start`` as often as you like."""

    def __init__(self, data: Path, heartbeat_s: float = 0.5, options: Sequence[str] = ()) -> None:
        self.data, self._heartbeat_s, self._options = data, heartbeat_s, options
        self.port = 0
        self.url = self.log = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> FleetServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it (again on the same port) and wait until it serves."""
        command = [
            sys.executable,
            "-c",
            "from vla_fleet.cli.main import main; main()",
            "serve",
            "--data",
            str(self.data),
        ]
        command += ["--port", str(self.port), "--heartbeat-s", str(self._heartbeat_s), *self._options]
        environment = {**os.environ, "PYTHONPATH": f"{TOP}:{os.environ.get('PYTHONPATH', '')}"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log += line
            if found := _READY.search(line):
                self.url = found[1]
                self.port = int(self.url.rpartition(":")[2])
                break
        else:
            raise AssertionError(f"the server ended with {self._process.wait(10)}:\n{self.log}")
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.log += line

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it by SIGTERM and return its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if self._reader is not None:
                self._reader.join(10)

    @property
    def key(self) -> str:
        """The admin's key."""
        return (self.data / "admin.key").read_text().strip()

    def client(self, key: str | None = None) -> Client:
        """Return a client with the admin's key, or another one."""
        return Client(self.url, self.key if key is None else key)
