# SPDX-License-Identifier: Apache-2.0
"""Measured programs: each in a process of its own that speaks JSON lines, with the memory of everything below it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SAMPLE_S = 0.05
_LOOK_AROUND_SAMPLES = 5
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class HostError(RuntimeError):
    """A measured program ended early or says nothing."""


def say(**message: Any) -> None:
    """In a measured program: tell the driver something."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(program: Any) -> None:
    """In a measured program: call the method that each question's ``do`` names, and say what it returns, until input ends."""
    for line in sys.stdin:
        question = json.loads(line)
        say(**getattr(program, question.pop("do"))(**question))


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """``with Host("benchmarks.swap_peers", settings) as host``: a module as a process, asked by :meth:`ask`.

    Args:
        module: speaks JSON lines.
        settings: its one argument.
        environment: variables beside this process's; with another ``python``, all that it gets.
        python: its interpreter; empty = this one.
        directory: where it runs; ``None`` = here.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        *,
        python: str = "",
        directory: Path | None = None,
    ) -> None:
        self.module = module
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**({} if python else os.environ), **(environment or {})},
            cwd=directory,
            start_new_session=True,  # all that it starts can be ended with it
            preexec_fn=_die_with_parent,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._pending = b""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def tell(self, **message: Any) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(message) + "\n").encode())
        self._process.stdin.flush()

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the next line."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise HostError(f"{self.module} said nothing for {timeout_s:.0f} s")
            data = self._process.stdout.read()
            if data == b"":
                raise HostError(f"{self.module} ended with {self._process.wait(10.0)}")
            self._pending += data or b""
        line, _, self._pending = self._pending.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, timeout_s: float = 60.0, **message: Any) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        self.tell(**message)
        return self.hear(timeout_s)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(10.0)

    def close(self) -> None:
        """Let it end by itself (its input ends), else end it; afterwards nothing of it is left."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10.0)
        self._process.stdout.close()


class Beside(ABC):
    """Works in a thread beside what is measured, while ``with`` lasts; what it raises is raised at the end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    @abstractmethod
    def _work(self) -> None:
        """Work until ``_over`` is set."""

    def _guarded(self) -> None:
        try:
            self._work()
        except Exception as e:
            self._failure = e

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(60.0)
        if self._failure is not None and error is None:
            raise self._failure


class PeakMemory(Beside):
    """Largest memory of a process and its descendants while ``with`` lasts [bytes], sampled every 50 ms.

    The sum of their proportional set sizes: a page that n processes map counts 1/n in each. Reading these walks page tables and
    makes the processes late, so count no ticks meanwhile.
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self.peak = 0

    def _work(self) -> None:
        below: list[int] = []
        for sample in itertools.count():
            if sample % _LOOK_AROUND_SAMPLES == 0:  # asking for children takes longer than asking for sizes
                below = descendants(self._pid)
            self.peak = max(self.peak, sum(map(proportional, below)))
            if self._over.wait(_SAMPLE_S):
                return


def proportional(pid: int) -> int:
    """Return a process's proportional set size [bytes]; 0 if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def descendants(pid: int) -> list[int]:
    """Return a process and all below it. Needs a kernel with CONFIG_PROC_CHILDREN, which distributions have."""
    if not Path("/proc/thread-self/children").exists():
        raise HostError("this kernel does not tell a process's children")
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        for path in Path(f"/proc/{current}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                waiting += [int(child) for child in path.read_text().split()]
    return found


def resident(pid: int) -> tuple[int, int, int] | None:
    """Return a process's resident anonymous, shared-memory and file pages [bytes]; ``None`` if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {
        name: int(value.split()[0]) * 1024 for name, _, value in (x.partition(":") for x in lines) if name[:3] == "Rss"
    }
    return (sizes["RssAnon"], sizes["RssShmem"], sizes["RssFile"]) if sizes else None


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, to the nanosecond [s] (``clock_getcpuclockid(3)``)."""
    return time.clock_gettime((~pid << 3) | 2)
