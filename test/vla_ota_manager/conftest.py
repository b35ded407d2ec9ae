# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

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
