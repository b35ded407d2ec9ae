# SPDX-License-Identifier: Apache-2.0
"""Gives the robot one task after the other and tells the policy node how each of them ended.

A state machine without threads: :meth:`TaskRunner.tick` looks at the robot and the clock. It outlives a policy node that is
absent, dies in an episode or never answers: every wait has a deadline, and after it the next attempt begins. It may play the
operator too: where the policy has not done a task in time, the scripted expert takes over and does it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M
from vla_sim.expert import expert_chunk, goal_point
from vla_sim.robot import SimRobot
from vla_sim.task import ReachJudge, TaskRules, instruction_for, sample_layout

_REPLY_TIMEOUT_S = 3.0
_RETRY_PAUSE_S = 0.5
_OPERATOR_LOOKS_AHEAD = 5  # control periods: what it takes until the arm follows, and a little more

Array = npt.NDArray[np.float64]

Reply = Callable[[bool, str], None]
"""Called with (accepted, error code), at most once, from the thread that calls ``tick``."""


class EpisodePort(Protocol):
    """The policy node as the runner sees it; ROS implements it in ``ros/``."""

    def available(self) -> bool:
        """Whether the policy node's services are there."""

    def start(self, episode_id: str, instruction: str, timeout_s: float, reply: Reply) -> None:
        """Ask for an episode to be opened."""

    def end(self, episode_id: str, success: bool, reply: Reply) -> None:
        """Say how the episode ended."""

    def take_over(self, on: bool, reply: Reply) -> None:
        """Ask that an operator's actions be commanded; or the policy's again."""


class State(enum.Enum):
    """What the runner is doing."""

    PAUSING = "pausing"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    GIVING_BACK = "giving back"


@dataclass
class Counts:
    """Since the start."""

    started: int = 0
    succeeded: int = 0
    timed_out: int = 0
    abandoned: int = 0  # the policy node did not answer
    corrected: int = 0  # an operator took over


class TaskRunner:
    """One task after the other on one robot. ``boot_id`` makes the episodes' names unique.

    ``operator_after_s``: the expert takes over a task that is not done after this time, and has the task's whole time for it;
    0 = nobody does [s].
    """

    def __init__(
        self,
        robot: SimRobot,
        port: EpisodePort,
        *,
        boot_id: str,
        seed: int,
        rules: TaskRules | None = None,
        pause_s: float = 0.2,
        operator_after_s: float = 0.0,
        colours: Sequence[str] = BLOCK_COLOURS,
    ) -> None:
        self._operator_after_s = operator_after_s
        self.colours = colours
        """That tasks ask for, from the next one on; one that is named twice is asked for twice as often."""
        self.operates = False
        """An operator has taken over, or is about to."""
        self.rules = rules or TaskRules()
        self.counts = Counts()
        self.state = State.PAUSING
        self.instruction = ""
        self.last_result = ""
        self._robot, self._port, self._boot_id, self._pause_s = robot, port, boot_id, pause_s
        self._rng = np.random.default_rng(seed)
        self._next_s = 0.0  # end of the pause, or deadline of the reply awaited
        self._number = 0
        self._colour = BLOCK_COLOURS[0]
        self._judge = ReachJudge(self._colour, self.rules)
        self._seen_s = self._lasted_s = 0.0
        self._success = False

    @property
    def episode_id(self) -> str:
        """Name of the current or last episode."""
        return f"{self._boot_id}-{self._number}"

    @property
    def idle(self) -> bool:
        """No episode is open or about to be."""
        return self.state is State.PAUSING

    def tick(self, now_s: float, motion_enabled: bool) -> None:
        """Look at the robot; ``now_s`` is a monotonic clock [s]. Call it at about the control rate."""
        if self.state is State.RUNNING:
            self._watch(now_s, motion_enabled)
        elif now_s >= self._next_s:
            if self.state is State.PAUSING:
                self._begin(now_s, motion_enabled)
            else:
                self._give_up(now_s)

    def _begin(self, now_s: float, motion_enabled: bool) -> None:
        if not motion_enabled or not self._port.available():
            self._next_s = now_s + _RETRY_PAUSE_S
            return
        self._colour = self.colours[int(self._rng.integers(len(self.colours)))]
        self.instruction = instruction_for(self._colour, self._rng)
        self._robot.place_blocks(sample_layout(self._rng, self._robot.snapshot().arm.tip))
        self._judge, self._lasted_s = ReachJudge(self._colour, self.rules), 0.0
        self._number += 1
        self.state, self._next_s = State.STARTING, now_s + _REPLY_TIMEOUT_S
        # A little more than the task's own timeout: the runner closes the episode itself unless it dies.
        timeout_s = self.rules.timeout_s + self._operator_after_s + 2 * _REPLY_TIMEOUT_S
        self._port.start(self.episode_id, self.instruction, timeout_s, self._reply_for(self._number, self._started))

    def _reply_for(self, number: int, then: Reply) -> Reply:
        def reply(accepted: bool, error_code: str) -> None:
            if number == self._number:  # an answer to an episode given up comes too late to matter
                then(accepted, error_code)

        return reply

    def _started(self, accepted: bool, error_code: str) -> None:
        if self.state is not State.STARTING:
            return
        if accepted:
            self.counts.started += 1
            self.state, self._seen_s = State.RUNNING, self._robot.snapshot().sim_time_s
        else:
            self.state, self._next_s = State.PAUSING, self._next_s - _REPLY_TIMEOUT_S + _RETRY_PAUSE_S

    def _watch(self, now_s: float, motion_enabled: bool) -> None:
        seen = self._robot.snapshot()
        elapsed_s, self._seen_s = seen.sim_time_s - self._seen_s, seen.sim_time_s
        if not motion_enabled:  # no policy can succeed now, and none is to blame
            return
        result = self._judge.update(seen.arm, seen.blocks, elapsed_s)
        self._lasted_s += elapsed_s
        if self._operator_after_s and not self.operates and self._lasted_s >= self._operator_after_s and not result:
            self.operates, self._judge = True, ReachJudge(self._colour, self.rules)
            self.counts.corrected += 1
            self._port.take_over(True, lambda accepted, error_code: None)
            return
        if result is None:
            return
        self._success = result
        self.state, self._next_s = State.ENDING, now_s + _REPLY_TIMEOUT_S
        self._port.end(self.episode_id, result, self._reply_for(self._number, self._ended))

    def _ended(self, accepted: bool, error_code: str) -> None:
        if self.state is not State.ENDING:
            return
        if not accepted:  # closed in the meantime, by a restart of the policy node or by its timeout
            self.counts.abandoned += 1
            self.last_result = f"abandoned ({error_code})"
        elif self._success:
            self.counts.succeeded += 1
            self.last_result = "done"
        else:
            self.counts.timed_out += 1
            self.last_result = "timed out"
        if self.operates:
            self._give_back(self._next_s - _REPLY_TIMEOUT_S)
        else:
            self.state, self._next_s = State.PAUSING, self._next_s - _REPLY_TIMEOUT_S + self._pause_s

    def _give_back(self, now_s: float) -> None:
        """The next episode is the policy's from its begin on; asked for again until somebody answers."""
        self.state, self._next_s = State.GIVING_BACK, now_s + _REPLY_TIMEOUT_S
        self._port.take_over(False, self._reply_for(self._number, self._given_back))

    def _given_back(self, accepted: bool, error_code: str) -> None:
        if self.state is State.GIVING_BACK:
            self.operates = False
            self.state, self._next_s = State.PAUSING, self._next_s - _REPLY_TIMEOUT_S + self._pause_s

    def operator_action(self) -> Array | None:
        """Return what the operator commands now, joints ``[3]`` [rad]; None while the policy acts."""
        if not self.operates:
            return None
        seen = self._robot.snapshot()
        goal = goal_point(seen.blocks[BLOCK_COLOURS.index(self._colour)], BLOCK_SIZE_M)
        action: Array = expert_chunk(seen.arm.position, goal, _OPERATOR_LOOKS_AHEAD)[-1]
        return action

    def _give_up(self, now_s: float) -> None:
        """No answer in time. An episode that may have been opened all the same is closed, as a failure, if anybody listens."""
        if self.state is State.GIVING_BACK:
            self._give_back(now_s)
            return
        self.counts.abandoned += 1
        self.last_result = "abandoned (no answer)"
        if self._port.available():
            self._port.end(self.episode_id, False, lambda accepted, error_code: None)
        if self.operates:
            self._give_back(now_s)
        else:
            self.state, self._next_s = State.PAUSING, now_s + _RETRY_PAUSE_S
