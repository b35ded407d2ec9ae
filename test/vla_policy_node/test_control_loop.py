# SPDX-License-Identifier: Apache-2.0
"""Each safety rule of the runtime, tried to be broken one at a time (all of them at random: test_control_properties.py)."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
from support.control_rig import HIGH, LOW, PER_TICK, PERIOD_NS, START_TOLERANCE, ramp


def test_the_first_command_starts_from_the_measured_state_and_moves_at_the_velocity_limit(make_rig: Any) -> None:
    rig = make_rig()
    rig.measured = np.array([0.5, -0.5])
    rig.run((-0.9, 0.9), ticks=10)
    first = next(c for c in rig.published if c is not None)
    assert np.abs(first - [0.5, -0.5]).max() <= PER_TICK + 1e-9
    rig.tick(80)
    np.testing.assert_allclose(rig.published[-1], [-0.9, 0.9], atol=1e-6)
    moves = np.abs(np.diff([c for c in rig.published if c is not None], axis=0))
    assert moves.max() == pytest.approx(PER_TICK)


def test_without_a_fresh_measurement_there_is_no_motion(make_rig: Any) -> None:
    rig = make_rig()
    rig.measured = np.array([np.nan, 0.0])
    rig.start(ticks=30)
    assert all(c is None for c in rig.published)
    assert rig.of("HOLD")[-1]["reason"] == "OBSERVATION_STALE"
    rig.measured = np.zeros(2)
    rig.tick(20)
    assert rig.loop.running


def test_a_robot_that_stands_outside_its_limits_is_not_pulled_in(make_rig: Any) -> None:
    rig = make_rig()
    rig.measured = np.array([HIGH + START_TOLERANCE + 0.05, 0.0])
    rig.start(ticks=30)
    assert all(c is None for c in rig.published)
    assert rig.of("HOLD")[-1]["reason"] == "OUTSIDE_LIMITS"


@pytest.mark.parametrize("bad", [HIGH + 0.2, LOW - 0.2, 1e30])
def test_an_action_far_outside_the_position_limits_is_never_published_and_latches(make_rig: Any, bad: float) -> None:
    rig = make_rig()
    rig.run((0.8, 0.0) if bad > 0 else (-0.8, 0.0), ticks=60)
    rig.policies[1] = lambda plan: (bad, 0.0)
    rig.tick(40)
    assert (rig.loop.mode, rig.loop.reasons.latched) == ("HOLDING", "LIMIT")
    event = rig.of("HOLD")[-1]
    assert event["channel"] == "a" and event["latched"] and event["generation"] == 1
    assert all(abs(c[0]) <= HIGH for c in rig.published if c is not None)
    rig.policies[1] = lambda plan: (0.0, 0.0)
    rig.tick(40)
    assert rig.loop.mode == "HOLDING"  # nothing but resume ends it
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.mode == "RUNNING"


def test_an_action_a_little_outside_is_clamped_and_counted(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((HIGH + 0.05, 0.0), ticks=60)
    assert rig.loop.running
    assert rig.published[-1][0] == HIGH
    assert rig.loop.clamped


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_holds_at_once_and_latches(make_rig: Any, bad: float) -> None:
    rig = make_rig()
    rig.run((0.1, 0.1), ticks=12)
    chunk = np.full((20, 2), 0.1)
    chunk[17, 1] = bad
    rig.policies[1] = lambda plan: chunk
    rig.tick(15)
    assert rig.loop.reasons.latched == "NAN"
    assert (rig.of("HOLD")[-1]["channel"], rig.of("HOLD")[-1]["value"]) == ("b", None)
    assert all(np.isfinite(c).all() for c in rig.published if c is not None)
    assert rig.loop.mode == "HOLDING"


def test_a_policy_that_jumps_within_a_chunk_is_stopped_before_the_jump(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=12)
    chunk = np.zeros((20, 2))
    chunk[8:] = 0.9
    rig.policies[1] = lambda plan: chunk
    rig.tick(40)
    assert rig.loop.reasons.latched == "LIMIT"
    assert "jumps" in rig.of("HOLD")[-1]["message"]
    assert all(abs(c).max() < 0.01 for c in rig.published if c is not None)


def test_a_policy_that_jumps_between_chunks_is_stopped(make_rig: Any) -> None:
    rig = make_rig(blend=0)
    rig.run((0.0, 0.0), ticks=12)
    rig.policies[1] = lambda plan: (0.9, 0.0)
    rig.tick(40)
    assert rig.loop.reasons.latched == "LIMIT"


@pytest.mark.parametrize("fault", ["POLICY_FAILED", "WRONG_SHAPE"])
def test_a_policy_that_fails_holds_at_once(make_rig: Any, fault: str) -> None:
    rig = make_rig()
    rig.run()
    rig.policies[1] = lambda plan: fault
    rig.tick(30)
    assert rig.loop.reasons.latched == "POLICY_FAILED"


def test_a_late_chunk_is_bridged_by_the_rest_of_the_old_one_then_the_tick_is_starved_and_it_goes_on_by_itself(
    make_rig: Any,
) -> None:
    rig = make_rig()
    rig.run(ramp((0.002, 0.0)), ticks=12)
    rig.policies[1] = lambda plan: None
    starved = 0
    for _ in range(60):
        rig.tick()
        starved += int(rig.loop.starved)
    assert starved > 20
    assert rig.of("HOLD")[-1]["reason"] == "STARVED" and not rig.of("HOLD")[-1]["latched"]
    # 20 actions a chunk, of which 10 are executed: it acted on for about 10 more.
    rig.policies[1] = ramp((0.002, 0.0))
    rig.tick(40)
    assert rig.loop.running
    assert rig.of("RESUMED")[-1]["reason"] == "STARVED"
    commands = np.array([c for c in rig.published if c is not None])
    assert np.abs(np.diff(commands[:, 0])).max() <= 0.02  # no jump to where the plan would be by now


def test_a_plan_waits_while_the_robot_holds(make_rig: Any) -> None:
    """A chunk that was asked for at rest begins with its first action however long it took."""
    rig = make_rig()
    rig.latency = 8
    rig.run(lambda plan: np.outer(np.arange(20), (0.01, 0.0)), ticks=15)
    first = [c for c in rig.published if c is not None][:3]
    np.testing.assert_allclose([c[0] for c in first], [0.0, 0.01, 0.02], atol=1e-6)


def test_while_moving_an_action_is_taken_at_the_tick_it_was_meant_for(make_rig: Any) -> None:
    rig = make_rig()
    rig.latency = 4
    rig.run(ramp((0.002, 0.0)), ticks=100)
    commands = np.array([c[0] for c in rig.published if c is not None])
    np.testing.assert_allclose(np.diff(commands), 0.002, atol=1e-6)
    assert not rig.of("HOLD")


def test_an_old_observation_holds_and_a_fresh_one_ends_the_hold(make_rig: Any) -> None:
    rig = make_rig()
    rig.run(ramp((0.002, 0.0)))
    rig.fresh = False
    rig.tick(3)
    assert rig.loop.reasons.reason == "OBSERVATION_STALE" and not rig.loop.running
    rig.fresh = True
    rig.tick(10)
    assert rig.loop.running


def test_relative_actions_start_at_the_position_measured_when_the_chunk_was_asked_for(make_rig: Any) -> None:
    rig = make_rig(mode="relative")
    rig.measured = np.array([0.4, -0.4])
    rig.run((0.05, 0.0), ticks=8)
    np.testing.assert_allclose(rig.published[-1], [0.45, -0.4], atol=1e-6)


def test_a_bundle_can_tighten_limits_but_not_widen_them(make_rig: Any) -> None:
    rig = make_rig()
    tight = {"low": -0.2, "high": 0.2, "rate": 0.5, "tolerance": 5.0}
    rig.add(1, (0.19, 0.0), limits=[tight, {"high": 99.0, "rate": 99.0}])
    rig.add(2, (0.0, 0.0), limits=[{"low": 0.9, "high": 0.1}, {}])
    assert rig.of("REFUSED")[-1]["error_code"] == "LIMITS_INVALID"
    rig.activate(1, "NOW")
    rig.begin()
    rig.tick(60)
    moves = np.abs(np.diff([c[0] for c in rig.published if c is not None]))
    assert moves.max() == pytest.approx(0.5 * 0.02)
    limiter = rig.loop.active.limiter
    np.testing.assert_array_equal(limiter.high, [0.2, HIGH])
    rig.policies[1] = lambda plan: (
        0.35,
        0.0,
    )  # inside the contract's, outside the bundle's with the contract's tolerance
    rig.tick(40)
    assert rig.loop.reasons.latched == "LIMIT"


def test_a_new_episode_resets_the_policy_and_refuses_chunks_of_the_old_one(make_rig: Any) -> None:
    rig = make_rig()
    worker = rig.run((0.0, 0.0))
    rig.latency = 4
    while worker.request() is None:
        rig.tick()
    old = worker.request()
    rig.episode = 7
    rig.tick()
    new = worker.request()
    assert new["request"] != old["request"] and new["reset"] == 1
    refused = rig.loop.active.refused
    worker.answer((0.29, 0.0), request=old)
    rig.tick()
    assert rig.loop.active.refused == refused + 1
    assert rig.loop.running and not rig.of("HOLD")


def test_a_velocity_starts_from_what_is_measured_and_a_hold_brakes_it_to_zero(make_rig: Any) -> None:
    rig = make_rig(mode="velocity", hold="zero_velocity", max_decel=1.5, timeout_s=2.0)
    rig.measured = np.array([0.3, np.nan])  # one wheel rolls, the other's velocity is not known
    rig.frozen = True
    rig.run((0.3, 0.1), ticks=12)
    first = next(c for c in rig.published if c is not None)
    np.testing.assert_allclose(first, [0.3, PER_TICK], atol=1e-6)
    rig.hold()
    start = len(rig.published)
    rig.tick(60)
    braked = np.array([c for c in rig.published[start - 1 :]])
    assert np.abs(np.diff(braked, axis=0)).max() <= 1.5 * 0.02 + 1e-9
    np.testing.assert_array_equal(braked[-1], [0.0, 0.0])
    rig.tick(100)
    assert rig.published[-1] is None


def test_an_effort_that_is_held_stays_and_one_that_is_zeroed_goes_to_zero_at_its_rate(make_rig: Any) -> None:
    for hold, want in (("last_command", 0.2), ("zero_velocity", 0.0)):
        rig = make_rig(mode="effort", hold=hold, max_decel=1.5)
        rig.run((0.2, 0.0), ticks=20)
        rig.hold()
        rig.tick(40)
        assert rig.published[-1][0] == pytest.approx(want)


def test_a_stall_of_the_loop_is_not_made_up_for(make_rig: Any) -> None:
    """After a pause of a second the next command is one step further, not fifty."""
    rig = make_rig()
    rig.run(ramp((0.01, 0.0)), ticks=20)
    before = rig.published[-1][0]
    rig.tick(step_ns=1_000_000_000)
    assert rig.published[-1][0] - before == pytest.approx(0.01, abs=1e-6)


def test_a_second_generation_that_breaks_a_limit_before_its_first_action_is_reported_too(make_rig: Any) -> None:
    """The node must learn of it: its way back went to a generation that is no better."""
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    rig.policies[1] = lambda plan: (9.0, 0.0)
    rig.tick(30)
    rig.add(2, (-9.0, 0.0))
    rig.activate(2, "NOW")
    rig.send("resume")
    rig.tick(20)
    holds = rig.of("HOLD")
    assert [(e["reason"], e["generation"]) for e in holds] == [("LIMIT", 1), ("LIMIT", 2)]
    assert holds[-1]["value"] == -9.0
    assert max(abs(c).max() for c in rig.published if c is not None) < 1e-6


def test_an_incomplete_observation_holds_however_fresh_it_is(make_rig: Any) -> None:
    rig = make_rig()
    rig.run(ramp((0.002, 0.0)))
    rig.valid = False
    rig.tick(2)
    assert rig.loop.reasons.reason == "OBSERVATION_STALE"


def test_a_policy_whose_first_action_breaks_a_limit_never_makes_a_command(make_rig: Any) -> None:
    rig = make_rig()
    rig.start((9.0, 0.0), ticks=30)
    assert rig.loop.reasons.latched == "LIMIT"
    assert all(c is None for c in rig.published)


def test_a_stall_while_moving_at_the_limit_does_not_buy_a_longer_step(make_rig: Any) -> None:
    rig = make_rig()
    rig.measured = np.array([-0.9, 0.0])
    rig.run((0.9, 0.0), ticks=12)
    before = rig.published[-1][0]
    rig.tick(step_ns=150_000_000)
    assert rig.published[-1][0] - before == pytest.approx(PER_TICK)


@pytest.mark.parametrize("latency", [18, 19, 20, 21, 22, 30])
def test_a_chunk_whose_whole_plan_has_passed_while_it_was_made_never_acts(make_rig: Any, latency: int) -> None:
    rig = make_rig()
    rig.run(ramp((0.001, 0.0)), ticks=15)
    rig.latency = latency
    for _ in range(150):
        rig.tick()
        if rig.loop.running and rig.loop.queue.plan - 1 == rig.loop.queue._took_over:
            assert rig.now_ns - rig.loop.queue.current.asked_ns <= 20 * 20_000_000


def test_the_first_chunk_of_a_new_episode_takes_over_at_once(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    while rig.loop.queue.boundary - rig.loop.queue.plan != 8:
        rig.tick()
    old = rig.loop.queue.current
    rig.episode += 1
    rig.tick(3)
    assert rig.loop.queue.current is not old


def test_a_tick_keeps_no_memory_and_leaves_nothing_to_a_collector(make_rig: Any) -> None:
    """The control process collects no garbage: what a tick takes goes back by itself, and the next one takes that again."""
    rig = make_rig()
    rig.run(ramp((0.0005, 0.0)), ticks=200)
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        rig.tick(500)
        rig.published.clear()
        kept = sys.getallocatedblocks() - before
        cycles = gc.collect()
    finally:
        gc.enable()
    assert rig.loop.running and not rig.of("HOLD")
    assert kept < 100 and cycles < 50, (kept, cycles)


@pytest.mark.parametrize("fault", ["position", "velocity", "soon"])
def test_limits_are_kept_on_every_tick_of_a_chunk_that_was_judged_as_a_whole(make_rig: Any, fault: str) -> None:
    """Steps of one chunk are taken as they are only while each fits into the limits and into the time since the last one."""
    rig = make_rig(blend=0)
    rows = np.outer(np.arange(20), (0.03, 0.0))  # three quarters of what a tick may do
    if fault == "position":
        rows[10:, 0] = np.linspace(0.3, HIGH + 0.05, 10)
    if fault == "velocity":
        rows[10:, 0] += 0.1
    rig.start(lambda plan: rows, ticks=4)
    before, step_ns = rig.published[-1], PERIOD_NS // 2 if fault == "soon" else PERIOD_NS
    commands = [rig.tick(step_ns=step_ns) for _ in range(14)]
    reach = PER_TICK / 2 if fault == "soon" else PER_TICK
    assert np.abs(np.diff([before, *commands], axis=0)).max() <= reach + 1e-9
    assert np.max(commands) <= HIGH


def test_an_action_that_is_taken_as_it_is_is_the_policys_own_to_the_last_bit(make_rig: Any) -> None:
    rig = make_rig()
    rig.run(ramp((0.001, -0.003)), ticks=30)
    for _ in range(40):
        command = rig.tick()
        assert (command == rig.loop.policy_action).all() and not rig.loop.clamped
