# SPDX-License-Identifier: Apache-2.0
"""The action ``run_policy``: one episode, from its start to its outcome."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from rclpy.action.server import ServerGoalHandle
from vla_ota.action import RunPolicy
from vla_ota.msg import EpisodeOutcome

from vla_policy_node.engine import PolicyEngine
from vla_policy_node.episodes import Episode, EpisodeError
from vla_policy_node.errors import ControlError, PolicyNodeError, duration

_POLL_S = 0.1
_OUTCOME_S = 5.0
"""How long the outcome may come after the end of its episode, which another thread tells [s]."""
_INACTIVE = ("INACTIVE", "the node is not active: nothing is commanded, so the policy cannot run")


def require(engine: PolicyEngine | None) -> PolicyEngine:
    """Return the engine. Raises ControlError NOT_CONFIGURED where there is none."""
    if engine is None:
        raise ControlError("NOT_CONFIGURED", "the node is not configured")
    return engine


def run_policy(
    goal: ServerGoalHandle,
    current_engine: Callable[[], PolicyEngine | None],
    open_episode: Callable[[PolicyEngine, str, str, float], Episode],
    outcome_of: Callable[[str], EpisodeOutcome | None],
) -> RunPolicy.Result:
    """Open an episode, wait for its end, and end the goal as the episode did. Blocks.

    Args:
        goal: names the episode, the instruction and the longest duration.
        current_engine: ``None`` once the node was cleaned up.
        open_episode: called with engine, episode_id, instruction and timeout [s].
        outcome_of: returns the outcome of an episode that has ended.
    """
    asked = goal.request
    try:
        engine = require(current_engine())
        duration("max_duration_s", asked.max_duration_s, 0.0)
        if not engine.enabled:
            raise ControlError(*_INACTIVE)
        episode = open_episode(engine, asked.episode_id, asked.instruction, asked.max_duration_s)
    except PolicyNodeError as e:
        goal.abort()
        return RunPolicy.Result(error_code=e.code, message=str(e))
    _wait_for_its_end(goal, episode, engine, current_engine)
    stopped = not engine.enabled or current_engine() is not engine
    deadline_s = time.monotonic() + _OUTCOME_S
    while (outcome := outcome_of(episode.episode_id)) is None and not stopped and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return _finish(goal, outcome, stopped=stopped)


def _wait_for_its_end(
    goal: ServerGoalHandle, episode: Episode, engine: PolicyEngine, current_engine: Callable[[], PolicyEngine | None]
) -> None:
    name = episode.episode_id
    while (snapshot := engine.snapshot()).episode_id == name and current_engine() is engine:
        if goal.is_cancel_requested or not engine.enabled:
            cancelled = bool(goal.is_cancel_requested)
            with contextlib.suppress(EpisodeError):  # somebody ended it this moment: that outcome stands
                engine.end_episode(name, success=False, known=cancelled, intervention=cancelled)
            return
        active = snapshot.active
        goal.publish_feedback(
            RunPolicy.Feedback(
                elapsed_s=time.monotonic() - episode.started_s,
                version=active.version if active else "",
                holding=snapshot.control is None or snapshot.control.mode != "RUNNING",
            )
        )
        time.sleep(_POLL_S)


def _finish(goal: ServerGoalHandle, outcome: EpisodeOutcome | None, *, stopped: bool) -> RunPolicy.Result:
    """End the goal. ``stopped``: the node was deactivated or cleaned up."""
    result = RunPolicy.Result()
    if outcome is not None:
        result.outcome, result.success = outcome, outcome.success
    known = outcome is not None and outcome.known
    if goal.is_cancel_requested:
        by_this = outcome is not None and outcome.intervention and not outcome.success
        how = "ended as a failure by intervention" if by_this else "ended before that"
        result.error_code, result.message = "CANCELLED", f"cancelled: the episode {how}"
        goal.canceled()
    elif known:
        goal.succeed()
    else:
        timeout = ("EPISODE_TIMEOUT", "the episode timed out: end_episode was not called")
        result.error_code, result.message = _INACTIVE if stopped else timeout
        goal.abort()
    return result
