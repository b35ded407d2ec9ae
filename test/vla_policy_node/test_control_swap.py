# SPDX-License-Identifier: Apache-2.0
"""A swap happens at its boundary without a starved tick, or it does not happen and the old generation goes on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from support.control_rig import PER_TICK, STEP, Rig, ramp

from vla_policy_node.control.commanded import CommandHistory
from vla_policy_node.control.queue import Chunk, ChunkQueue
from vla_policy_node.control.swap import seam


def report(rig: Rig) -> dict[str, Any]:
    """The SWAPPED event as the runner makes it, from the loop's own record."""
    assert rig.loop.swapped is not None
    swap, previous, before = rig.loop.swapped
    return {"generation": swap.generation.id, "previous": previous, "before": before}


def generations(rig: Rig, ticks: int) -> list[int]:
    found = []
    for _ in range(ticks):
        rig.tick()
        found.append(rig.loop.generation)
    return found


@pytest.mark.parametrize("latency", [1, 4, 7])
def test_a_swap_at_a_chunk_boundary_starves_no_tick_and_moves_within_limits(make_rig: Any, latency: int) -> None:
    rig = make_rig()
    rig.run(ramp((0.002, 0.0)), ticks=15)
    rig.latency = latency
    rig.tick(60)
    base = rig.loop.queue.plan
    start = np.array([0.002 * base, 0.0])
    rig.add(2, lambda plan: start + np.outer(plan - base + np.arange(20), (0.0, 0.003)))
    rig.activate(2, "CHUNK")
    acting = generations(rig, 60)
    switch = acting.index(2)
    assert acting == [1] * switch + [2] * (60 - switch)
    assert not rig.of("HOLD") and not rig.of("SWAP_FAILED")
    assert 1 <= rig.loop.chunks <= 7  # of the new generation
    commands = np.array([c for c in rig.published if c is not None])
    assert np.abs(np.diff(commands, axis=0)).max() <= PER_TICK + 1e-9


def test_the_swap_waits_for_the_executed_parts_end_and_the_overlap_is_blended(make_rig: Any) -> None:
    rig = make_rig(blend=3)
    rig.run((0.0, 0.0), ticks=15)
    rig.add(2, (0.04, 0.0))
    rig.activate(2, "CHUNK")
    boundary = rig.loop.queue.boundary
    while rig.loop.generation == 1:
        rig.tick()
    assert rig.loop.queue.plan == boundary + 1
    rig.tick(4)
    np.testing.assert_allclose([c[0] for c in rig.published[-5:]], [0.01, 0.02, 0.03, 0.04, 0.04], atol=1e-6)


@pytest.mark.parametrize(
    ("first_chunk", "code"),
    [
        ((np.nan, 0.0), "NAN"),
        ("NAN", "NAN"),
        ("POLICY_FAILED", "POLICY_FAILED"),
        ("WRONG_SHAPE", "WRONG_SHAPE"),
        ((5.0, 0.0), "LIMIT"),
        ((STEP * 4, 0.0), "LIMIT"),
        ((0.99, 0.0), "SEAM_JUMP"),
        (np.repeat([[-0.05, 0.0], [0.5, 0.0]], [8, 12], axis=0), "LIMIT"),  # a jump later, within the executed part
    ],
)
def test_a_bad_first_chunk_abandons_the_swap_and_the_old_generation_goes_on(
    make_rig: Any, first_chunk: Any, code: str
) -> None:
    rig = make_rig(blend=1)
    rig.run(ramp((-0.002, 0.0)), ticks=15)
    rig.add(2, first_chunk)
    rig.activate(2, "CHUNK")
    acting = generations(rig, 60)
    assert set(acting) == {1}
    assert [e["error_code"] for e in rig.of("SWAP_FAILED")] == [code]
    assert rig.loop.running and not rig.of("HOLD")
    commands = np.array([c for c in rig.published if c is not None])
    np.testing.assert_allclose(np.diff(commands[3:, 0]), -0.002, atol=1e-6)


def test_a_jump_at_the_seam_is_told_with_its_channel_size_and_limit(make_rig: Any) -> None:
    rig = make_rig(blend=1)
    rig.run((0.0, 0.0), ticks=15)
    rig.add(2, (0.0, -0.9))
    rig.activate(2, "CHUNK")
    rig.tick(60)
    (event,) = rig.of("SWAP_FAILED")
    assert event["error_code"] == "SEAM_JUMP"
    assert re.search(rf"b jumps by 0\.\d+ in one tick, at most {STEP:g} is allowed", event["message"])


def test_a_new_generation_that_never_answers_times_out_and_starves_nobody(make_rig: Any) -> None:
    rig = make_rig()
    rig.run(ramp((0.001, 0.0)), ticks=15)
    rig.add(2, lambda plan: None)
    rig.activate(2, "CHUNK", timeout_s=1.0)
    acting = generations(rig, 70)
    assert set(acting) == {1} and not rig.of("HOLD")
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "SWAP_TIMEOUT"


def test_a_slow_new_generation_swaps_at_a_later_boundary(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    asked = []

    def slow(plan: int) -> Any:
        asked.append(plan)
        return None if len(asked) == 1 else (0.01, 0.0)

    rig.add(2, slow)
    rig.activate(2, "CHUNK", timeout_s=5.0)
    acting = generations(rig, 90)
    assert acting[-1] == 2 and not rig.of("HOLD")


@pytest.mark.parametrize(("ticks", "again"), [(12, False), (19, False), (24, True)])
@pytest.mark.parametrize(("late_chunk", "code"), [((5.0, 0.0), "LIMIT"), ((np.nan, 0.0), "NAN"), ((0.01, 0.0), "")])
def test_a_first_chunk_that_comes_too_late_to_act_is_judged_all_the_same(
    make_rig: Any, late_chunk: Any, code: str, ticks: int, again: bool
) -> None:
    """For the boundary; when its whole plan has passed; when another one was asked for."""
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    asked: list[dict[str, Any]] = []
    told: list[bool] = []

    def slow_at_first(plan: int) -> Any:
        if not told:
            request = rig.workers[2].request()
            assert request is not None
            asked.append(dict(request))
            return None
        return (0.01, 0.0)

    worker = rig.add(2, slow_at_first)
    rig.activate(2, "CHUNK", timeout_s=5.0)
    while not asked:
        rig.tick()
    rig.tick(ticks)
    assert (len(asked) > 1) == again
    newest = worker.answered
    told.append(worker.answer(late_chunk, request=asked[0]))
    worker.answered = newest
    acting = generations(rig, 60)
    assert (acting[-1] == 2, 2 in acting) == (not code, not code) and not rig.of("HOLD")
    assert [e["error_code"] for e in rig.of("SWAP_FAILED")] == ([code] if code else [])


def test_a_swap_at_an_episode_waits_for_the_next_episode(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    rig.add(2, (0.01, 0.0))
    rig.activate(2, "EPISODE", timeout_s=60.0)
    assert set(generations(rig, 60)) == {1}
    rig.episode += 1
    acting = generations(rig, 10)
    assert acting[-1] == 2 and not rig.of("HOLD")
    first = acting.index(2)
    assert acting == [1] * first + [2] * (10 - first)
    assert first <= 3


def test_a_swap_at_rest_waits_until_the_command_rests(make_rig: Any) -> None:
    rig = make_rig()
    speed = [0.005]
    rig.run(lambda plan: rig.measured + np.outer(np.arange(20), (speed[0], 0.0)), ticks=15)
    rig.add(2, lambda plan: rig.measured)
    rig.activate(2, "REST", timeout_s=60.0)
    assert set(generations(rig, 50)) == {1}
    speed[0] = 0.0
    acting = generations(rig, 50)
    assert acting[-1] == 2
    switch = len(rig.published) - 50 + acting.index(2)
    rested = np.abs(np.diff(np.array(rig.published[switch - 5 : switch]), axis=0))
    assert rested.max() <= 0.001


def test_a_swap_now_takes_over_as_soon_as_the_first_chunk_is_there(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    while rig.loop.queue.boundary - rig.loop.queue.plan < 8:
        rig.tick()
    rig.add(2, (0.01, 0.0))
    rig.activate(2, "NOW")
    acting = generations(rig, 6)
    assert acting[-1] == 2


def test_only_now_replaces_a_lost_generation_and_motion_comes_back_by_resume(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    rig.add(2, (0.01, 0.0))
    rig.send("remove_generation", generation=1)
    rig.tick(5)
    assert rig.of("HOLD")[-1]["reason"] == "WORKER_LOST" and rig.loop.reasons.latched
    rig.activate(2, "CHUNK", swap_id="c")
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "GENERATION_LOST"
    rig.activate(2, "NOW", swap_id="n")
    assert report(rig) == {"generation": 2, "previous": 0, "before": pytest.approx(np.zeros(2))}
    rig.tick(50)
    assert not rig.loop.running
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.running and rig.loop.generation == 2


def test_a_rollback_of_a_generation_that_broke_a_limit_is_instant_and_the_hold_stays(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    rig.policies[1] = lambda plan: (9.0, 0.0)
    rig.tick(20)
    assert rig.loop.reasons.latched == "LIMIT"
    rig.add(2, (0.01, 0.0))
    rig.activate(2, "NOW")
    assert rig.loop.active.id == 2
    rig.tick(50)
    assert not rig.loop.running
    rig.send("resume")
    rig.tick(10)
    assert rig.loop.generation == 2 and rig.loop.running


def test_a_rollback_that_is_pending_when_the_hold_comes_happens_then(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    rig.add(2, lambda plan: None)
    rig.activate(2, "NOW")
    rig.tick()
    assert rig.loop.active.id == 1
    rig.hold("WORKER_LOST")
    rig.tick()
    assert rig.loop.active.id == 2 and rig.loop.pending is None


def test_a_swap_while_motion_is_disabled_is_refused_but_now_moves_the_pointer(make_rig: Any) -> None:
    rig = make_rig(motion=True, auto=True)
    rig.motion_ns = rig.now_ns + 10**12
    rig.run(ticks=15)
    rig.add(2)
    rig.motion_ns = 0
    rig.tick(2)
    rig.activate(2, "CHUNK", swap_id="c")
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "MOTION_DISABLED"
    rig.activate(2, "NOW", swap_id="n", cause="ROLLBACK")
    assert rig.loop.active.id == 2
    assert rig.tick() is None


def test_a_pending_swap_fails_when_motion_is_disabled(make_rig: Any) -> None:
    rig = make_rig(motion=True)
    rig.motion_ns = rig.now_ns + 10**12
    rig.start(ticks=15)
    rig.add(2, lambda plan: None)
    rig.activate(2, "CHUNK", swap_id="p")
    rig.tick(2)
    rig.motion_ns = 0
    rig.tick()
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "MOTION_DISABLED"
    assert rig.loop.active.id == 1


def test_a_second_swap_is_refused_while_one_is_pending_but_now_supersedes_it_and_cancel_takes_it_back(
    make_rig: Any,
) -> None:
    rig = make_rig()
    rig.run(ticks=15)
    rig.add(2, lambda plan: None)
    rig.add(3, (0.0, 0.0))
    rig.activate(2, "CHUNK", swap_id="one")
    rig.activate(3, "CHUNK", swap_id="two")
    assert rig.of("SWAP_FAILED")[-1] | {"message": ""} == {
        "type": "SWAP_FAILED",
        "swap_id": "two",
        "generation": 3,
        "error_code": "SWAP_IN_PROGRESS",
        "message": "",
    }
    rig.activate(3, "NOW", swap_id="three")
    assert (rig.of("SWAP_FAILED")[-1]["swap_id"], rig.of("SWAP_FAILED")[-1]["error_code"]) == ("one", "SUPERSEDED")
    rig.send("cancel_activation", swap_id="one")
    assert rig.loop.pending is not None
    rig.send("cancel_activation", swap_id="three")
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "CANCELLED"
    assert set(generations(rig, 30)) == {1}


def test_the_new_worker_dying_before_the_swap_costs_nothing(make_rig: Any) -> None:
    rig = make_rig()
    rig.run((0.0, 0.0), ticks=15)
    rig.add(2, lambda plan: None)
    rig.activate(2, "CHUNK")
    rig.tick(3)
    rig.send("remove_generation", generation=2)
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "GENERATION_LOST"
    assert set(generations(rig, 30)) == {1} and not rig.of("HOLD")


def test_chunks_of_another_generation_a_stale_request_or_a_repeat_are_refused(make_rig: Any) -> None:
    rig = make_rig()
    worker = rig.run((0.0, 0.0), ticks=15)
    rig.latency = 5
    while worker.request() is None:
        rig.tick()
    request = worker.request()
    rig.policies[1] = lambda plan: None
    before = rig.loop.active.refused
    for fields in ({"generation": 9}, {"request": int(request["request"]) - 1}, {"tick": int(request["tick"]) + 1}):
        worker.answer((0.29, 0.29), request={**request, "request": fields.pop("request", request["request"])}, **fields)
        rig.tick()
    assert rig.loop.active.refused == before + 3
    worker.answer((0.01, 0.0), request=request)
    rig.tick()
    worker.answer((0.29, 0.29), request=request)  # a second time
    rig.tick(3)
    assert rig.loop.active.refused == before + 4
    assert max(c[0] for c in rig.published if c is not None) <= 0.01 + 1e-6


def test_messages_that_cannot_be_followed_are_answered_and_change_nothing(make_rig: Any) -> None:
    rig = make_rig()
    rig.run(ticks=15)
    bad = [
        {"type": "nonsense"},
        {"type": "activate"},
        {"type": "enable"},
        {"type": "episode_missing"},
        {"type": "end_span", "span_id": 4, "after_s": 1},
        {"type": "add_generation", "handle": {}},
        {},
        [],
        7,
        None,
        {"type": "activate", "generation": [1], "at": "NOW", "swap_id": "x", "timeout_s": 1.0, "asked_ns": 0},
        {"type": "remove_generation", "generation": 55},
    ]
    for message in bad:
        rig.commands.apply(message, (), rig.now_ns)
    assert len(rig.of("REFUSED")) == len(bad)
    rig.tick(20)
    assert rig.loop.running and not rig.of("HOLD")


def test_a_failed_swap_at_an_episode_lets_the_old_generation_begin_the_episode_anew_at_once(make_rig: Any) -> None:
    rig = make_rig()
    worker = rig.run((0.0, 0.0), ticks=15)
    rig.add(2, "POLICY_FAILED")
    rig.activate(2, "EPISODE", timeout_s=60.0)
    while rig.loop.queue.boundary - rig.loop.queue.plan != 8:
        rig.tick()
    rig.episode += 1
    rig.tick(5)
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "POLICY_FAILED"
    request = worker.requests.read()[1]
    assert request["reset"] == 1 and rig.loop.queue.current.start == request["tick"]
    assert rig.loop.running and not rig.of("HOLD")


def test_the_typical_step_is_that_of_the_last_second() -> None:
    history = CommandHistory(50, 2)
    assert history.typical_step(0) == 0.0
    for k in range(500):
        history.add(np.array([k * (1.0 if k < 400 else 0.01), 0.0]))
    assert history.typical_step(0) == pytest.approx(0.01)
    assert history.typical_step(1) == 0.0
    history.clear()
    assert history.typical_step(0) == 0.0


def test_the_seam_is_the_largest_change_in_units_of_the_step_limits() -> None:
    assert seam(np.zeros(3), np.array([0.5, -0.2, 0.0]), np.array([1.0, 0.1, 0.1])) == (1, pytest.approx(0.2))
    assert seam(None, np.ones(3), np.ones(3)) == (0, 0.0)


def chunk(start: int, rows: Any, verdicts: Any = None, execute: int = 4) -> Chunk:
    actions = np.asarray(rows, dtype=np.float64)[:, None]
    judged = np.zeros(len(actions), np.uint8) if verdicts is None else np.asarray(verdicts, np.uint8)
    return Chunk(1, start, execute, actions, judged, 0, [np.inf] * len(actions))


def test_a_refused_action_of_the_old_chunk_is_not_blended_in() -> None:
    queue = ChunkQueue(blend_ticks=3)
    queue.take_over(chunk(0, [0.0] * 10, [0, 0, 0, 0, 2, 0, 0, 0, 0, 0]))
    queue.offer(chunk(2, [1.0] * 10))
    seen = []
    for _ in range(8):
        action = queue.peek()
        assert action is not None
        seen.append(float(action.values[0]))
        queue.advance()
    assert seen == [0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.75, 1.0]


def test_the_queue_serves_the_rest_of_the_old_chunk_when_the_next_one_is_late_and_then_runs_dry() -> None:
    queue = ChunkQueue(blend_ticks=0)
    queue.take_over(chunk(0, range(6)))
    seen = []
    for _ in range(6):
        seen.append(float(queue.peek().values[0]))
        queue.advance()
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert queue.peek() is None and queue.left == 0
    queue.offer(chunk(0, range(6)))  # its last action was due a tick ago
    assert queue.peek() is None
    queue.offer(chunk(5, range(6)))
    assert queue.peek().values[0] == 1.0
