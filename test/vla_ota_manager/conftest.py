# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ota import Robot

from vla_sim.checkpoint_server import CheckpointServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CheckpointServer]:
    root = tmp_path / "registry"
    root.mkdir()
    with CheckpointServer(root) as running:
        yield running


@pytest.fixture
def robot(tmp_path: Path, server: CheckpointServer) -> Iterator[Robot]:
    robot = Robot(tmp_path, server)
    yield robot
    robot.stop()


@pytest.fixture
def updated(robot: Robot) -> Robot:
    """1.0.0 was committed, 1.1.0 is."""
    robot.begin()
    robot.install("1.1.0")
    return robot


@pytest.fixture
def ready(robot: Robot, caplog: pytest.LogCaptureFixture) -> Robot:
    """1.0.0 is committed and acts, 1.1.0 is in the registry, and a trial stays open."""
    caplog.set_level(logging.INFO, "vla_ota_manager")
    robot.settings = {"min_trial_chunks": 1000, "swap_timeout_s": 0.3}  # so long each wait for a boundary
    robot.begin()
    return robot
