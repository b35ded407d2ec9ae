# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet serve`` as a process of its own: started, killed, started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_fleet.client import Client

SERVE = (sys.executable, "-c", "from vla_fleet.cli.main import main; main()", "serve")
_READY = re.compile(r"serves (\S+); the admin's key is in (\S+)")
_TOP = Path(__file__).resolve().parents[2]
_STOP_S = 20.0


class FleetServer:
    """A server on a free port of this machine. Use as a context manager; ``kill`` and ``start`` as often as you like.

    Args:
        data: the server's folder.
        heartbeat_s: how often a robot says something [s].
        command: what is started, with ``--data``, ``--port`` and ``--heartbeat-s`` added, and ``options``.
        environment: added to this process's.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(
        self,
        data: Path,
        heartbeat_s: float = 5.0,
        command: Sequence[str] = SERVE,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.data, self._heartbeat_s, self._command, self._options = data, heartbeat_s, command, options
        self._environment = dict(environment or {})
        self.port = 0
        self.url = self.log = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> FleetServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id; 0: it does not run."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it (again on the same port) and wait until it serves."""
        own = ("--data", str(self.data), "--port", str(self.port), "--heartbeat-s", str(self._heartbeat_s))
        environment = {**os.environ, **self._environment, "PYTHONPATH": f"{_TOP}:{os.environ.get('PYTHONPATH', '')}"}
        process = self._process = subprocess.Popen(
            [*self._command, *own, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches whoever started it, who ends it in order
        )
        assert process.stdout is not None
        for line in process.stdout:
            self.log += line
            if found := _READY.search(line):
                self.url = found[1]
                self.port = int(self.url.rpartition(":")[2])
                break
        else:
            raise RuntimeError(f"the server ended with {process.wait(_STOP_S)}:\n{self.log}")
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
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
            return process.wait(_STOP_S)
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
