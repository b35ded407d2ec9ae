# SPDX-License-Identifier: Apache-2.0
"""One worker process, or the server that forks them, as the node sees it: started, listened to, ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vla_policy_node.ipc.channel import Channel, ChannelClosedError
from vla_policy_node.worker.api import PrepareError, WorkerConfig
from vla_policy_node.worker.environment import worker_environment

_LINE_BYTES = 4096
_LINES_PER_S = 50
_TAIL_LINES = 20
FORK_TIMEOUT_S = 30.0
"""A server executes an interpreter where it cannot fork: that takes a while on a cold disk."""
_PR_SET_CHILD_SUBREAPER = 36
_adopting = threading.Lock()


class Child:
    """A child process, its channel and its output. Only the pool's watcher thread calls the ``on_…`` methods.

    Args:
        pid: of the process, a child of this one.
        wait: reaps it and returns its exit code, the negative of the signal that killed it.
        channel: its messages.
        output_fd: what it prints.
        log: called with each line of that.
    """

    def __init__(
        self, pid: int, wait: Callable[[], int], channel: Channel, output_fd: int, log: Callable[[Child, str], None]
    ) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        self.output_fd = output_fd
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        """Messages for the preparation of its bundle; ``{"type": "exit"}`` comes last."""
        self.alive = True
        """False once the process has ended and was reaped."""
        self.ended = threading.Event()
        """Set when the pool has also taken its memory back."""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.waiting = False
        """Its imports are done, and it has nothing to load yet or forks workers."""
        self.versions: dict[str, str] = {}
        """What its interpreter has, once ``waiting``."""
        self.lost_code = ""
        """Why the pool killed it; empty = not reported."""
        self.died_codes: Mapping[int, str] = {}
        """Exit status → what it means, beside WORKER_DIED."""
        self.died_code = "WORKER_DIED"
        """Once it is not ``alive``."""
        self.output_ended = False
        self._wait = wait
        self._log = log
        self._partial = b""
        self._second, self._lines = 0, 0
        self._lock = threading.Lock()

    @classmethod
    def start_server(cls, config: WorkerConfig, log: Callable[[Child, str], None]) -> Child:
        """Start the server that forks workers, on a thread that lives as long as the process should.

        When the *thread* that started it ends, the kernel kills it: that is how ``PR_SET_PDEATHSIG`` works.

        Raises :class:`PrepareError` ``WORKER_START_FAILED``.
        """
        python = config.worker_python or sys.executable
        with _ends() as (ours, theirs, output, their_output):
            try:
                process = subprocess.Popen(
                    [python, "-m", "vla_policy_node.worker.server", str(theirs.fileno())],
                    env=worker_environment(os.environ, config.paths, config.threads),
                    cwd="/",  # -m puts the current folder before the library
                    stdin=subprocess.DEVNULL,
                    stdout=their_output,
                    stderr=their_output,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # no Ctrl-C of the node's terminal, and a group of its own to kill
                )
            except OSError as e:
                raise PrepareError("WORKER_START_FAILED", f"{python}: {e.strerror}") from e
            return cls(process.pid, process.wait, ours, output, log)

    def fork_worker(self, log: Callable[[Child, str], None]) -> Child:
        """Let this server fork a worker; waits for it, so on no thread that others wait for.

        Raises :class:`PrepareError` ``WORKER_START_FAILED``.
        """
        with _adopting_orphans(), _ends() as (ours, theirs, output, their_output):
            try:
                self.channel.send({"type": "fork"}, [theirs.fileno(), their_output])
                theirs.close()  # so that its end is seen here
                started = ours.receive(FORK_TIMEOUT_S)
            except ChannelClosedError as e:
                raise PrepareError("WORKER_START_FAILED", f"process {self.pid}, which forks workers, has failed") from e
            if started is None:
                text = f"process {self.pid} has forked no worker in {FORK_TIMEOUT_S:g} s"
                raise PrepareError("WORKER_START_FAILED", text)
            pid = int(started[0]["pid"])
            return Child(pid, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), ours, output, log)

    def kill(self, code: str = "") -> None:
        """End it and whatever it started, at once."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.alive:  # afterwards the descriptor's number may be another's
                self.lost_code = self.lost_code or code
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def on_message(self) -> dict[str, Any] | None:
        """Return the next message; ``None`` at the end of the channel (then the process is killed: it is of no use)."""
        try:
            received = self.channel.receive(None)
        except (ChannelClosedError, ValueError):  # ValueError: not JSON
            self.kill()
            return None
        if received is None:
            return None
        for fd in received[1]:
            os.close(fd)
        return received[0]

    def on_output(self) -> bool:
        """Pass on what it printed; false if there was nothing."""
        try:
            data = os.read(self.output_fd, 1 << 16)
        except BlockingIOError:
            return False
        self.output_ended = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_BYTES or not data:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            self._print(line[:_LINE_BYTES].decode(errors="replace").rstrip())
        return bool(data)

    def last_messages(self) -> list[dict[str, Any]]:
        """Return the messages that were not read before it ended."""
        messages = []
        with contextlib.suppress(ChannelClosedError, ValueError):
            while (received := self.channel.receive(0.0)) is not None:
                messages.append(received[0])
        return messages

    def reap(self) -> str:
        """Bury the process, and end what it left in its group; return how it ended, for people."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its number is not reused before it is reaped
        while self.on_output():
            pass
        status = self._wait()
        self.channel.close()
        os.close(self.output_fd)
        text = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        if self.tail and status >= 0:
            text += f": {self.tail[-1]}"
        self.died_code = self.died_codes.get(status, self.died_code)
        with self._lock:
            self.alive = False
            os.close(self.pidfd)
        return text

    def finish(self, text: str) -> None:
        """Report the end to its preparation."""
        self.inbox.put({"type": "exit", "text": text})
        self.ended.set()

    def _print(self, line: str) -> None:
        if not line:
            return
        self.tail.append(line)
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= _LINES_PER_S:
            self._log(self, line)
        elif self._lines == _LINES_PER_S + 1:
            self._log(self, f"(more than {_LINES_PER_S} lines a second: the rest of this second is left out)")


@contextlib.contextmanager
def _ends() -> Iterator[tuple[Channel, Channel, int, int]]:
    """Make a channel and a pipe: our ends, which an error closes, and those of a process, which are closed afterwards."""
    ours, theirs = Channel.pair()
    output, their_output = os.pipe()
    os.set_blocking(output, False)
    try:
        yield ours, theirs, output, their_output
    except BaseException:
        ours.close()
        os.close(output)
        raise
    finally:
        theirs.close()
        os.close(their_output)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Become the parent of what is orphaned below this process, meanwhile: of a worker, when what forked it ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with _adopting:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            yield
        finally:
            prctl(_PR_SET_CHILD_SUBREAPER, 0)
