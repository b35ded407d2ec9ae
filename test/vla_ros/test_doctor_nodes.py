# SPDX-License-Identifier: Apache-2.0
"""The doctor does not call a policy node sound that commands nothing, and says why; it repeats what the manager reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vla_ota.msg import ModelStatus, PolicyStatus

from vla_doctor.findings import Finding, exit_status, report
from vla_doctor.nodes import check_manager, check_policy_node, check_recorder
from vla_doctor.seen import NodeSeen, Samples, TopicSeen

NAME = "/arm_1/policy_node"


def seen(lifecycle: str, message: Any) -> NodeSeen:
    samples = Samples(arrivals_s=[0.0, 1.0, 2.0], last=message)
    return NodeSeen(NAME, 1, {}, lifecycle, TopicSeen(f"{NAME}/status", samples=samples))


def examine(lifecycle: str = "active", **status: Any) -> list[Finding]:
    message = PolicyStatus(**{"state": PolicyStatus.STATE_RUNNING, "control_rate_hz": 50.0, **status})
    return check_policy_node(seen(lifecycle, message), listened_s=3.0, before_start=False)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_policy_node_that_was_shut_down_fails() -> None:
    found = only(examine("finalized", state=PolicyStatus.STATE_UNCONFIGURED))
    assert (found.level.word, found.code) == ("FAIL", "POLICY_FINALIZED")
    assert "start it again" in found.remedy and exit_status([found]) == 1


def test_a_policy_node_whose_policy_cannot_be_loaded_fails_with_the_reason() -> None:
    why = {"error_code": "POLICY_TYPE_UNKNOWN", "message": "no module for 'act'"}
    found = only(examine(state=PolicyStatus.STATE_HOLDING, hold_reason="STARTUP", hold_latched=True, **why))
    assert (found.level.word, found.code) == ("FAIL", "POLICY_NOT_LOADED")
    assert "POLICY_TYPE_UNKNOWN: no module for 'act'" in found.text and NAME in found.remedy


def test_before_the_first_update_the_remedy_is_an_update() -> None:
    why = {"error_code": "NO_POLICY", "message": "the store is empty"}
    found = only(examine(state=PolicyStatus.STATE_HOLDING, hold_reason="STARTUP", hold_latched=True, **why))
    assert (found.level.word, found.code) == ("warn", "POLICY_HOLDING")
    assert found.text.startswith("NO_POLICY: ") and found.remedy.startswith("send a first update")


def test_a_missing_policy_is_reported_also_while_motion_is_disabled() -> None:
    assert only(examine(state=PolicyStatus.STATE_MOTION_DISABLED)).text.startswith("NO_POLICY: ")


def test_a_load_in_place_is_not_taken_for_a_missing_policy() -> None:
    found = only(examine(state=PolicyStatus.STATE_HOLDING, hold_reason="LOADING_IN_PLACE"))
    assert found.code == "POLICY_HOLDING" and found.text.startswith("LOADING_IN_PLACE: ")


@pytest.mark.parametrize("lifecycle", ["inactive", "activating", "configuring", "errorprocessing"])
def test_a_policy_node_that_is_not_active_is_said_to_command_nothing(lifecycle: str) -> None:
    found = examine(lifecycle, state=PolicyStatus.STATE_INACTIVE, active_version="1.0.0")
    assert lifecycle in only(found).text and only(found).code == "POLICY_INACTIVE"


def test_a_policy_that_acts_after_an_error_keeps_that_as_a_warning() -> None:
    found = examine(active_version="1.0.0", error_code="LEASE_EXPIRED", message="the manager is silent")
    assert [f.code for f in found] == ["POLICY_LAST_ERROR", ""] and "1.0.0 runs" in found[1].text


def test_a_report_with_warnings_does_not_promise_that_the_robot_works() -> None:
    last = report(examine("inactive", state=PolicyStatus.STATE_INACTIVE)).splitlines()[-1]
    assert last == "doctor: 0 FAIL, 1 warn, 0 ok: nothing failed; see the warnings"


def test_damage_that_the_manager_reports_comes_with_the_way_to_repair_it() -> None:
    found = check_manager(seen("", ModelStatus(damaged=["1.0.0"])), listened_s=3.0, before_start=False)
    (damaged,) = [finding for finding in found if finding.code == "VERSION_DAMAGED"]
    assert "1.0.0" in damaged.text and "send an update to that version again" in damaged.remedy


def test_a_robot_may_do_without_a_black_box_and_one_that_cannot_write_is_a_warning(tmp_path: Path) -> None:
    def box(count: int = 1, **parameters: Any) -> NodeSeen:
        return NodeSeen("/arm_1/recorder", count, {"recording_dir": str(tmp_path), "min_free_bytes": 0, **parameters})

    assert not only(check_recorder(NodeSeen("/arm_1/recorder"))).code
    assert not only(check_recorder(box(max_memory_bytes=1 << 20))).code
    for broken in ({"min_free_bytes": 1 << 60}, {"recording_dir": str(tmp_path / "none")}):
        found = only(check_recorder(box(**broken)))
        assert (found.level.word, found.code) == ("warn", "RECORDINGS_NO_ROOM") and str(tmp_path) in found.remedy
    assert only(check_recorder(NodeSeen("/arm_1/recorder", 1))).code == "NODE_UNANSWERING"
    assert only(check_recorder(box(2, max_memory_bytes=1 << 20))).code == "NODE_TWICE"
