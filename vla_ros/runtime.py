# SPDX-License-Identifier: Apache-2.0
"""Spinning a node and shutting it down, the same way for every executable."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

_SWITCH_INTERVAL_S = 0.0001
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORK_S = 1.0


class ClosableNode(Protocol):
    """A node with resources of its own (processes, threads, files)."""

    def close(self) -> None:
        """Give them back; called once, before the node is destroyed, while the other callbacks still run."""


def run(make_node: Callable[[], Node], args: Sequence[str] | None = None, *, threads: int = 4) -> int:
    """Initialise ROS, spin the node until SIGINT, SIGTERM or shutdown, close it; return the exit status.

    A node that cannot be made (a wrong argument or parameter, a broken contract), and one whose callback raises an error with a
    ``code`` because it cannot go on, ends the program with one clear line and status 1.
    """
    # rclpy's MultiThreadedExecutor hands a callback to a thread and then asks again and again whether it has begun (rclpy 7):
    # with the interpreter's 5 ms each callback costs 5 ms of a core before the thread gets its turn.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with _signal_pipe() as signals:
        try:
            # rclpy's own handlers would invalidate the context before close() has said goodbye on topics.
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as e:  # rclpy has an exception of its own for each fault, none of them public
            return _refuse(f"ARGUMENTS_INVALID: {e}")
        node: Node | None = None
        try:
            node = make_node()
            return _spin(node, signals, threads)
        except Exception as e:
            code = getattr(e, "code", None)
            if not isinstance(code, str):
                raise
            return _refuse(str(e) if str(e).startswith(code) else f"{code}: {e}")
        finally:
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()


def _refuse(reason: str) -> int:
    rclpy.logging.get_logger("vla_ota").fatal(" ".join(reason.split()))
    return 1


def main(make_node: Callable[[], Node], *, threads: int = 4) -> None:
    """Entry point of an executable."""
    sys.exit(run(make_node, threads=threads))


def _spin(node: Node, signals: int, threads: int) -> int:
    """Spin until a byte arrives on ``signals`` and the node has been closed; return the exit status."""
    executor = MultiThreadedExecutor(num_threads=threads)
    executor.add_node(node)
    once, asked, closed = threading.Lock(), threading.Event(), threading.Event()
    failures: list[str] = []

    def close() -> None:
        if not once.acquire(blocking=False):
            closed.wait()
            return
        try:
            getattr(node, "close", lambda: None)()
        except Exception:
            failures.append(traceback.format_exc())
        closed.set()

    def close_when_asked() -> None:
        if os.read(signals, 1):  # nothing to read: spinning ended for another reason
            asked.set()
            close()
            executor.create_task(lambda: None)  # makes spin_once return though nothing else may happen any more

    watcher = threading.Thread(target=close_when_asked, name="shutdown", daemon=True)
    watcher.start()
    try:
        while rclpy.ok() and not closed.is_set():
            # An entity destroyed by a callback may still be in the wait set that the executor is putting together (rclpy 7).
            with suppress(InvalidHandle):
                executor.spin_once()
    finally:
        if asked.is_set():
            watcher.join()
        close()
        _await_callbacks(executor)
        executor.shutdown(timeout_sec=0)
    for failure in failures:
        node.get_logger().error(f"closing failed:\n{failure}")
    return 1 if failures else 0


def _await_callbacks(executor: MultiThreadedExecutor) -> None:
    """Wait for callbacks that still run: ``Executor.shutdown`` means to, but does not (rclpy 7), and takes away what they use."""
    tracker = getattr(executor, "_work_tracker", None)
    if tracker is not None:
        tracker.wait(_LAST_WORK_S)


@contextmanager
def _signal_pipe() -> Iterator[int]:
    """Yield a file descriptor that gets a byte at once for each SIGINT and SIGTERM.

    A Python signal handler would run only when the main thread comes back from its wait in C++, and in the middle of whatever it
    does then.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(OSError):
            os.close(writer)
        os.close(reader)
