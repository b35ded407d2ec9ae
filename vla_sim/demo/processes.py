# SPDX-License-Identifier: Apache-2.0
"""The demo's nodes as processes of their own: started, killed, ended, each with a log."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FIRST_DOMAIN, _LAST_DOMAIN = 80, 101  # those below are for tests
_STOP_S = 15.0
_SHARED_MEMORY = Path("/dev/shm")
_SEGMENT = re.compile(r"fastrtps_(?:port\d+|[0-9a-f]+)")


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@contextmanager
def claim_domain() -> Iterator[int]:
    """Hold a ROS_DOMAIN_ID that no other demo on this machine uses; a lock on a file gives it back whatever happens.

    Raises DemoError if none is free.
    """
    folder = Path(tempfile.gettempdir()) / f"vla_ota_demo_domains-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    domains = list(range(_FIRST_DOMAIN, _LAST_DOMAIN + 1))
    random.shuffle(domains)
    for domain in domains:
        with (folder / str(domain)).open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise DemoError(f"ROS domains {_FIRST_DOMAIN} to {_LAST_DOMAIN} are all in use by other demos")


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
        self._segments: set[str] = set()
        log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop_all()

    def start(self, name: str, module: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Start ``python -m module`` as a ROS node with these parameters."""
        command = [sys.executable, "-m", module, "--ros-args"]
        if parameters:
            file = self.log_dir / f"{name}.parameters.yaml"  # JSON is YAML
            file.write_text(json.dumps({"/**": {"ros__parameters": dict(parameters)}}, indent=1))
            command += ["--params-file", str(file)]
        with self.log_file(name).open("ab") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which ends the nodes in order.
            self._running[name] = subprocess.Popen(
                command,
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
        self._segments |= _segments_of(process.pid)
        process.kill()
        process.wait()

    def note_memory_of(self, pid: int) -> None:
        """Remember which shared memory a process uses that somebody is about to kill."""
        self._segments |= _segments_of(pid)

    def ended(self) -> list[str]:
        """What has ended without being asked to, readable."""
        return [
            f"{name} ended with status {process.poll()}: see {self.log_file(name)}"
            for name, process in self._running.items()
            if process.poll() is not None
        ]

    def stop_all(self) -> None:
        """Ask every process to end, and make those end that do not."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._segments |= _segments_of(process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()
        _remove(self._segments)
        self._segments = set()


def _segments_of(pid: int) -> set[str]:
    """Names of the Fast DDS shared memory that a process maps: SIGKILL leaves it behind."""
    try:
        return set(_SEGMENT.findall(Path(f"/proc/{pid}/maps").read_text()))
    except OSError:
        return set()


def _remove(segments: set[str]) -> None:
    """Remove the files of segments that nobody maps any more."""
    if not segments:
        return
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            segments = segments - _segments_of(int(process.name))
    for path in _SHARED_MEMORY.glob("*fastrtps_*"):
        stem = _SEGMENT.search(path.name)
        if stem is not None and stem[0] in segments:
            path.unlink(missing_ok=True)
