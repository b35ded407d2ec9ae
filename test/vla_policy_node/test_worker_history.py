# SPDX-License-Identifier: Apache-2.0
"""A policy with a history of observations is shown what it was trained on: whole periods apart, and of one episode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import JOINTS
from support.refusals import refused
from support.scripted import scripted_bundle
from support.worker_robot import WorkerRobot

from vla_checkpoint import Golden
from vla_policy_node.ipc.layouts import HISTORY

RATE_HZ = 25.0
MS = 1_000_000
PERIOD_NS = 40 * MS


@pytest.fixture
def robot() -> Iterator[WorkerRobot]:
    with WorkerRobot(spare=False) as robot:
        yield robot


def bundle(path: Path, **changes: Any) -> Path:
    scripted_bundle(path, **{"rate_hz": RATE_HZ, "n_obs_steps": 3, "repeats": True, "golden": False, **changes})
    return path


def shown(robot: WorkerRobot, generation: Any, history: int = 3) -> list[float]:
    """Ask for a chunk; return the state (its first number) of each observation that the policy saw, oldest first."""
    answer = robot.answer(generation, robot.request(generation))
    assert answer is not None and answer["error"] == ""
    return [float(state) for state in answer["actions"][:history, 0]]


def observe(robot: WorkerRobot, begin_ns: int, states: dict[float, float], **more: Any) -> None:
    """``states``: time after ``begin_ns`` [ms] → state."""
    for at_ms, state in states.items():
        robot.observe(state=(state, 0.0), written_ns=begin_ns + int(at_ms * MS), **more)


def test_a_chunk_is_made_from_the_newest_observation_and_those_whole_periods_before_it(
    robot: WorkerRobot, tmp_path: Path
) -> None:
    generation = robot.pool.prepare(bundle(tmp_path / "a"))
    assert generation.spec.history == 3
    now = time.monotonic_ns()
    # 40 ms apart, give or take, and two records between (a change of motion_enabled)
    observe(robot, now, {0: 1, 43: 2, 60: 9, 79: 3, 100: 9, 121: 4})
    assert shown(robot, generation) == [2, 3, 4]
    observe(robot, now, {160: 5})
    assert shown(robot, generation) == [3, 4, 5]


def test_an_episode_begins_with_its_oldest_observation_repeated(robot: WorkerRobot, tmp_path: Path) -> None:
    generation = robot.pool.prepare(bundle(tmp_path / "a"))
    now = time.monotonic_ns()
    observe(robot, now, {0: 1, 40: 2, 80: 3}, episode=1)
    observe(robot, now, {120: 4}, episode=2)
    assert shown(robot, generation) == [4, 4, 4]
    observe(robot, now, {160: 5}, episode=2)
    assert shown(robot, generation) == [4, 4, 5]
    observe(robot, now, {200: 6}, episode=2)
    assert shown(robot, generation) == [4, 5, 6]


def test_an_incomplete_observation_is_not_shown(robot: WorkerRobot, tmp_path: Path) -> None:
    generation = robot.pool.prepare(bundle(tmp_path / "a"))
    now = time.monotonic_ns()
    observe(robot, now, {0: 1, 40: 2})
    observe(robot, now, {70: 9}, valid=0)
    observe(robot, now, {80: 3})
    assert shown(robot, generation) == [1, 2, 3]


def test_a_long_history_fits_and_a_longer_one_is_refused_as_is_one_at_a_rate_at_which_nothing_is_kept(
    robot: WorkerRobot, tmp_path: Path
) -> None:
    generation = robot.pool.prepare(bundle(tmp_path / "a", n_obs_steps=HISTORY))
    observe(robot, time.monotonic_ns(), {40.0 * i: i for i in range(20)})
    assert shown(robot, generation, HISTORY) == [14, 15, 16, 17, 18, 19]
    for number, changes in enumerate(({"n_obs_steps": HISTORY + 1}, {"rate_hz": 51.0})):
        with refused("HISTORY_UNSUPPORTED"):
            robot.pool.prepare(bundle(tmp_path / f"bad{number}", **changes))


def test_a_policy_that_leaves_its_history_out_of_account_is_refused(robot: WorkerRobot, tmp_path: Path) -> None:
    with refused("SPEC_MISMATCH"):
        robot.pool.prepare(bundle(tmp_path / "a", spec={"history": 1}))


def test_a_golden_observation_is_the_first_of_an_episode(robot: WorkerRobot, tmp_path: Path) -> None:
    action = np.full((1, 100, 2), 0.25, np.float32)
    action[0, :3] = 0.5  # what it was shown, three times
    golden = Golden({"observation.state": np.full((1, 2), 0.5, np.float32)}, action, ("golden",), np.full(2, 1e-4))
    still = {"amplitude": 0.0, "offset": 0.25, "golden": golden}
    assert robot.pool.prepare(bundle(tmp_path / "a", **still)).timings.golden_s > 0
    action[0, 0] = 0.4
    with refused("GOLDEN_MISMATCH"):
        robot.pool.prepare(bundle(tmp_path / "b", **still))


def test_a_policy_that_draws_random_numbers_is_replayed_with_the_seed_of_its_golden_file(
    robot: WorkerRobot, tmp_path: Path
) -> None:
    noise = np.random.default_rng(11).standard_normal((100, len(JOINTS)), np.float32)
    expected = np.stack([0.25 + np.float32(0.1) * noise] * 2)  # seeded anew for each of the two
    states = {"observation.state": np.zeros((2, 2), np.float32)}
    for seed, code in ((11, None), (12, "GOLDEN_MISMATCH"), (None, "GOLDEN_MISMATCH")):
        golden = Golden(states, expected, ("golden",) * 2, np.full(2, 1e-5, np.float32), seed)
        path = bundle(
            tmp_path / str(seed), n_obs_steps=1, repeats=False, noise=0.1, amplitude=0.0, offset=0.25, golden=golden
        )
        if code is None:
            robot.pool.prepare(path)
        else:
            with refused(code):
                robot.pool.prepare(path)
