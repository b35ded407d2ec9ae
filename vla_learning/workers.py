# SPDX-License-Identifier: Apache-2.0
"""Work in processes beside each other: a JSON line a job, a JSON line an answer.

Jobs name files and seeds, so a result depends neither on the process that computes it nor on how many there are.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vla_evidence.analysis import Tick
from vla_learning.errors import LearningError

Job = dict[str, Any]
"""``job`` names a function of the module, the others are its arguments."""
_TOP = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Return the environment of a process beside others: of torch's threads one, and this package's modules."""
    path = f"{_TOP}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def cores() -> int:
    """Return how many processes may run at a time."""
    return len(os.sched_getaffinity(0))


class Workers:
    """Processes that do the jobs of a module; they end with the ``with``.

    Args:
        module: a program that calls :func:`serve`.
        count: of processes.
        tick: called with 1 when a job is done.
    """

    def __init__(self, module: str, count: int, tick: Tick) -> None:
        self._module, self._tick = module, tick
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def do(self, jobs: Sequence[Job]) -> list[Any]:
        """Return what each job gives, in their order.

        Raises:
            LearningError: ``SIMULATION_FAILED``: a process ended; what it said is on standard error.
        """
        with ThreadPoolExecutor(len(self._processes)) as threads:
            return list(threads.map(self._one, jobs))

    def _one(self, job: Job) -> Any:
        process = self._idle.get()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        self._idle.put(process)
        if not answer:
            raise LearningError("SIMULATION_FAILED", self._module, f"the process of a job ended ({job['job']})")
        self._tick(1)
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.communicate()


def serve(jobs: Mapping[str, Callable[..., Any]]) -> None:
    """Do jobs from standard input until it ends; answers go to standard output, whatever else is said to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        job = json.loads(line)
        answer = jobs[job.pop("job")](**job)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
