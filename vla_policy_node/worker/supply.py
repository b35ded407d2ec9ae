# SPDX-License-Identifier: Apache-2.0
"""Where the pool gets its worker processes from: a server that forks them, and a spare one that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from vla_policy_node.ipc.channel import ChannelClosedError
from vla_policy_node.worker.api import PrepareError, WorkerConfig
from vla_policy_node.worker.child import Child
from vla_policy_node.worker.watcher import Watcher

_POLL_S = 0.05  # how soon a cancellation is noticed
_BACKOFF_S = (1.0, 60.0)  # after a spare or the server died: first and longest wait


Log = Callable[[Any, str, int], None]
"""Called with the kind of an event, its text, and the process id that it is about."""


class Supply:
    """Keeps a server, and a spare worker if the configuration wants one.

    Args:
        config: how workers are started.
        watcher: watches every process; what is said "on the watcher's thread" is called by it.
        log: gets SPARE_READY and LOG.
    """

    def __init__(self, config: WorkerConfig, watcher: Watcher, log: Log) -> None:
        self._config, self._watcher, self._log = config, watcher, log
        self._lock = threading.Lock()
        self._policy_type = ""
        self._server: Child | None = None
        self._server_due_s: float | None = None  # monotonic, as all of these
        self._server_failed: PrepareError | None = None
        self._spare: Child | None = None
        self._spare_due_s: float | None = None
        self._backoff_s = _BACKOFF_S[0]
        self._closed = False

    @property
    def spare_pid(self) -> int | None:
        """Process id of the spare worker, also while it is still importing."""
        with self._lock:
            return None if self._spare is None else self._spare.pid

    def start(self, policy_type: str) -> None:
        """Start the server, which imports the module of ``policy_type`` ahead, and the spare."""
        with self._lock:
            self._policy_type, self._server_due_s = policy_type, time.monotonic()
        self.schedule_spare(0.0)

    def close(self) -> None:
        """Start nothing any more."""
        with self._lock:
            self._closed = True

    def schedule_spare(self, delay_s: float) -> None:
        """Start a spare after a while, unless there is one."""
        with self._lock:
            if self._config.spare and self._spare is None and not self._closed:
                self._spare_due_s = time.monotonic() + delay_s
        self._watcher.wake()

    def take(self, policy_type: str, raise_if_over: Callable[[], None]) -> tuple[Child, bool]:
        """Return a worker for a bundle of that type, and whether it was the spare, with its imports done.

        Raises :class:`PrepareError`: ``WORKER_START_FAILED``, ``WORKER_DIED`` while it imported, or what ``raise_if_over`` does.
        """
        with self._lock:
            self._policy_type, self._server_failed = policy_type, None
        while True:
            raise_if_over()
            taken = self._watcher.call(self._take)
            if taken is not None:
                return taken
            time.sleep(_POLL_S)

    def _take(self) -> tuple[Child, bool] | None:
        """On the watcher's thread: ``None`` while the server still imports."""
        with self._lock:
            child, self._spare, self._spare_due_s = self._spare, None, None
            server, failed = self._server, self._server_failed
        if child is not None and child.alive:
            return child, child.waiting
        if failed is not None:
            raise failed
        if server is None:
            self._start_server()
            return None
        return (self._fork(server), False) if server.waiting else None

    # -- on the watcher's thread

    def heard(self, child: Child, message: dict[str, Any]) -> None:
        """Take note that the imports of a process are done."""
        with self._lock:
            child.waiting = True
            is_spare = child is self._spare
            self._backoff_s = _BACKOFF_S[0]
        if is_spare:
            has = ", ".join(f"{name} {version}" for name, version in message["versions"].items())
            self._log("SPARE_READY", f"a spare worker is ready: {has}", child.pid)

    def ended(self, child: Child, text: str) -> None:
        """Take note of the end of a process; start another one after a while if it was the server or the spare."""
        with self._lock:
            was = "spare worker" if child is self._spare else "server of workers" if child is self._server else ""
            if not was or self._closed:
                return
            if child is self._server:
                self._server = None
                if not child.waiting:
                    self._server_failed = PrepareError("WORKER_DIED", f"{was} {child.pid} {text} while it imported")
        self._log("LOG", f"{was} {child.pid} {text}", child.pid)
        self._retry(child)

    def tick(self, now: float) -> float | None:
        """Start what is due; return seconds until the next is."""
        with self._lock:
            server, due_s = self._server, self._server_due_s
            if self._closed:
                return None
            if server is None and due_s is not None and now < due_s:
                return due_s - now
        try:
            if server is None:
                if due_s is not None:
                    self._start_server()
                return None
            return self._start_spare_if_due(server, now)
        except PrepareError as e:
            self._log("LOG", f"no spare worker: {e}", server.pid if server else 0)
            self._retry(server)
            return 0.0

    def _start_server(self) -> None:
        with self._lock:
            self._server_due_s = None
        try:
            server = Child.start_server(self._config, lambda child, line: self._log("LOG", line, child.pid))
        except PrepareError as e:
            with self._lock:
                self._server_failed = e
            raise
        self._begin(server)
        with self._lock:
            self._server = server

    def _start_spare_if_due(self, server: Child, now: float) -> float | None:
        with self._lock:
            due_s = self._spare_due_s
            if due_s is None or self._spare is not None or not server.waiting:
                return None
            if now < due_s:
                return due_s - now
            self._spare_due_s = None
        spare = self._fork(server)
        with self._lock:
            self._spare = spare
            if self._closed:
                spare.kill()
        return None

    def _fork(self, server: Child) -> Child:
        child = server.fork_worker(lambda child, line: self._log("LOG", line, child.pid))
        self._begin(child)
        return child

    def _begin(self, child: Child) -> None:
        self._watcher.add(child)
        begin = {
            "nice": self._config.nice,
            "imports": list(self._config.imports),
            "policy_type": self._policy_type,
            "policy_modules": dict(self._config.policy_modules),
            "device": self._config.device,
        }
        try:
            child.channel.send(begin)
        except ChannelClosedError:
            child.kill()  # its exit is reported like any other

    def _retry(self, ended: Child | None) -> None:
        with self._lock:
            due_s = time.monotonic() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, _BACKOFF_S[1])
            if self._server is None:
                self._server_due_s = due_s
            if ended is self._spare:
                self._spare = None
            if self._config.spare and self._spare is None:
                self._spare_due_s = due_s
