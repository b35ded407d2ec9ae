# SPDX-License-Identifier: Apache-2.0
"""Update engines in processes of their own, to be killed: ``with EngineRuns() as runs: runs.run(job)``.

One process imports everything and forks one child for each job, so that a run costs no imports. Jobs and results are JSON lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Job:
    """Run an engine until the update is final (or ``until_state`` is reached, then stop cleanly or hang to be killed)."""

    config: dict[str, Any]
    policy: str
    offer: dict[str, Any] | None = None
    wait_for: str = ""  # update_id that must become final
    until_state: str = ""
    crash_at: str = ""
    crash_log: str = ""
    bad_version: str = ""  # breaks a hard limit whenever it acts
    silent_version: str = ""  # gives no score: its trial stays open
    urgent: dict[str, Any] | None = None  # offered in every TRIAL
    timeout_s: float = 60.0


class EngineRuns:
    """The process that forks the runs."""

    def __enter__(self) -> EngineRuns:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'test'}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.engine_runs"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60.0)
        self._process.stdout.close()

    def run(self, job: Job) -> int:
        """Run one engine to its end; return its exit code, negative for a signal."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job.__dict__) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the forking process has died"
        return int(json.loads(line)["code"])


def _serve() -> None:
    import requests  # noqa: F401  (what the children need is imported once, here)

    import support.simulated_policy  # noqa: F401
    import vla_ota_manager.engine  # noqa: F401

    for line in sys.stdin:
        job = Job(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = _run(job)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


def _run(job: Job) -> int:
    """Exit codes: 0 done and stopped cleanly, 3 timed out, 4 could not be stopped."""
    from support.filesystems import CrashingFilesystem
    from support.simulated_policy import SimulatedPolicy
    from vla_ota_manager.config import OtaConfig
    from vla_ota_manager.engine import UpdateEngine
    from vla_ota_manager.records import Score, Status, Update

    policy = SimulatedPolicy(Path(job.policy))

    def on_status(status: Status) -> None:
        policy.hear_manager(status.trial_digest, status.committed_digest)

    config = OtaConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in job.config.items()})
    filesystem = CrashingFilesystem(job.crash_at, job.crash_log)
    engine = UpdateEngine(config, policy, on_status=on_status, filesystem=filesystem)
    engine.start()
    if job.offer is not None:
        engine.offer(Update(**job.offer))
    deadline = time.monotonic() + job.timeout_s
    while time.monotonic() < deadline:
        outcome = engine.outcome(job.wait_for) if job.wait_for else None
        settled = outcome is not None and outcome.final and not engine.store.state.activation_due
        if settled or (job.until_state and engine.status().state_name == job.until_state):
            return 0 if engine.stop() else 4
        if job.urgent is not None and engine.status().state_name == "TRIAL":
            engine.offer(Update(**job.urgent))
        snapshot = policy.status()
        if snapshot is not None and snapshot.generation and snapshot.active_version != job.silent_version:
            source = "hard_limit" if snapshot.active_version == job.bad_version else "tce"
            score = Score(source, 0.1, time.time(), snapshot.active_version, snapshot.generation)
            engine.on_score(score)
        time.sleep(0.01)
    print(engine.status(), file=sys.stderr)
    return 3


if __name__ == "__main__":
    _serve()
