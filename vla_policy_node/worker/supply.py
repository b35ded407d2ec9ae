# SPDX-License-Identifier: Apache-2.0
"""Where the pool gets its worker processes from: a server that forks them, and a spare one that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from vla_policy_node.ipc.channel import ChannelClosedError
from vla_policy_node.worker.api import PrepareError, WorkerConfig
from vla_policy_node.worker.child import FORK_TIMEOUT_S, Child
from vla_policy_node.worker.watcher import Watcher

_POLL_S = 0.05  # how soon a cancellation is noticed
_BACKOFF_S = (1.0, 60.0)  # after a spare or the server died: first and longest wait


Log = Callable[[Any, str, int], None]
"""Called with the kind of an event, its text, and the process id that it is about."""


class Supply:
    """Keeps a server, and a spare worker if the configuration wants one.

    Args:
        config: how workers are started.
        watcher: watches every process. Nothing on its thread waits for one to be forked.
        log: gets SPARE_READY and LOG.
    """

    def __init__(self, config: WorkerConfig, watcher: Watcher, log: Log) -> None:
        self._config, self._watcher, self._log = config, watcher, log
        self._lock = threading.Lock()
        self._policy_type = ""
        self._server: Child | None = None
        self._server_type = ""  # whose module it imports
        self._server_due_s: float | None = None  # monotonic, as all of these
        self._server_failed: PrepareError | None = None
        self._spare: Child | None = None
        self._spare_due_s: float | None = None
        self._spare_thread: threading.Thread | None = None  # while one is being forked
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

    def join(self) -> None:
        """Call when the watcher has ended: no worker is being forked afterwards."""
        if self._spare_thread is not None:
            self._spare_thread.join(2 * FORK_TIMEOUT_S)

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
        last_try = False
        while True:
            found = self._watcher.call(self._find)
            if isinstance(found, tuple):
                return found
            if found is not None:
                try:
                    return self._fork(found), False
                except PrepareError:
                    if last_try:
                        raise
                    last_try = True  # the server may have ended this moment: another one is started
            try:
                raise_if_over()
            except PrepareError as e:
                if e.code == "LOAD_TIMEOUT":
                    self._kill_importing()
                raise
            time.sleep(_POLL_S)

    def _find(self) -> tuple[Child, bool] | Child | None:
        """On the watcher's thread: return the spare, or the server; ``None`` while one imports."""
        with self._lock:
            child, self._spare, self._spare_due_s = self._spare, None, None
            server, failed = self._server, self._server_failed
        if child is not None and child.alive:
            return child, child.waiting
        if server is not None and server.waiting and server.alive:
            return server
        if failed is not None:
            raise failed
        if server is None:
            self._start_server()
        elif self._server_type != self._policy_type:
            server.kill()  # it may hang or fail in an import that nobody waits for; its end starts another one
        return None

    def _kill_importing(self) -> None:
        """The server has not come through its imports in the time of a whole preparation."""
        with self._lock:
            server = self._server
        if server is not None and not server.waiting:
            server.kill()

    def _fork(self, server: Child) -> Child:
        """Let the server fork a worker, on a thread that may wait. A server that does not is killed.

        Raises :class:`PrepareError` ``WORKER_START_FAILED``, ``CLOSED``.
        """
        try:
            child = server.fork_worker(lambda child, line: self._log("LOG", line, child.pid))
        except PrepareError:
            server.kill()  # else it would fork later what nobody waits for
            raise
        try:
            self._watcher.call(lambda: self._begin(child))
        except PrepareError:
            child.kill()
            child.reap()
            raise
        return child

    def _fork_spare(self, server: Child) -> None:
        """On a thread of its own."""
        try:
            spare = self._fork(server)
        except PrepareError as e:
            if not self._closed:
                self._log("LOG", f"no spare worker: {e}", server.pid)
            with self._lock:
                self._spare_thread = None
            self._retry()
            return
        with self._lock:
            self._spare, self._spare_thread = spare, None
            waits = spare.waiting
        if not spare.alive:
            self.ended(spare, "has ended")
        elif waits:
            self._say_ready(spare)

    # -- on the watcher's thread

    def heard(self, child: Child, message: dict[str, Any]) -> None:
        """Take note that the imports of a process are done."""
        with self._lock:
            child.waiting, child.versions = True, message["versions"]
            is_spare = child is self._spare
            self._backoff_s = _BACKOFF_S[0]
        if is_spare:
            self._say_ready(child)

    def _say_ready(self, spare: Child) -> None:
        has = ", ".join(f"{name} {version}" for name, version in spare.versions.items())
        self._log("SPARE_READY", f"a spare worker is ready: {has}", spare.pid)

    def ended(self, child: Child, text: str) -> None:
        """Take note of the end of a process; start another one after a while if it was the server or the spare."""
        with self._lock:
            was = "spare worker" if child is self._spare else "server of workers" if child is self._server else ""
            if not was or self._closed:
                return
            if child is self._spare:
                self._spare = None
            else:
                self._server = None
                if not child.waiting and self._server_type == self._policy_type:
                    self._server_failed = PrepareError("WORKER_DIED", f"{was} {child.pid} {text} while it imported")
        self._log("LOG", f"{was} {child.pid} {text}", child.pid)
        self._retry()

    def tick(self, now: float) -> float | None:
        """Start what is due; return seconds until the next is."""
        with self._lock:
            server, due_s = self._server, self._server_due_s
            if self._closed or (server is None and due_s is None):
                return None
            if server is None and due_s is not None and now < due_s:
                return due_s - now
        if server is not None:
            return self._start_spare_if_due(server, now)
        try:
            self._start_server()
        except PrepareError as e:
            self._log("LOG", f"no server of workers: {e}", 0)
            return 0.0
        return None

    def _start_server(self) -> None:
        with self._lock:
            self._server_due_s, self._server_type = None, self._policy_type
        try:
            server = Child.start_server(self._config, lambda child, line: self._log("LOG", line, child.pid))
        except PrepareError as e:
            with self._lock:
                self._server_failed = e
            self._retry()
            raise
        self._begin(server)
        with self._lock:
            self._server = server

    def _start_spare_if_due(self, server: Child, now: float) -> float | None:
        with self._lock:
            due_s = self._spare_due_s
            if due_s is None or self._spare is not None or self._spare_thread is not None or not server.waiting:
                return None
            if now < due_s:
                return due_s - now
            self._spare_due_s = None
            thread = threading.Thread(target=self._fork_spare, args=(server,), name="spare-worker", daemon=True)
            self._spare_thread = thread
        thread.start()
        return None

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

    def _retry(self) -> None:
        """Start anew what is missing, after a while."""
        with self._lock:
            due_s = time.monotonic() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, _BACKOFF_S[1])
            if self._server is None:
                self._server_due_s = due_s
            if self._config.spare and self._spare is None and not self._closed:
                self._spare_due_s = due_s
        self._watcher.wake()
