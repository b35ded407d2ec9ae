# SPDX-License-Identifier: Apache-2.0
"""Where workers come from: ``python -m vla_policy_node.worker.server FD``, FD being its end of the channel to the node.

It imports once what policies need; after that it forks a worker in milliseconds whenever the node asks for one. Workers share
the memory of interpreter and libraries with it, page by page, until they write to it.

It forks twice, and the process between ends at once, so that a worker becomes a child of the node, which is a *subreaper*
(``prctl(2)``) meanwhile. The node sees, reaps and outlives its workers as if it had started them; the server's end costs none.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.ipc.channel import Channel, ChannelClosedError
from vla_policy_node.worker import loading
from vla_policy_node.worker.process import die_with_parent, raise_nice_level, run_worker

_THREAD_END_S = 1.0  # a joined thread may take a moment to leave the kernel's list
_FORK_SAFE = {"jemalloc_bg_thd"}
"""Threads, by name, that end and come again around a fork by themselves: jemalloc's, which pyarrow brings."""
_BARE = "--bare"
"""Argument of a server that imports nothing, since it cannot fork: what it imported would be there in vain."""


def main() -> None:
    """Import, say so, and fork workers until the node ends."""
    own_threads = _threads()  # numpy's, which close and come again around a fork by themselves
    die_with_parent()
    node = os.getppid()
    channel = Channel.from_fd(int(sys.argv[1]))
    sources = {} if _BARE in sys.argv else _import_ahead(channel, own_threads)
    channel.send({"type": "imported", "versions": loading.versions()})
    while True:
        try:
            received = channel.receive(None)
        except ChannelClosedError:
            os._exit(0)
        assert received is not None
        _, (worker_channel, output) = received
        if sources and _sources(sources) != sources:
            sys.stderr.write("what was imported has changed on the disk: each worker imports on its own\n")
            sources = {}
        between = os.fork()
        if between == 0:
            _begin_worker(node, channel, worker_channel, output, forks=bool(sources))
        os.close(worker_channel)
        os.close(output)
        os.waitpid(between, 0)


def _import_ahead(channel: Channel, own_threads: int) -> dict[str, int]:
    """Import what the node names. Return the files of all that is imported; none = workers cannot be forked from it."""
    begin, _ = channel.receive(None) or ({}, [])
    if begin["device"] != "cpu":  # no other device can be used on both sides of a fork
        return {}
    importing = threading.Thread(target=_import, args=(begin,))
    importing.start()  # a thread, because a nice level cannot be lowered again
    importing.join()
    if not _only(own_threads):
        sys.stderr.write("an import has started threads: each worker imports on its own\n")
        os.set_inheritable(channel.fileno(), True)
        arguments = ["-m", "vla_policy_node.worker.server", str(channel.fileno()), _BARE]
        os.execv(sys.executable, [sys.executable, *arguments])
    gc.collect()
    gc.freeze()  # a collection in a worker would write to, and so copy, all that is shared
    return _sources()


def _import(begin: dict[str, Any]) -> None:
    raise_nice_level(begin["nice"])
    loading.import_ahead(begin)


def _sources(of: Iterable[str] = ()) -> dict[str, int]:
    """Return when each file ``of`` these, or of all modules that are imported, was changed [ns]; 0 = it is not there."""
    files = of or {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    found = {}
    for file in files:
        try:
            found[file] = Path(file).stat().st_mtime_ns
        except OSError:
            found[file] = 0
    return found


def _threads() -> int:
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            count += (task / "comm").read_text().strip() not in _FORK_SAFE
    return count


def _only(own_threads: int) -> bool:
    """Whether no import has left a thread behind: it would be missing in a worker, with the locks that it holds."""
    end_s = time.monotonic() + _THREAD_END_S
    while (left := _threads()) > own_threads and time.monotonic() < end_s:
        time.sleep(0.001)
    return left <= own_threads


def _begin_worker(node: int, server: Channel, worker_channel: int, output: int, *, forks: bool) -> None:
    """In the process between: fork the worker and end. In the worker: wait until it is the node's child, then work."""
    between = os.getpid()
    try:
        if os.fork():
            os._exit(0)
        os.setsid()  # a group of its own to kill
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        server.close()
        while os.getppid() == between:
            time.sleep(0.0001)
        if os.getppid() != node:
            os._exit(0)  # it has ended meanwhile
        if not forks:
            os.set_inheritable(worker_channel, True)
            os.execv(sys.executable, [sys.executable, "-m", "vla_policy_node.worker.process", str(worker_channel)])
        np.random.seed()  # else all workers would draw the same numbers
        run_worker(worker_channel)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main()
