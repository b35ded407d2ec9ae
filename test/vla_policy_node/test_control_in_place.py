# SPDX-License-Identifier: Apache-2.0
"""The acting generation leaves at its boundary and the loop holds, until another is activated; a stop is never overridden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.control_rig import Rig, ramp


def vacate(rig: Rig, at: str = "REST", cause: str = "UPDATE", timeout_s: float = 1.0) -> None:
    rig.send("vacate", at=at, cause=cause, swap_id="v", timeout_s=timeout_s, episode=0)


def hold_reason(rig: Rig) -> str:
    rig.tick()
    return "" if rig.loop.running else rig.loop.reasons.reason


def test_the_loop_holds_from_rest_on_and_the_next_generation_acts_by_itself(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.1, 0.0), ticks=15)
    vacate(rig)
    rig.tick(8)
    assert rig.of("VACATED") and rig.loop.active is None
    rig.send("remove_generation", generation=1)
    before = len(rig.published)
    rig.tick(30)
    assert hold_reason(rig) == "LOADING_IN_PLACE" and not rig.loop.reasons.latched
    held = rig.published[before:]
    assert all(command is not None and np.allclose(command, (0.1, 0.0)) for command in held)
    rig.add(2, (0.1, 0.0))
    rig.activate(2, "NOW")
    rig.tick(20)
    assert rig.loop.running and rig.loop.generation == 2 and not rig.loop.loading


def test_what_moves_does_not_leave_before_its_boundary_and_goes_on_when_none_comes(make_rig: Any) -> None:
    rig = make_rig()
    rig.run(ramp((0.002, 0.0)), ticks=15)
    vacate(rig, timeout_s=0.5)
    rig.tick(40)
    assert [e["error_code"] for e in rig.of("SWAP_FAILED")] == ["SWAP_TIMEOUT"]
    assert rig.loop.running and rig.loop.generation == 1 and not rig.of("VACATED")
    vacate(rig, timeout_s=60.0)
    rig.tick(2)
    rig.send("cancel_activation", swap_id="v")
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "CANCELLED" and rig.loop.vacancy is None
    vacate(rig, at="NOW")
    assert hold_reason(rig) == "LOADING_IN_PLACE"


@pytest.mark.parametrize(("cause", "leaves"), [("UPDATE", False), ("ROLLBACK", True)])
def test_an_update_ends_with_the_permission_to_move_and_a_way_back_does_not(
    make_rig: Any, cause: str, leaves: bool
) -> None:
    rig = make_rig(motion=True)
    rig.motion_ns = rig.now_ns + 10**12
    rig.run(ramp((0.002, 0.0)), ticks=15)
    vacate(rig, cause=cause, timeout_s=60.0)
    rig.motion_ns = 0
    rig.tick(2)
    assert bool(rig.of("VACATED")) is leaves
    assert [e["error_code"] for e in rig.of("SWAP_FAILED")] == ([] if leaves else ["MOTION_DISABLED"])
    vacate(rig, at="NOW", cause=cause)
    assert (rig.loop.active is None) is leaves
    rig.motion_ns = rig.now_ns + 10**12
    rig.tick(3)
    assert rig.loop.reasons.latched == "MOTION_REENABLED" and rig.tick() is None


def test_an_update_that_is_ready_when_motion_is_disabled_is_refused_and_what_acted_may_come_back(make_rig: Any) -> None:
    rig = make_rig(motion=True)
    rig.motion_ns = rig.now_ns + 10**12
    rig.run((0.1, 0.0), ticks=15)
    vacate(rig, at="NOW")
    rig.tick()
    rig.motion_ns = 0
    rig.tick()
    rig.add(2, (0.1, 0.0))
    rig.activate(2, "NOW")
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "MOTION_DISABLED" and rig.loop.active is None
    rig.activate(2, "NOW", cause="ROLLBACK")
    assert rig.loop.active is not None and not rig.loop.running


def test_a_lost_worker_or_a_deactivated_node_does_not_keep_it_waiting(make_rig: Any) -> None:
    lost = make_rig()
    lost.run(ramp((0.002, 0.0)), ticks=15)
    vacate(lost, timeout_s=60.0)
    lost.send("remove_generation", generation=1)
    assert lost.of("VACATED") and hold_reason(lost) == "WORKER_LOST"
    off = make_rig()
    off.run(ramp((0.002, 0.0)), ticks=15)
    vacate(off, timeout_s=60.0)
    off.send("enable", enabled=False)
    assert off.of("SWAP_FAILED")[-1]["error_code"] == "INACTIVE" and off.loop.active is not None


def test_a_load_that_failed_leaves_a_hold_that_only_a_resume_ends(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.1, 0.0), ticks=15)
    vacate(rig, at="NOW")
    rig.tick()
    rig.send("loading_failed")
    assert hold_reason(rig) == "NO_POLICY"
    rig.add(2, (0.1, 0.0))
    rig.activate(2, "NOW")
    rig.tick(20)
    assert not rig.loop.running and rig.loop.reasons.latched == "STARTUP"
    rig.send("resume")
    rig.tick(20)
    assert rig.loop.running and rig.loop.generation == 2


def test_an_operator_goes_on_while_another_is_loaded(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.1, 0.0), ticks=15)
    rig.send("take_over", on=True)
    vacate(rig, at="NOW")
    assert hold_reason(rig) == "NO_OPERATOR_ACTION"
    rig.send("take_over", on=False)
    assert hold_reason(rig) == "LOADING_IN_PLACE"


def test_a_late_chunk_in_the_middle_of_a_motion_is_no_rest(make_rig: Any) -> None:
    rig = make_rig(max_decel=2.0)
    rig.run(ramp((0.02, 0.0)), ticks=15)
    rig.latency = 25
    rig.tick(3)
    vacate(rig, timeout_s=60.0)
    for _ in range(40):
        rig.tick()
        if not rig.loop.running:
            break
    assert rig.loop.reasons.reason == "STARVED"
    rig.tick(2)
    assert not rig.of("VACATED") and rig.loop.vacancy is not None
    rig.latency = 100  # no chunk comes: the hold brings it to rest, and it may leave
    rig.tick(40)
    assert rig.of("VACATED")


def test_what_has_left_gives_no_further_action(make_rig: Any) -> None:
    operated = make_rig()
    operated.run(ramp((0.002, 0.0)), ticks=15)
    operated.send("take_over", on=True)
    operated.operator = operated.measured.copy()
    operated.tick(5)
    assert operated.loop.running and operated.loop.policy_action is not None
    vacate(operated, at="NOW")
    operated.tick()
    assert operated.loop.running and operated.loop.policy_action is None, "the operator goes on, the policy does not"
    pending = make_rig()
    pending.run(ramp((0.002, 0.0)), ticks=15)
    pending.add(2, "OBSERVATION_STALE")
    pending.activate(2, "EPISODE")
    vacate(pending, at="NOW")
    pending.tick()
    assert not pending.loop.running
