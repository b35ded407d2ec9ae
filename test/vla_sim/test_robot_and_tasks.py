"""The simulated robot guards itself, and the task runner outlives every kind of silence of the policy node."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from support.waits import wait_for

from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, HOME_RAD
from vla_sim.errors import CommandRefusedError, SimSettingError
from vla_sim.expert import expert_chunk, goal_point
from vla_sim.robot import _LARGEST_CATCH_UP_S, SimRobot
from vla_sim.settings import SimSettings
from vla_sim.task import TaskRules
from vla_sim.task_runner import Reply, State, TaskRunner


@pytest.fixture
def robot() -> Iterator[SimRobot]:
    robot = SimRobot(command_timeout_s=0.2)
    robot.start()
    yield robot
    robot.close()


def test_it_follows_commands_and_stays_put_when_they_stop(robot: SimRobot) -> None:
    assert robot.snapshot().holding
    target, held = np.add(HOME_RAD, (0.3, 0.0, 0.0)), set[bool]()

    def arrived() -> bool:
        robot.command(target.tolist())
        held.add(robot.snapshot().holding)
        return bool(abs(robot.snapshot().arm.position[0] - target[0]) < 0.01)

    wait_for(arrived)
    assert False in held
    wait_for(lambda: robot.snapshot().holding)
    before = robot.snapshot()
    wait_for(lambda: robot.snapshot().sim_time_s > before.sim_time_s + 0.2)
    assert robot.snapshot().arm.position == pytest.approx(before.arm.position, abs=0.01)


def test_a_commander_that_dies_in_motion_leaves_the_arm_near_where_it_was(robot: SimRobot) -> None:
    robot.command([HOME_RAD[0] + 1.2, HOME_RAD[1], HOME_RAD[2]])  # one far command, then silence
    wait_for(lambda: robot.snapshot().holding)
    stopped = robot.snapshot().arm.position
    wait_for(lambda: robot.snapshot().arm.tip_speed < 0.01)
    assert robot.snapshot().arm.position == pytest.approx(stopped, abs=0.2)


def test_a_refused_command_does_not_count_as_one(robot: SimRobot) -> None:
    with pytest.raises(CommandRefusedError):
        robot.command([0.0, float("nan"), 0.0])
    assert robot.snapshot().holding


def test_time_passes_at_the_wall_clocks_pace(robot: SimRobot) -> None:
    began, first = time.monotonic(), robot.snapshot()
    wait_for(lambda: robot.snapshot().sim_time_s > first.sim_time_s + 0.5)
    now = robot.snapshot()
    simulated = now.sim_time_s - first.sim_time_s + now.skipped_s - first.skipped_s
    assert simulated <= time.monotonic() - began + 0.1


def test_time_that_it_has_slept_is_not_made_up_for(robot: SimRobot) -> None:
    robot.asleep = True
    time.sleep(2.0 * _LARGEST_CATCH_UP_S)
    robot.asleep = False
    wait_for(lambda: robot.snapshot().skipped_s > 0.0)


class FakePort:
    """The policy node's services; by default they answer at once."""

    def __init__(self) -> None:
        self.there, self.answers, self.accepts = True, True, True
        self.open: str | None = None
        self.calls: list[tuple[str, ...]] = []

    def available(self) -> bool:
        return self.there

    def start(self, episode_id: str, instruction: str, timeout_s: float, reply: Reply) -> None:
        self.calls.append(("start", episode_id, instruction))
        if self.answers:
            self.open = episode_id if self.accepts else None
            reply(self.accepts, "" if self.accepts else "EPISODE_OPEN")

    def end(self, episode_id: str, success: bool, reply: Reply) -> None:
        self.calls.append(("end", episode_id, str(success)))
        if self.answers:
            known, self.open = self.open == episode_id, None
            reply(known, "" if known else "NO_EPISODE")

    def take_over(self, on: bool, reply: Reply) -> None:
        self.calls.append(("take_over", str(on)))
        if self.answers:
            reply(True, "")

    def ends(self) -> list[str]:
        return [call[2] for call in self.calls if call[0] == "end"]


class Scene:
    """A runner on a robot whose time is stepped by the test, not by a clock."""

    def __init__(self, timeout_s: float = 6.0, operator_after_s: float = 0.0) -> None:
        self.robot, self.port = SimRobot(command_timeout_s=1e9), FakePort()
        rules = TaskRules(timeout_s=timeout_s)
        self.runner = TaskRunner(
            self.robot,
            self.port,
            boot_id="boot",
            seed=1,
            rules=rules,
            pause_s=0.1,
            operator_after_s=operator_after_s,
        )
        self.now = 100.0

    def run(self, seconds: float, drive: bool = False, motion_enabled: bool = True) -> None:
        for _ in range(round(seconds * 50)):
            if drive and self.runner.state is State.RUNNING:
                self._drive()
            self.robot._arm.step(10)
            self.robot._steps += 10
            self.now += 0.02
            self.runner.tick(self.now, motion_enabled)
            action = self.runner.operator_action()
            if action is not None:
                self.robot.command(action.tolist())

    def _drive(self) -> None:
        seen = self.robot.snapshot()
        colour = next(c for c in BLOCK_COLOURS if c in self.runner.instruction)
        goal = goal_point(seen.blocks[BLOCK_COLOURS.index(colour)], BLOCK_SIZE_M)
        self.robot.command(expert_chunk(seen.arm.position, goal, 1)[0].tolist())


def test_tasks_ask_for_the_colours_that_are_set_from_the_next_task_on() -> None:
    scene = Scene(timeout_s=0.2)
    for colours in (("red", "blue"), ("yellow",)):
        scene.runner.colours = colours
        scene.run(0.5)
        asked: set[str] = set()
        for _ in range(12):
            scene.run(0.4)
            asked |= {colour for colour in BLOCK_COLOURS if colour in scene.runner.instruction}
        assert asked == set(colours)


@pytest.mark.parametrize("colours", [(), ("red", "pink")])
def test_colours_that_no_block_has_are_refused(colours: tuple[str, ...]) -> None:
    with pytest.raises(SimSettingError, match="red, green, blue, yellow"):
        SimSettings(task_colours=colours)


def test_tasks_that_are_done_are_reported_as_successes_one_after_the_other() -> None:
    scene = Scene()
    scene.run(15.0, drive=True)
    assert scene.runner.counts.succeeded >= 3
    assert set(scene.port.ends()) == {"True"}
    ids = [call[1] for call in scene.port.calls if call[0] == "start"]
    assert len(set(ids)) == len(ids)


def test_a_task_that_is_not_done_in_time_has_failed() -> None:
    scene = Scene(timeout_s=1.0)
    scene.run(2.6)
    assert scene.port.ends() == ["False", "False"]
    assert scene.runner.counts.timed_out == 2


def test_an_operator_takes_over_what_is_not_done_in_time_does_it_and_gives_back_before_the_next_task() -> None:
    scene = Scene(operator_after_s=1.0)
    scene.run(15.0)
    assert set(scene.port.ends()) == {"True"} and scene.runner.counts.corrected >= 3
    kinds = [(call[0], call[1] if call[0] == "take_over" else "") for call in scene.port.calls]
    one = [("start", ""), ("take_over", "True"), ("end", ""), ("take_over", "False")]
    assert kinds[:8] == one * 2


def test_an_operator_commands_what_the_arm_follows_at_once() -> None:
    """Of commands far ahead of the arm a policy would learn to jump when it begins a chunk."""
    scene = Scene(operator_after_s=0.5)
    leads = []
    for _ in range(500):
        arm = scene.robot.snapshot().arm
        scene.run(0.02)
        if scene.runner.operates:
            leads.append(np.abs(scene.robot._arm.commanded - arm.position).max())
    assert scene.runner.counts.corrected >= 2
    assert 0.0 < max(leads) < 0.06


def test_an_operator_is_not_forgotten_by_a_policy_node_that_does_not_answer() -> None:
    scene = Scene(operator_after_s=1.0)
    scene.run(1.5)
    assert scene.runner.operates
    scene.port.answers = False
    scene.run(20.0)
    assert scene.runner.state is State.GIVING_BACK and scene.port.calls[-1] == ("take_over", "False")
    scene.port.answers = True
    scene.run(10.0)
    assert scene.runner.counts.started > 1


def test_without_a_policy_node_it_waits_and_begins_when_there_is_one() -> None:
    scene = Scene()
    scene.port.there = False
    scene.run(3.0)
    assert scene.port.calls == []
    scene.port.there = True
    scene.run(1.0)
    assert scene.runner.state is State.RUNNING


def test_a_start_that_is_never_answered_is_given_up_and_closed() -> None:
    scene = Scene()
    scene.port.answers = False
    scene.run(4.0)
    first = scene.port.calls[0][1]
    assert ("end", first, "False") in scene.port.calls
    scene.port.answers = True
    scene.run(4.0)
    assert scene.runner.state is State.RUNNING
    assert scene.runner.episode_id != first


def test_an_end_that_is_never_answered_does_not_stop_the_tasks() -> None:
    scene = Scene(timeout_s=0.5)
    scene.run(0.3)
    scene.port.answers = False
    scene.run(4.0)
    scene.port.answers = True
    scene.run(5.0)
    assert scene.runner.counts.abandoned >= 1
    assert scene.runner.counts.started >= 2


def test_a_refused_start_is_tried_again_later() -> None:
    scene = Scene()
    scene.port.accepts = False
    scene.run(2.0)
    starts = [call for call in scene.port.calls if call[0] == "start"]
    assert 2 <= len(starts) <= 5
    assert scene.runner.counts.started == 0


def test_an_episode_closed_by_a_restart_of_the_policy_node_counts_for_nobody() -> None:
    scene = Scene(timeout_s=0.5)
    scene.run(0.3)
    scene.port.open = None
    scene.run(0.5)
    assert (scene.runner.counts.abandoned, scene.runner.counts.timed_out) == (1, 0)


def test_while_motion_is_disabled_no_time_is_held_against_the_policy() -> None:
    scene = Scene(timeout_s=1.0)
    scene.run(0.5)
    scene.run(5.0, motion_enabled=False)
    assert scene.port.ends() == []
    scene.run(1.0)
    assert scene.port.ends() == ["False"]
    scene.run(2.0, motion_enabled=False)
    assert scene.port.ends() == ["False"]
