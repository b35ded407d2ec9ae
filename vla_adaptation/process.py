# SPDX-License-Identifier: Apache-2.0
"""The training process as the node sees it: started, stopped in the middle of whatever it does, let on, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from vla_adaptation.job import LOG
from vla_policy_node.worker.environment import worker_environment

_BURST_S = 0.5
_TICKS_S = os.sysconf("SC_CLK_TCK")


class Throttle:
    """Says when a process has had its share of CPU time: a budget that fills with time and never holds more than a burst."""

    def __init__(self, share: float) -> None:
        self._share, self._budget_s = share, _BURST_S
        self._now_s: float | None = None
        self._used_s = 0.0

    def exceeded(self, now_s: float, used_s: float) -> bool:
        """Whether it has to wait; ``used_s``: CPU time since its start [s]."""
        if self._now_s is not None:
            self._budget_s += self._share * max(0.0, now_s - self._now_s) - (used_s - self._used_s)
            self._budget_s = min(self._budget_s, _BURST_S)
        self._now_s, self._used_s = now_s, used_s
        return self._budget_s < 0.0


class TrainingProcess:
    """One process. It dies with the thread that started it (``PR_SET_PDEATHSIG``, which it sets itself)."""

    def __init__(self, job: Path, python: str, threads: int) -> None:
        """Start it. Raises OSError."""
        self._lock = threading.Lock()
        self._stopped = False
        with (job / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", "vla_adaptation.training", str(job), str(os.getpid())],
                env=worker_environment(os.environ, (), threads),
                cwd="/",  # -m puts the current folder before the library
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # no Ctrl-C of the node's terminal, and a group of its own
            )
        self.pid = self._process.pid

    @property
    def stopped(self) -> bool:
        """Whether it was told to stand still."""
        return self._stopped

    def stop(self, stopped: bool) -> None:
        """Let it stand still at once (SIGSTOP), or go on."""
        with self._lock:
            if self._process.returncode is None and stopped is not self._stopped:
                self._signal(signal.SIGSTOP if stopped else signal.SIGCONT)
                self._stopped = stopped

    def cpu_s(self) -> float:
        """CPU time since its start, of all its threads [s]."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICKS_S

    def ended(self) -> str | None:
        """Return how it ended, for people; ``None``: it has not."""
        with self._lock:
            status = self._process.poll()
        if status is None:
            return None
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"

    def kill(self) -> None:
        """End it at once, also while it stands still."""
        with self._lock:
            if self._process.poll() is None:
                self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
