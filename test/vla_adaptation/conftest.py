# SPDX-License-Identifier: Apache-2.0
"""A small base, and a robot that runs it and adapts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.adaptive_robot import AdaptiveRobot, Made, Trained
from support.bad_episodes import write_bad_episodes
from support.tiny_vla_bundles import make

from vla_sim.checkpoint_server import CheckpointServer


@pytest.fixture(scope="package")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained ``tiny_vla`` bundle: two joints, a picture of 32×32, chunks of 20 actions at 20 Hz."""
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1.0.0"
    folder.parent.mkdir()
    make(folder, 0.0)
    return folder


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    with CheckpointServer(folder) as server:
        robot = AdaptiveRobot(folder / "robot", server, tiny_base)
        try:
            robot.record()
            write_bad_episodes(robot.episodes)
            robot.start()
            status = robot.until_standing("COMMITTED")
            return Trained(status, robot.folder, robot.committed(), len(robot.offers))
        finally:
            robot.close()


@pytest.fixture
def make_robot(tmp_path: Path, tiny_base: Path) -> Iterator[Made]:
    """Makes the test's robot."""
    (tmp_path / "registry").mkdir()
    made: list[AdaptiveRobot] = []
    with CheckpointServer(tmp_path / "registry") as server:

        def make_one(trained: Trained | None = None, **settings: Any) -> AdaptiveRobot:
            folder = tmp_path / "robot"
            if trained is not None:
                shutil.copytree(trained.robot, folder, symlinks=True)
                state = folder / "adaptation" / "state.json"
                state.write_text(state.read_text().replace(str(trained.robot), str(folder)))
            robot = AdaptiveRobot(folder, server, tiny_base, **settings)
            made.append(robot)
            return robot

        try:
            yield make_one
        finally:
            for robot in made:
                robot.close()


@pytest.fixture
def robot(make_robot: Made) -> AdaptiveRobot:
    """A robot that has never learned anything."""
    return make_robot()


@pytest.fixture
def adapted(make_robot: Made, trained: Trained) -> AdaptiveRobot:
    """A robot that runs an adapter of its own."""
    return make_robot(trained)
