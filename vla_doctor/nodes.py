# SPDX-License-Identifier: Apache-2.0
"""Whether our two nodes live, alone in their namespace, and what they say of themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vla_doctor.findings import Finding, ok, problem
from vla_doctor.seen import NodeSeen, with_defaults
from vla_ota_manager.config import OtaConfig
from vla_policy_node.contract.model import Contract
from vla_policy_node.holds import HOLDS
from vla_recorder.settings import RecorderSettings

UNCONFIGURED, INACTIVE, RUNNING, HOLDING, MOTION_DISABLED, ERROR, OPERATOR = range(7)
"""``vla_ota/PolicyStatus``: STATE_*."""
_MISSED_SHARE = 1e-3
_STATUS_PERIOD_S = 1.0


def check_policy_node(node: NodeSeen, *, listened_s: float, before_start: bool) -> list[Finding]:
    """Judge the policy node; ``listened_s`` [s] is how long its status was listened to."""
    what = f"node {node.name}"
    if not node.count:
        return [ok(what, "not started yet")] if before_start else [problem("POLICY_ABSENT", what, "does not run")]
    found = _check_node(what, node, listened_s)
    if node.lifecycle == "unconfigured":
        message = getattr(_status(node), "message", "") or "not configured"
        found.append(problem("POLICY_UNCONFIGURED", what, message, node=node.name))
    elif node.lifecycle == "finalized":
        found.append(problem("POLICY_FINALIZED", what, "was shut down"))
    elif not node.lifecycle:
        found.append(problem("NODE_UNANSWERING", what, "does not say its lifecycle state"))
    elif node.lifecycle != "active":  # or on its way there
        found.append(problem("POLICY_INACTIVE", what, f"is {node.lifecycle}: it commands nothing", node=node.name))
    if _status(node) is not None:
        found += _check_policy_status(what, node)
    return found


def _check_policy_status(what: str, node: NodeSeen) -> list[Finding]:
    status = _status(node)
    if status.state == UNCONFIGURED:
        return []  # the lifecycle state says it
    found: list[Finding] = []
    without_policy = not status.active_version and status.hold_reason != "LOADING_IN_PLACE"  # there will be one soon
    error = f"{status.error_code}: {status.message}" if status.error_code else ""
    if status.state == ERROR:
        found.append(problem("POLICY_ERROR", what, status.message or "the control process does not run"))
    elif without_policy and status.error_code not in ("", "NO_POLICY"):
        found.append(problem("POLICY_NOT_LOADED", what, error, node=node.name))
        error = ""
    elif status.state == HOLDING or (without_policy and status.state in (RUNNING, MOTION_DISABLED)):
        found.append(_holding(what, node, status, "NO_POLICY" if without_policy else status.hold_reason))
    if error and status.error_code not in (status.hold_reason, "NO_POLICY"):
        found.append(problem("POLICY_LAST_ERROR", what, error))
    if status.missed_ticks > _MISSED_SHARE * status.ticks:
        late = f"{status.missed_ticks} of {status.ticks} commands came over a period late, worst {status.worst_late_ms:.1f} ms"
        found.append(problem("TICKS_MISSED", what, late))
    if status.state in (RUNNING, MOTION_DISABLED) and not without_policy:
        state = "runs" if status.state == RUNNING else "motion is disabled"
        found.append(ok(what, f"{status.active_version} {state} at {status.control_rate_hz:g} Hz"))
    elif status.state == OPERATOR:
        found.append(ok(what, "an operator has taken over: his actions are commanded"))
    return found


def _holding(what: str, node: NodeSeen, status: Any, reason: str) -> Finding:
    hold = HOLDS.get(reason)
    meaning = hold.meaning if hold else "not a reason that this doctor knows"
    action = hold.action if hold else f"look at the log of {node.name}"
    latched = status.hold_latched and reason == status.hold_reason
    if latched:
        action += f"; then: ros2 service call {node.name}/resume std_srvs/srv/Trigger"
    return problem("POLICY_HOLDING", what, f"{reason}{' (until resume)' * latched}: {meaning}", action=action)


def check_manager(node: NodeSeen, *, listened_s: float, before_start: bool) -> list[Finding]:
    """Judge the manager; ``listened_s`` [s] is how long its status was listened to."""
    what = f"node {node.name}"
    if not node.count:
        return [ok(what, "not started yet")] if before_start else [problem("MANAGER_ABSENT", what, "does not run")]
    found = _check_node(what, node, listened_s)
    if node.parameters is not None and not with_defaults(OtaConfig, node.parameters)["allowed_sources"]:
        found.append(problem("SOURCES_EMPTY", what, "allowed_sources is empty"))
    status = _status(node)
    if status is not None:
        if status.error_code:
            found.append(problem("MANAGER_LAST_ERROR", what, f"{status.error_code}: {status.message}"))
        if status.damaged:
            found.append(problem("VERSION_DAMAGED", what, f"damaged on disk: {' '.join(status.damaged)}"))
        found.append(ok(what, _manager_state(status)))
    return found


def _manager_state(status: Any) -> str:
    parts = [status.state_name or "no state", f"committed {status.committed_version or 'nothing'}"]
    if status.trial_version:
        parts.append(f"on trial {status.trial_version}")
    if status.blocked:
        parts.append(f"blocked {' '.join(status.blocked)}")
    return ", ".join(parts)


def check_recorder(node: NodeSeen) -> list[Finding]:
    """Judge the black box. A robot may do without one."""
    what = f"node {node.name}"
    if not node.count:
        return [ok(what, "does not run: what leads to a hold is not kept")]
    found = []
    if node.count > 1:
        found.append(problem("NODE_TWICE", what, f"{node.count} nodes of this name"))
    if node.parameters is None:
        return [*found, problem("NODE_UNANSWERING", what, "does not answer to get_parameters")]
    settings = with_defaults(RecorderSettings, node.parameters)
    folder = Path(settings["recording_dir"]).expanduser()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as e:
        return [*found, problem("RECORDINGS_NO_ROOM", what, f"{folder}: {e.strerror}", folder=folder)]
    if free < settings["min_free_bytes"] + settings["max_memory_bytes"]:
        text = f"{folder}: {free >> 20} MiB are free, {settings['min_free_bytes'] >> 20} must stay"
        found.append(problem("RECORDINGS_NO_ROOM", what, text, folder=folder))
    return found or [ok(what, f"records into {folder}")]


def check_agreement(policy: NodeSeen, manager: NodeSeen, contract: Contract | None) -> list[Finding]:
    """Judge settings that both nodes must have alike. A node that does not answer is not judged."""
    if manager.parameters is None:
        return []
    found, what = [], f"settings of {manager.name}"
    robot_type = manager.parameters.get("robot_type") or ""
    if contract is not None and robot_type and robot_type != contract.robot_type:
        text = f"robot_type is {robot_type!r}, the contract's {contract.robot_type!r}"
        found.append(problem("ROBOT_TYPE_DIFFERS", what, text, robot_type=contract.robot_type))
    if policy.parameters is not None:
        ours, theirs = policy.parameters.get("store_dir") or "", manager.parameters.get("store_dir") or ""
        if ours.rstrip("/") != theirs.rstrip("/"):
            found.append(problem("STORE_DIFFERS", what, f"store_dir is {theirs!r}, {policy.name} has {ours!r}"))
    return found


def _check_node(what: str, node: NodeSeen, listened_s: float) -> list[Finding]:
    found = []
    if node.count > 1:
        found.append(problem("NODE_TWICE", what, f"{node.count} nodes of this name"))
    if node.parameters is None:
        found.append(problem("NODE_UNANSWERING", what, "does not answer to get_parameters"))
    topic = node.status
    if topic is None:
        return found
    # The first one may have been latched long ago; a living node sends another every second.
    period_s = (node.parameters or {}).get("status_period_s") or _STATUS_PERIOD_S
    expected = 2 if listened_s > 2.5 * period_s else 1
    if len(topic.samples.arrivals_s) < expected:
        text = f"{len(topic.samples.arrivals_s)} statuses in {listened_s:.1f} s"
        found.append(problem("STATUS_SILENT", what, text, topic=topic.name))
    return found


def _status(node: NodeSeen) -> Any:
    return node.status.samples.last if node.status is not None else None
