# SPDX-License-Identifier: Apache-2.0
"""One thread that waits for every worker: messages, output, exit. It also starts them, since they end when it does."""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from vla_policy_node.worker.api import PrepareError
from vla_policy_node.worker.child import Child

T = TypeVar("T")

_STOP_TIMEOUT_S = 10.0
_CALL_CHECK_S = 0.2


class Watcher:
    """Waits in one ``select``; an exception in a callback is logged and does not end the thread.

    Args:
        on_message: a worker said something.
        on_exit: a worker was reaped; how it ended.
        tick: called after every wake-up; returns how long to sleep at most [s], ``None`` = until something happens.
        log: for the thread's own trouble.
    """

    def __init__(
        self,
        on_message: Callable[[Child, dict[str, Any]], None],
        on_exit: Callable[[Child, str], None],
        tick: Callable[[], float | None],
        log: Callable[[str], None],
    ) -> None:
        self._on_message, self._on_exit, self._tick, self._log = on_message, on_exit, tick, log
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, self._drain)
        self._children: set[Child] = set()
        self._stopping = False
        self._lock = threading.Lock()  # the wake-up's descriptor, and whether the thread starts
        self._thread = threading.Thread(target=self._run, name="worker-watcher", daemon=True)

    def start(self) -> None:
        """Start the thread, unless :meth:`stop` came first."""
        with self._lock:
            if not self._stopping:
                self._thread.start()

    def wake(self) -> None:
        """Make the thread look around (call its ``tick``) at once."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the thread and return what it returns."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        self.wake()
        while self._thread.is_alive():
            with contextlib.suppress(FutureTimeoutError):
                return future.result(_CALL_CHECK_S)
        raise PrepareError("CLOSED", "the worker pool is not running")

    def add(self, child: Child) -> None:
        """Watch a worker; on the watcher's thread only."""
        self._children.add(child)
        register = self._selector.register
        register(child.channel.fileno(), selectors.EVENT_READ, lambda: self._channel_ready(child))
        register(child.output_fd, selectors.EVENT_READ, lambda: self._output_ready(child))
        register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))

    def stop(self) -> None:
        """Kill every worker, wait until all have ended, and end the thread."""
        with self._lock:
            self._stopping = True
            started = self._thread.ident is not None
        if not started:
            self._close()
        elif self._thread.is_alive():
            self.wake()
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping or self._children:
            try:
                timeout = 0.1 if self._stopping else self._tick()
                for key, _ in self._selector.select(timeout):
                    key.data()
                if self._stopping:
                    for child in self._children:
                        child.kill()
            except Exception:
                self._log(f"worker watcher: {traceback.format_exc()}")
        self._close()

    def _close(self) -> None:
        self._selector.close()
        with self._lock:
            os.close(self._wake)
            self._wake = -1

    def _drain(self) -> None:
        os.eventfd_read(self._wake)
        self._run_calls()

    def _run_calls(self) -> None:
        while not self._calls.empty():
            function, future = self._calls.get()
            try:
                if self._stopping:
                    raise PrepareError("CLOSED", "the worker pool is shutting down")
                future.set_result(function())
            except BaseException as e:
                future.set_exception(e)

    def _channel_ready(self, child: Child) -> None:
        fd = child.channel.fileno()
        if fd < 0:
            return  # it ended in this very round
        message = child.on_message()
        if message is None:
            self._selector.unregister(fd)
        else:
            self._on_message(child, message)

    def _output_ready(self, child: Child) -> None:
        if child.alive and not child.on_output() and child.output_ended:
            self._selector.unregister(child.output_fd)

    def _ended(self, child: Child) -> None:
        for fd in (child.channel.fileno(), child.output_fd, child.pidfd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        for message in child.last_messages():
            self._on_message(child, message)
        self._children.discard(child)
        text = child.reap()
        try:
            self._on_exit(child, text)
        finally:
            child.finish(text)
