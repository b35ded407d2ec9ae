# SPDX-License-Identifier: Apache-2.0
"""A bundle in the interpreter that runs it on the robot, by the same worker code."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vla_checkpoint.errors import CheckpointError
from vla_policy_node.desk.fit import coded
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import observation_layout
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import Generation, WorkerConfig
from vla_policy_node.worker.environment import worker_environment
from vla_policy_node.worker.plan import Recording
from vla_policy_node.worker.pool import WorkerPool

_DISTRIBUTIONS = ("lerobot", "torch", "numpy")
_VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_TIMEOUT_S = 60.0


def interpreter_versions(config: WorkerConfig, python: str) -> dict[str, str]:
    """Return the versions of Python and of what policies are made with in the workers' interpreter.

    Raises:
        CheckpointError: ``WORKER_START_FAILED``.
    """
    environment = worker_environment(os.environ, config.paths)
    command = [python, "-c", _VERSIONS, *_DISTRIBUTIONS]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        versions: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        last = (getattr(e, "stderr", "") or "").strip().splitlines()[-1:]
        raise CheckpointError("WORKER_START_FAILED", python, last[0] if last else str(e)) from e
    return versions


@contextmanager
def prepared(
    config: WorkerConfig, folder: Path, features: Mapping[str, FeatureSpec], recording: Recording | None = None
) -> Iterator[Generation]:
    """Load a bundle in a worker of its own, which replays or records its golden observations, and end it with the ``with``.

    Args:
        config: how the worker is started.
        folder: the bundle.
        features: what the robot observes.
        recording: see :meth:`WorkerPool.prepare`.

    Raises:
        CheckpointError: with the worker's code.
    """
    observation = Arena.create(observation_layout(features, 1), name="vla_ota_desk")
    pool = WorkerPool(config, observation, features, lambda event: None)
    try:
        pool.start()
        with coded(str(folder)):
            generation = pool.prepare(folder, recording=recording)
        yield generation
    finally:
        pool.close()
        observation.close()
