# SPDX-License-Identifier: Apache-2.0
"""A bundle in the interpreter that runs it on the robot, by the same worker code."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
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
_FRAMES_TIMEOUT_S = 600.0


def interpreter_versions(config: WorkerConfig, python: str) -> dict[str, str]:
    """Return the versions of Python and of what policies are made with in the workers' interpreter.

    Raises:
        CheckpointError: ``WORKER_START_FAILED``.
    """
    text = _run(config, python, ["-c", _VERSIONS, *_DISTRIBUTIONS], _TIMEOUT_S, ("WORKER_START_FAILED", python))
    try:
        versions: dict[str, str] = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError) as e:
        raise CheckpointError("WORKER_START_FAILED", python, "no Python interpreter: it prints no versions") from e
    return versions


def write_frames(
    config: WorkerConfig, python: str, folder: Path, count: int, seed: int, out: Path, features: Sequence[str]
) -> None:
    """Let LeRobot in the workers' interpreter write frames of a data set to ``out`` (see ``frames.py``).

    Raises:
        CheckpointError: ``DATASET_UNREADABLE`` with what LeRobot said last.
    """
    arguments = ["-m", "vla_policy_node.desk.frames", str(folder.resolve()), str(count), str(seed), str(out), *features]
    _run(config, python, arguments, _FRAMES_TIMEOUT_S, ("DATASET_UNREADABLE", str(folder)))


def _run(
    config: WorkerConfig, python: str, arguments: Sequence[str], timeout_s: float, refusal: tuple[str, str]
) -> str:
    """Return what a program in the workers' interpreter prints; ``refusal``: code and path if it fails."""
    environment = worker_environment(os.environ, config.paths, config.threads)
    try:
        done = subprocess.run(
            [python, *arguments],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as e:
        last = (getattr(e, "stderr", "") or "").strip().splitlines()[-1:]
        raise CheckpointError(*refusal, last[0] if last else str(e)) from e
    return done.stdout


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
