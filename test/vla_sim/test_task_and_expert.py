"""The task can be done, the scripted expert does it calmly, and success means resting on the right block."""

from __future__ import annotations

import numpy as np
import pytest

from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, CONTROL_HZ, Arm
from vla_sim.expert import MAX_JOINT_SPEED_RAD_S, expert_chunk, goal_point
from vla_sim.task import (
    BLOCK_DISTANCE_M,
    REACH_M,
    TIP_CLEARANCE_M,
    Episode,
    ReachJudge,
    TaskRules,
    begin,
    sample_episode,
    sample_layout,
)

DT = 1 / CONTROL_HZ


def fly(arm: Arm, episode: Episode, aim_at: str, rules: TaskRules | None = None) -> tuple[bool, float]:
    """The expert in closed loop; returns (success, largest joint step between two commands)."""
    begin(arm, episode)
    judge = ReachJudge(episode.colour, rules)
    previous, largest = arm.commanded, 0.0
    while True:
        goal = goal_point(arm.blocks()[BLOCK_COLOURS.index(aim_at)], BLOCK_SIZE_M)
        command = expert_chunk(arm.state().position, goal, 1)[0]
        largest = max(largest, float(np.abs(command - previous).max()))
        previous = command
        arm.command(command.tolist())
        arm.step_control_period()
        result = judge.update(arm.state(), arm.blocks(), DT)
        if result is not None:
            return result, largest


def test_the_expert_reaches_every_block_with_bounded_steps() -> None:
    arm, rng = Arm(), np.random.default_rng(1)
    for _ in range(25):
        episode = sample_episode(rng)
        success, largest = fly(arm, episode, episode.colour)
        assert success
        assert largest <= 2.5 * MAX_JOINT_SPEED_RAD_S / CONTROL_HZ


def test_resting_on_another_block_is_no_success() -> None:
    arm, rng = Arm(), np.random.default_rng(2)
    for _ in range(3):
        episode = sample_episode(rng)
        wrong = BLOCK_COLOURS[(BLOCK_COLOURS.index(episode.colour) + 1) % len(BLOCK_COLOURS)]
        success, _ = fly(arm, episode, wrong, TaskRules(timeout_s=4.0))
        assert not success


def test_passing_over_the_block_is_not_resting_on_it() -> None:
    arm, rng = Arm(), np.random.default_rng(3)
    episode = sample_episode(rng)
    assert fly(arm, episode, episode.colour)[0]  # the tip rests there now
    judge = ReachJudge(episode.colour, TaskRules(dwell_s=0.3))
    assert judge.update(arm.state(), arm.blocks(), 0.2) is None
    elsewhere = arm.blocks() + np.array((0.2, 0.0, 0.0))
    assert judge.update(arm.state(), elsewhere, 0.02) is None
    assert judge.update(arm.state(), arm.blocks(), 0.2) is None  # the dwell began anew
    assert judge.update(arm.state(), arm.blocks(), 0.2) is True


def test_time_runs_out() -> None:
    arm, episode = Arm(), sample_episode(np.random.default_rng(4))
    begin(arm, episode)
    judge = ReachJudge(episode.colour, TaskRules(timeout_s=1.0))
    far = arm.blocks() + np.array((0.3, 0.0, 0.0))
    assert [judge.update(arm.state(), far, 0.4) for _ in range(3)] == [None, None, False]


def test_the_expert_continues_itself_from_anywhere_on_its_path() -> None:
    """Chunks asked for later agree with the one before: the ground for judging a policy by its consistency."""
    arm, rng = Arm(), np.random.default_rng(5)
    episode = sample_episode(rng)
    begin(arm, episode)
    goal = goal_point(arm.blocks()[0], BLOCK_SIZE_M)
    chunk = expert_chunk(arm.state().position, goal, 50)
    assert expert_chunk(chunk[9], goal, 40) == pytest.approx(chunk[10:50], abs=1e-9)


def test_layouts_keep_their_distances_and_depend_on_the_seed_only() -> None:
    for seed in range(50):
        tip = np.array([0.3, 0.0])
        layout = sample_layout(np.random.default_rng(seed), tip)
        gaps = np.linalg.norm(layout[:, None] - layout, axis=-1)[np.triu_indices(len(layout), 1)]
        assert gaps.min() >= BLOCK_DISTANCE_M
        assert np.linalg.norm(layout - tip, axis=1).min() >= TIP_CLEARANCE_M
        reach = np.linalg.norm(layout, axis=1)
        assert reach.min() >= REACH_M[0]
        assert reach.max() <= REACH_M[1]
        assert np.array_equal(layout, sample_layout(np.random.default_rng(seed), tip))


def test_an_episode_asks_for_its_colour_in_words() -> None:
    rng = np.random.default_rng(6)
    episodes = [sample_episode(rng) for _ in range(60)]
    assert all(episode.colour in episode.instruction.split() for episode in episodes)
    assert {episode.colour for episode in episodes} == set(BLOCK_COLOURS)
    assert len({episode.instruction for episode in episodes}) > len(BLOCK_COLOURS)
