# SPDX-License-Identifier: Apache-2.0
"""Spinning a node and shutting it down, the same way for every executable."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from vla_ros.executor import NodeExecutor
from vla_ros.start import REFUSED
from vla_ros.usage import usage

_SWITCH_INTERVAL_S = 0.0001
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORK_S = 1.0
_WITH_VALUE = {
    **dict.fromkeys(("-e", "--enclave", "--log-level", "--log-config-file", "--log-file-name"), True),
    **dict.fromkeys(("-r", "--remap", "-p", "--param", "--params-file"), False),
}
"""ROS arguments that have a value, and whether they concern the whole process."""
_PASSING = ("DISK_FULL", "SERVER_UNREACHABLE", "STORE_IO", "STORE_LOCKED")
"""Why a node may not start now and may later; every other refusal with a code is a fault of its settings."""
_WRONG_PATH = (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError)
"""What STORE_IO comes from where no folder can be: a fault of the settings after all."""


def run(
    make_node: Callable[[], Node], args: Sequence[str] | None = None, *, threads: int = 4, last: bool = False
) -> int:
    """Initialise ROS, spin the node until SIGINT, SIGTERM or shutdown, close it; return the exit status.

    A node that cannot be made (a wrong argument or parameter, a broken store), and one whose callback raises an error with a
    ``code`` because it cannot go on, ends the program with one clear line. Status: ``REFUSED`` if its next start would end in the
    same way, else 1.

    ``last``: the process ends next; a second Ctrl-C has nothing left to interrupt.
    """
    # rclpy's MultiThreadedExecutor hands a callback to a thread and then asks again and again whether it has begun (rclpy 7):
    # with the interpreter's 5 ms each callback costs 5 ms of a core before the thread gets its turn.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    arguments = sys.argv if args is None else args
    with _signal_pipe(last) as signals:
        try:
            _check_profiles()
            # rclpy's own handlers would invalidate the context before close() has said goodbye on topics.
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as e:  # rclpy has an exception of its own for each fault, none of them public
            return _refuse(f"ARGUMENTS_INVALID: {e}", arguments, REFUSED)
        node: Node | None = None
        try:
            node = make_node()
            return _spin(node, signals, threads)
        except Exception as e:
            code = getattr(e, "code", None)
            if not isinstance(code, str):
                raise
            passing = code in _PASSING and not isinstance(e.__cause__, _WRONG_PATH)
            status = 1 if node is not None or passing else REFUSED
            return _refuse(str(e) if str(e).startswith(code) else f"{code}: {e}", arguments, status)
        finally:
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()


def _refuse(reason: str, arguments: Sequence[str], status: int) -> int:
    rclpy.logging.get_logger(_logger_name(arguments)).fatal(" ".join(reason.split()))
    return status


def _logger_name(arguments: Sequence[str]) -> str:
    """Return the name that the node would have logged under, as far as the command line gives it."""
    remaps = dict(argument.split(":=", 1) for argument in arguments if ":=" in argument)
    name = remaps.get("__node", Path(arguments[0]).stem if arguments else "vla_ota")
    return ".".join(part for part in (*remaps.get("__ns", "").split("/"), name) if part)


def _check_profiles() -> None:
    """Fast DDS only complains of a profile that is not there, and goes on without: cameras would lose frames."""
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        path = os.environ.get(variable)
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{variable}={path}: there is no such file")


def main(
    make_node: Callable[[], Node], name: str, about: str, settings: Sequence[type[Any]], *, threads: int = 4
) -> NoReturn:
    """Run a node as an executable. ``about`` and ``settings`` are for ``--help``."""
    try:
        others = remove_ros_args(sys.argv)[1:]
    except Exception as e:  # as above
        sys.exit(_refuse(f"ARGUMENTS_INVALID: {e}", sys.argv, REFUSED))
    if {"-h", "--help"} & {*others}:
        sys.stdout.write(usage(name, about, settings) + "\n")
        sys.exit(0)
    if others:
        text = f"ARGUMENTS_INVALID: {others[0]}: give parameters as --ros-args -p NAME:=VALUE; --help lists them"
        sys.exit(_refuse(text, sys.argv, REFUSED))
    sys.exit(run(make_node, threads=threads, last=True))


def process_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the ROS arguments that concern a process as a whole, for a child: enclave and logging, no names or parameters."""
    kept: list[str] = []
    ros, rest = False, iter(arguments)
    for argument in rest:
        if argument in ("--ros-args", "--"):
            ros = argument == "--ros-args"
        elif ros and argument in _WITH_VALUE:
            value = next(rest, "")
            kept += [argument, value] if _WITH_VALUE[argument] else []
        elif ros:
            kept.append(argument)
    return ["--ros-args", *kept] if kept else []


def _spin(node: Node, signals: int, threads: int) -> int:
    """Spin until a byte arrives on ``signals`` and the node has been closed; return the exit status."""
    executor = NodeExecutor(num_threads=threads)
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
        await_callbacks(executor)
        executor.shutdown(timeout_sec=0)
    for failure in failures:
        node.get_logger().error(f"closing failed:\n{failure}")
    return 1 if failures else 0


def await_callbacks(executor: NodeExecutor) -> None:
    """Wait for callbacks that run, and drop those that wait for a thread.

    ``Executor.shutdown`` does neither (rclpy 7), and takes away what they use.
    """
    pool = executor._executor
    ending = threading.Thread(target=lambda: pool.shutdown(wait=True, cancel_futures=True), daemon=True)
    ending.start()
    ending.join(_LAST_WORK_S)
    for task, _, _ in executor._tasks:  # Python complains of a coroutine that is dropped unless it is closed
        if inspect.iscoroutine(task._handler) and not task.executing():
            task._handler.close()


@contextmanager
def _signal_pipe(last: bool) -> Iterator[int]:
    """Yield a file descriptor that gets a byte at once for each SIGINT and SIGTERM; ``last``: they are ignored afterwards.

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
            signal.signal(number, signal.SIG_IGN if last else handler)
        with suppress(OSError):
            os.close(writer)
        os.close(reader)
