# SPDX-License-Identifier: Apache-2.0
"""Why a robot holds, in words. The reasons are ``vla_policy_node.ipc.layouts.HOLD_REASONS``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hold:
    """A reason to hold; ``{node}`` in the action is the policy node's full name."""

    meaning: str
    action: str


_RESUME = "ros2 service call {node}/resume std_srvs/srv/Trigger"

HOLDS = {
    "NO_POLICY": Hold(
        "no policy is loaded",
        "install one (a first update), or set model_path of {node} to a bundle and restart it; if the hold is latched, then: "
        + _RESUME,
    ),
    "STARTUP": Hold(
        "the node was started or activated: it moves when a person says so",
        "see that nobody stands in the way, then: "
        + _RESUME
        + " (not latched: wait some seconds for the first action)",
    ),
    "STARVED": Hold(
        "the next chunk did not come in time",
        "make inference faster (device, worker_threads) or the chunk longer; see `inference [ms]` in /diagnostics; "
        "if it has become latched, then: " + _RESUME,
    ),
    "OBSERVATION_STALE": Hold(
        "an observation is missing or too old",
        "see the topics above: one of them is missing, slow, or has old stamps; if it has become latched, then: "
        + _RESUME,
    ),
    "LIMIT": Hold(
        "the policy broke a hard limit of the contract",
        "look which channel (log of {node}); if the policy is wrong roll back, if the limit is wrong correct it; then: "
        + _RESUME,
    ),
    "NAN": Hold(
        "the policy's action was not a finite number",
        "roll back to the version before; then: " + _RESUME,
    ),
    "WORKER_LOST": Hold(
        "the worker process of the policy died or hung",
        "look why (log of {node}, dmesg for the out-of-memory killer); then: " + _RESUME,
    ),
    "MOTION_REENABLED": Hold(
        "motion was disabled and is permitted again",
        "see that nobody stands in the way, then: " + _RESUME + " (auto_resume does not end this hold)",
    ),
    "OPERATOR": Hold(
        "a person asked for it",
        "ask who and why, then: " + _RESUME,
    ),
    "NO_EPISODE": Hold(
        "require_episode is set and no episode is open",
        "open one: ros2 service call {node}/start_episode vla_ota/srv/StartEpisode",
    ),
    "POLICY_FAILED": Hold(
        "the policy raised an error or gave a chunk of the wrong shape",
        "read the log of {node}; roll back if the version is new; then: " + _RESUME,
    ),
    "COMMAND_TOPIC_TAKEN": Hold(
        "somebody else publishes the robot's command topic",
        "stop that node (see the commands above), then: " + _RESUME,
    ),
    "OUTSIDE_LIMITS": Hold(
        "the robot stands outside the contract's limits",
        "move it inside by hand or by its own controller, then: " + _RESUME,
    ),
}
