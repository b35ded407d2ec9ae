# SPDX-License-Identifier: Apache-2.0
"""The engine's values as ROS messages."""

from __future__ import annotations

import time

from builtin_interfaces.msg import Time
from std_msgs.msg import Header
from vla_ota.action import PrepareModel
from vla_ota.msg import AnomalyScore, EpisodeOutcome, ModelStatus, PolicyStatus, PolicySteps, SwapReport
from vla_ota.msg import ShadowActions as ShadowActionsMessage

from vla_policy_node.contract.model import Contract
from vla_policy_node.draws import Assignment
from vla_policy_node.engine import Score, Snapshot
from vla_policy_node.episodes import Episode, Outcome
from vla_policy_node.generations.residents import OnDisk, Resident
from vla_policy_node.generations.swapping import Report
from vla_policy_node.holds import explain
from vla_policy_node.shadow.follower import ShadowActions
from vla_policy_node.steps import Steps

_STATES = {
    "INACTIVE": PolicyStatus.STATE_INACTIVE,
    "RUNNING": PolicyStatus.STATE_RUNNING,
    "HOLDING": PolicyStatus.STATE_HOLDING,
    "MOTION_DISABLED": PolicyStatus.STATE_MOTION_DISABLED,
    "OPERATOR": PolicyStatus.STATE_OPERATOR,
}


def score(value: Score, stamp: Time) -> AnomalyScore:
    """Return the message of one score."""
    return AnomalyScore(
        header=Header(stamp=stamp),
        source=value.source,
        version=value.version,
        generation=value.generation,
        episode_id=value.episode_id,
        score=value.value,
    )


def outcome(value: Outcome, active: Resident | None, stamp: Time) -> EpisodeOutcome:
    """Return the message of an episode's end; ``active`` acted then."""
    return EpisodeOutcome(
        header=Header(stamp=stamp),
        episode_id=value.episode_id,
        version=active.version if active else "",
        generation=active.id if active else 0,
        arm=value.arm,
        mixed=value.mixed,
        success=value.success,
        known=value.known,
        intervention=value.intervention,
        instruction=value.instruction,
        duration_s=value.duration_s,
    )


def assignment(message: ModelStatus) -> Assignment | None:
    """Return the experiment that ota_manager names; ``None``: nothing is to be drawn."""
    if len(message.experiment_digests) != 2:
        return None
    a, b = message.experiment_digests
    return Assignment(message.experiment, message.experiment_robot, (a, b), message.experiment_probability)


def swap_report(value: Report, stamp: Time) -> SwapReport:
    """Return the message of a swap; ``stamp``: first action of the new generation."""
    return SwapReport(
        header=Header(stamp=stamp),
        from_version=value.from_version,
        to_version=value.to_version,
        from_digest=value.from_digest,
        to_digest=value.to_digest,
        generation=value.generation,
        cause=value.cause,
        at=value.at,
        warm=value.warm,
        load_s=value.timings.load_s,
        digest_s=value.timings.digest_s,
        golden_s=value.timings.golden_s,
        warm_up_s=value.timings.warm_up_s,
        shadow_s=value.shadow.seconds,
        shadow_chunks=value.shadow.chunks,
        shadow_compared=value.shadow.compared,
        shadow_divergence=value.shadow.divergence,
        shadow_channel=value.shadow.channel,
        swap_latency_s=value.swap_latency_s,
        in_place=value.in_place,
        held_s=value.held_s,
        missed_ticks=value.missed,
        starved_ticks=value.starved,
        worst_late_ms=value.worst_late_ms,
        seam_jump=value.seam_jump,
        typical_step=value.typical_step,
        seam_channel=value.seam_channel,
        tick_histogram=list(value.histogram),
    )


def fill_prepared(result: PrepareModel.Result, prepared: Resident | OnDisk) -> None:
    """Tell of a preparation that succeeded."""
    result.success = True
    result.version, result.digest, result.generation = prepared.version, prepared.digest, prepared.id
    if isinstance(prepared, OnDisk):
        result.digest_s = prepared.checked_s
        result.message = "checked on disk; swap_model loads it in place of what acts, and the robot holds meanwhile"
        return
    timings = prepared.generation.timings
    result.load_s, result.digest_s = timings.load_s, timings.digest_s
    result.golden_s, result.warm_up_s = timings.golden_s, timings.warm_up_s
    result.shadow_s, result.message = prepared.shadow.seconds, str(prepared.shadow)


def shadow_actions(value: ShadowActions, contract: Contract, stamp: Time) -> ShadowActionsMessage:
    """Return the message of a chunk in shadow; ``stamp``: of its observation."""
    return ShadowActionsMessage(
        header=Header(stamp=stamp),
        version=value.version,
        generation=value.generation,
        channels=[c.name for c in contract.channels],
        units=[c.unit for c in contract.channels],
        period_s=contract.period_s,
        execute=value.execute,
        actions=value.actions.ravel().tolist(),
    )


def steps(value: Steps, episode: Episode, by: Resident | None, stamp: Time) -> PolicySteps:
    """Return the message of some steps."""
    wall_ns = time.time_ns() - time.monotonic_ns()
    message = PolicySteps(
        header=Header(stamp=stamp),
        episode_id=episode.episode_id,
        instruction=episode.instruction,
        generation=value.generation,
        times_ns=[wall_ns + at_ns for at_ns in value.times_ns],
        interventions=value.interventions,
        actions=value.actions.ravel().tolist(),
        policy_actions=value.policy_actions.ravel().tolist(),
        states=value.states.ravel().tolist(),
    )
    if by is not None:
        message.name, message.version, message.digest = by.generation.manifest.name, by.version, by.digest
    return message


def unconfigured(error_code: str, text: str, stamp: Time) -> PolicyStatus:
    """Return the status of a node that is not configured; the code and ``text`` say why it could not be."""
    state = PolicyStatus.STATE_UNCONFIGURED
    return PolicyStatus(header=Header(stamp=stamp), state=state, error_code=error_code, message=text)


def status(value: Snapshot, rate_hz: float, stamp: Time) -> PolicyStatus:
    """Return the message of a snapshot."""
    message = PolicyStatus(
        header=Header(stamp=stamp),
        boot_id=value.boot_id,
        generation=value.active.id if value.active else 0,
        shadow_only=value.shadow_only,
        on_trial=value.on_trial,
        load_in_place=value.load_in_place,
        motion_enabled=value.motion_permitted,
        control_rate_hz=rate_hz,
        inference_ms=value.inference_ms,
        episode_id=value.episode_id,
        arm=value.arm,
        experiment=value.experiment,
        episode_arms=value.episode_arms,
        draw_error_code=value.draw_error[0],
        draw_message=value.draw_error[1],
        instruction=value.instruction,
        error_code=value.error_code,
        message=value.message or ("loading the policy" if value.loading else ""),
    )
    for part in ("active", "standby", "prepared"):
        resident: Resident | OnDisk | None = getattr(value, part)
        if resident is not None:
            setattr(message, f"{part}_version", resident.version)
            setattr(message, f"{part}_digest", resident.digest)
    _fill_control(message, value)
    return message


def _fill_control(message: PolicyStatus, value: Snapshot) -> None:
    loop = value.control
    if not value.control_alive:
        message.state = PolicyStatus.STATE_ERROR
    elif loop is None:
        message.state = PolicyStatus.STATE_INACTIVE
    else:
        message.state = _STATES[loop.mode]
        message.holding = loop.mode == "HOLDING"
        message.hold_latched = loop.latched
        message.hold_reason = loop.hold_reason if message.holding else ""
        if message.holding and not message.message:
            message.message = explain(loop.hold_reason, latched=loop.latched)
    if loop is not None:
        message.ticks, message.missed_ticks, message.starved_ticks = loop.ticks, loop.missed, loop.starved
        message.worst_late_ms = loop.worst_late_ms
