# SPDX-License-Identifier: Apache-2.0
"""A small base, and a robot that runs it and adapts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.adaptive_robot import AdaptiveRobot
from support.tiny_vla_bundles import make

from vla_sim.checkpoint_server import CheckpointServer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained ``tiny_vla`` bundle: two joints, a picture of 32×32, chunks of 20 actions at 20 Hz."""
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1.0.0"
    folder.parent.mkdir()
    make(folder, 0.0)
    return folder


@pytest.fixture
def robot(tmp_path: Path, tiny_base: Path) -> Iterator[AdaptiveRobot]:
    with CheckpointServer(tmp_path / "registry") as server:
        made = AdaptiveRobot(tmp_path / "robot", server, tiny_base)
        try:
            yield made
        finally:
            made.close()
