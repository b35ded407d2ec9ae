# SPDX-License-Identifier: Apache-2.0
"""Why a robot holds: what each reason means, whether only resume ends it, and what the operator does.

The control loop, the status, the diagnostics, the doctor and docs/errors.md all read this table.
``python -m vla_policy_node.holds`` prints the page's part of it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum


class Latch(Enum):
    """Whether a hold needs a resume. A contract with ``auto_resume`` resumes by itself, where ``Hold.by_contract`` allows it."""

    NEVER = "holds until its cause is over"
    IF_IT_LASTS = "holds until its cause is over; latched when it lasts"
    """... longer than ``hold_timeout_s``, and never where the contract has ``auto_resume``."""
    ALWAYS = "holds, latched"


@dataclass(frozen=True)
class Hold:
    """One reason to hold."""

    meaning: str
    action: str  # what the operator does, before a resume if the hold is latched
    latch: Latch = Latch.ALWAYS
    by_contract: bool = True  # false: only a person may resume, whatever the contract says
    then: str = ""  # what the node does by itself meanwhile


_RECOVERS = "the worker is ended, and recovery is as for `WORKER_LOST`"

HOLDS = {
    "NO_POLICY": Hold(
        "no policy is active",
        "send a first update, or set `model_path` and restart the node; an error in the status says what failed",
        Latch.NEVER,
        then="after an activation it stands for `STARTUP`, which it becomes when there is a policy",
    ),
    "LOADING_IN_PLACE": Hold(
        "another version is loaded in place of the one that acted: this robot has room for one (`load_in_place`)",
        "wait; `message` or the answer to the swap says what failed",
        Latch.NEVER,
        then="acts again by itself when the load went well; if it fails, with the version before, loaded again",
    ),
    "STARTUP": Hold(
        "the node was started or activated, and waits for a resume; after it, for the first action",
        "see that nobody is in the way; if it stays after a resume, look at the observations",
        then="commands nothing until the first chunk is there and the command lies near the measured state",
    ),
    "STARVED": Hold(
        "the next chunk is late",
        "make inference faster (`device`, `worker_threads`) or the chunks longer; see `inference_ms` in the status",
        Latch.IF_IT_LASTS,
    ),
    "OBSERVATION_STALE": Hold(
        "an observation or the measured state is missing or too old",
        "look for a topic that is missing, slow, or has old stamps: `doctor` names it",
        Latch.IF_IT_LASTS,
    ),
    "LIMIT": Hold(
        "an action broke a hard limit of the contract",
        "read channel and value in the log; roll back, or correct the limit",
    ),
    "NAN": Hold("an action was not a finite number", "roll back", then=_RECOVERS),
    "WORKER_LOST": Hold(
        "the worker process of the active policy died or hung",
        "look why in the log, and in dmesg for the out-of-memory killer",
        then="in a trial back to the version before; else loaded again `reload_attempts` times, then the standby if it was "
        "ever committed",
    ),
    "MOTION_REENABLED": Hold(
        "motion was disabled: `motion_enabled` was false, or silent for too long",
        "see that nobody is in the way",
        by_contract=False,
        then="commands nothing",
    ),
    "NO_EPISODE": Hold("`require_episode` is set and no episode is open", "call `start_episode`", Latch.NEVER),
    "POLICY_FAILED": Hold(
        "the policy raised an error, or its chunk had the wrong shape",
        "read the traceback in the log; roll back if the version is new",
        then=_RECOVERS,
    ),
    "NO_OPERATOR_ACTION": Hold(
        "an operator has taken over, and no action can be commanded: none comes, it jumps, or the first lies far from the robot",
        "send actions on the topics below `operator/`, from where the robot is on; or give back: call `take_over` with false",
        Latch.NEVER,
    ),
    "COMMAND_TOPIC_TAKEN": Hold(
        "another node publishes the command topic",
        "stop that node",
        by_contract=False,
        then="commands nothing; seen at activation, the node stays inactive",
    ),
    "OUTSIDE_LIMITS": Hold(
        "the robot stands outside the contract's limits by more than `start_tolerance`",
        "move it inside by hand or by its own controller",
        Latch.IF_IT_LASTS,
        then="commands nothing until it is inside",
    ),
}

HOLD_REASONS = ("", *HOLDS)
"""As the control process's status numbers them; empty = not holding."""


def explain(reason: str, *, latched: bool) -> str:
    """Return what a hold means and what the operator does, in one line."""
    hold = HOLDS.get(reason)
    if hold is None:
        return f"{reason}: unknown to this version; look at the log of policy_node"
    resume = "; then call resume" if latched else ""
    return f"{reason}: {hold.meaning}: {hold.action}{resume}"


def table() -> str:
    """Return the rows for docs/errors.md."""
    rows = []
    for reason, hold in HOLDS.items():
        robot = "; ".join(filter(None, (hold.latch.value, hold.then)))
        resume = {Latch.NEVER: "", Latch.IF_IT_LASTS: "; if latched, resume", Latch.ALWAYS: "; then resume"}[hold.latch]
        person = "" if hold.by_contract else " (`auto_resume` does not)"
        rows.append(f"| `{reason}` | {_sentence(hold.meaning)} | {robot} | {hold.action}{resume}{person} |")
    return "\n".join(rows)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
