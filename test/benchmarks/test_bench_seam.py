# SPDX-License-Identifier: Apache-2.0
"""What the figures of a seam rest on: the record of a run, played again, gives every action and finds every swap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.control_rig import STEP, Rig

from benchmarks.seam.arm import ChunkRecord
from benchmarks.seam.replayed import RecordError, switches
from vla_policy_node.control.client import Tick

HORIZON, EXECUTE, BLEND = 40, 10, 3


class Recorded:
    """A rig whose ticks and chunks are kept as the benchmark keeps them."""

    def __init__(self) -> None:
        self.rig = Rig(blend=BLEND)
        self.ticks: list[Tick] = []
        self.chunks: list[ChunkRecord] = []

    def add(self, generation: int, actions: Any) -> None:
        def policy(plan: int) -> Any:
            made = np.add(actions(plan), (0.0, 1e-5 * plan)).astype(np.float32)  # no two chunks are alike
            self.chunks.append(ChunkRecord(generation, plan, EXECUTE, made))
            return made

        self.rig.add(generation, policy, horizon=HORIZON, execute=EXECUTE)

    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            command, loop = self.rig.tick(), self.rig.loop
            if command is not None:
                action = np.full(2, np.nan) if loop.policy_action is None else loop.policy_action
                self.ticks.append(Tick(self.rig.now_ns, command, action, loop.generation, False, 0, 0))


@pytest.fixture
def run() -> Any:
    """A run with one swap; the plans are one for a fade from ``boundary + 4`` on, which is returned too."""
    recorded = Recorded()
    try:
        rig = recorded.rig
        recorded.add(1, lambda plan: np.outer(plan + np.arange(HORIZON), (0.001, 0.0)))
        rig.activate(1, "NOW")
        rig.begin()
        recorded.tick(5)
        while rig.loop.queue.boundary - rig.loop.queue.plan != 8:
            recorded.tick(1)
        meet = rig.loop.queue.boundary + 4

        def actions(plan: int) -> Any:
            at = plan + np.arange(HORIZON)
            away = np.maximum(0, np.maximum(meet - at, at - meet - BLEND))
            return np.outer(0.001 * at + 0.005 * away, (1.0, 0.0))

        recorded.add(2, actions)
        rig.activate(2, "CHUNK")
        recorded.tick(40)
        yield recorded, meet
    finally:
        recorded.rig.close()


def test_a_swap_is_found_with_its_boundary_and_the_jump_at_both_ticks(run: Any) -> None:
    recorded, meet = run
    (switch,) = switches(recorded.ticks, recorded.chunks, recorded.rig.contract)
    assert (switch.plan, switch.boundary, switch.generation) == (meet, meet - 4, 2)
    assert switch.chosen.apart == pytest.approx(0.0, abs=1e-3)
    assert switch.at_boundary.apart == pytest.approx(0.02, abs=1e-6)
    assert 0.0 < switch.chosen.change < switch.at_boundary.change < STEP


def test_an_action_that_no_chunk_gives_is_an_error(run: Any) -> None:
    recorded, _ = run
    recorded.ticks[20].policy_action[0] += 1e-9
    with pytest.raises(RecordError, match="no chunk on record"):
        switches(recorded.ticks, recorded.chunks, recorded.rig.contract)
