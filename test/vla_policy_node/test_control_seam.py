# SPDX-License-Identifier: Apache-2.0
"""A swap at a chunk boundary takes the tick soon after it from which the fade is smoothest, and nothing is paid for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.control_rig import HIGH, LOW, STEP, Rig

from vla_policy_node.contract.model import ChannelLimits
from vla_policy_node.control.limits import LIMIT, Limiter
from vla_policy_node.control.queue import Chunk, ChunkQueue
from vla_policy_node.control.swap import WAYS_BACK

HORIZON, EXECUTE, BLEND = 40, 10, 3
FAR = 5.0  # outside every limit


def moving(rig: Rig, policy: Any = (0.0, 0.0), *, horizon: int = HORIZON, execute: int = EXECUTE) -> None:
    """Let generation 1 act for a while."""
    rig.add(1, policy, horizon=horizon, execute=execute)
    rig.activate(1, "NOW")
    rig.begin()
    rig.tick(5)
    while rig.loop.queue.boundary - rig.loop.queue.plan != 8:
        rig.tick()
    assert rig.loop.running


def meeting(target: int, horizon: int = HORIZON) -> Callable[[int], Any]:
    """A policy that is at the action 0 for a fade from plan tick ``target`` on, and lies the further away the further that is."""

    def act(plan: int) -> Any:
        since = plan + np.arange(horizon) - target
        return np.outer(0.005 * np.maximum(0, np.maximum(-since, since - BLEND)), (1.0, 0.0))

    return act


def timed(positions: dict[int, float], horizon: int = HORIZON) -> Callable[[int], Any]:
    """A policy that keeps to one course: ``positions`` from which plan tick on joint a is where; before the first at 0."""
    ticks, values = sorted(positions), [0.0, *(positions[t] for t in sorted(positions))]
    return lambda plan: np.outer(
        np.take(values, np.searchsorted(ticks, plan + np.arange(horizon), "right")), (1.0, 0.0)
    )


def swap_between(
    rig: Rig, old: dict[int, float], new: dict[int, float], cause: str = "UPDATE"
) -> tuple[int, list[float]]:
    """Swap between two courses; return the swap's tick and joint a's actions from tick -1 on. The boundary is tick 0."""
    at = 20  # the second boundary
    rig.add(1, timed({at + t: a for t, a in old.items()}), horizon=HORIZON, execute=EXECUTE)
    rig.add(2, timed({at + t: a for t, a in new.items()}), horizon=HORIZON, execute=EXECUTE)
    rig.activate(1, "NOW")
    rig.begin()
    while rig.loop.queue.plan < at - 9:
        rig.tick()
    assert rig.loop.queue.boundary == at
    rig.activate(2, "CHUNK", cause=cause)
    switched, actions = -1, []
    while rig.loop.queue.plan < at + 2 * EXECUTE and not rig.of("HOLD") and not rig.of("SWAP_FAILED"):
        rig.tick()
        if rig.loop.queue.plan >= at and rig.loop.policy_action is not None:
            actions.append(float(rig.loop.policy_action[0]))
        if switched < 0 and rig.loop.generation == 2:
            switched = rig.loop.queue.plan - 1 - at
    return switched, actions


def switch(rig: Rig, ticks: int = 60) -> int:
    """Return the plan tick of generation 2's first action."""
    for _ in range(ticks):
        rig.tick()
        assert not rig.of("HOLD"), rig.of("HOLD")
        if rig.loop.generation == 2:
            return rig.loop.queue.plan - 1
    raise AssertionError(f"no swap: {rig.events}")


@pytest.mark.parametrize("after", [0, 4, EXECUTE])
def test_a_swap_takes_the_tick_within_an_executed_part_from_which_the_fade_is_smoothest(
    make_rig: Any, after: int
) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig)
    boundary, acting = rig.loop.queue.boundary, rig.loop.queue.current
    rig.add(2, meeting(boundary + after), horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "CHUNK")
    while rig.loop.queue.plan < boundary + after:
        rig.tick()
        assert rig.loop.queue.current is acting and rig.loop.generation == 1  # no other chunk of its own meanwhile
    assert switch(rig) == boundary + after
    assert np.abs([c for c in rig.published[-2:]]).max() < 1e-6


def test_it_waits_for_one_executed_part_at_most_even_if_a_later_fade_were_smoother(make_rig: Any) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig)
    boundary = rig.loop.queue.boundary
    rig.add(2, meeting(boundary + EXECUTE + 8), horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "CHUNK")
    assert switch(rig) == boundary + EXECUTE


def test_the_actions_of_the_new_chunk_stay_at_the_ticks_they_were_made_for(make_rig: Any) -> None:
    rig = make_rig(blend=0)
    moving(rig)
    boundary = rig.loop.queue.boundary
    rig.add(2, meeting(boundary + 4), horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "CHUNK")
    assert switch(rig) == boundary + 4
    rig.tick(3 + BLEND)
    np.testing.assert_allclose([c[0] for c in rig.published[-4:]], [0.0, 0.005, 0.010, 0.015], atol=1e-6)


@pytest.mark.parametrize("cause", WAYS_BACK)
def test_a_way_back_does_not_wait(make_rig: Any, cause: str) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig)
    boundary = rig.loop.queue.boundary
    rig.add(2, meeting(boundary + 4), horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "CHUNK", cause=cause)
    assert switch(rig) == boundary


def test_now_waits_for_neither_boundary_nor_a_smaller_jump(make_rig: Any) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig)
    boundary = rig.loop.queue.boundary
    rig.add(2, meeting(boundary + 4), horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "NOW")
    assert switch(rig) < boundary


def test_a_rollback_takes_the_place_of_a_swap_that_waits(make_rig: Any) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig)
    boundary = rig.loop.queue.boundary
    rig.add(3, meeting(boundary + EXECUTE), horizon=HORIZON, execute=EXECUTE)
    rig.add(2, (0.0, 0.0), horizon=HORIZON, execute=EXECUTE)
    rig.activate(3, "CHUNK", swap_id="waits")
    while rig.loop.queue.plan < boundary + 2:
        rig.tick()
    rig.activate(2, "NOW", swap_id="back", cause="ROLLBACK")
    assert switch(rig) <= boundary + 5
    assert rig.of("SWAP_FAILED")[-1]["error_code"] == "SUPERSEDED"


def test_a_swap_whose_deadline_comes_soon_does_not_wait_beyond_it(make_rig: Any) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig)
    boundary, plan = rig.loop.queue.boundary, rig.loop.queue.plan
    rig.add(2, meeting(boundary + EXECUTE), horizon=HORIZON, execute=EXECUTE)
    in_time = boundary + 7 - plan
    rig.activate(2, "CHUNK", timeout_s=in_time * rig.loop.period_ns / 1e9)
    assert boundary <= switch(rig) < boundary + 7
    assert not rig.of("SWAP_FAILED")


@pytest.mark.parametrize(("horizon", "execute"), [(15, 10), (20, 17), (20, 20)])
def test_without_actions_to_spare_it_switches_at_the_boundary(make_rig: Any, horizon: int, execute: int) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig, horizon=horizon, execute=execute)
    boundary = rig.loop.queue.boundary
    rig.add(2, meeting(boundary + 2, horizon), horizon=horizon, execute=execute)
    rig.activate(2, "CHUNK")
    assert switch(rig) == boundary


def test_a_swap_taken_back_while_it_waits_leaves_the_acting_generation_going_on(make_rig: Any) -> None:
    rig = make_rig(blend=BLEND)
    moving(rig, (0.01, 0.0))
    boundary, acting = rig.loop.queue.boundary, rig.loop.queue.current
    rig.add(2, meeting(boundary + EXECUTE), horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "CHUNK")
    while rig.loop.queue.plan < boundary + 2:
        rig.tick()
    rig.send("cancel_activation", swap_id="s")
    rig.tick()
    assert rig.loop.queue.current is not acting  # its own next chunk, which waited
    rig.tick(60)
    assert rig.loop.generation == 1 and not rig.of("HOLD")


@pytest.mark.parametrize("whose", [1, 2])
def test_an_action_that_breaks_a_limit_is_not_waited_into(make_rig: Any, whose: int) -> None:
    """Neither one beyond the executed part of the acting chunk, nor one of the new chunk that only waiting would execute."""
    rig = make_rig(blend=BLEND)
    rows = np.zeros((HORIZON, 2))
    rows[EXECUTE + BLEND + 8] = FAR if whose == 1 else 0.0
    moving(rig, rows)
    boundary = rig.loop.queue.boundary

    def new(plan: int) -> Any:
        chunk = meeting(boundary + EXECUTE)(plan)
        if whose == 2:
            chunk[boundary - plan + EXECUTE + BLEND + 4 :] = FAR
        return chunk

    rig.add(2, new, horizon=HORIZON, execute=EXECUTE)
    rig.activate(2, "CHUNK")
    assert boundary < switch(rig) < boundary + EXECUTE
    assert not rig.of("SWAP_FAILED")


def test_a_tick_is_not_chosen_if_a_later_tick_of_its_fade_breaks_a_limit(make_rig: Any) -> None:
    """Both plans lie nearest at 4, but the fade from there would step by 0.34 two ticks later."""
    rig = make_rig(blend=BLEND)
    switched, _ = swap_between(rig, {5: 0.28}, {0: 0.25, 4: 0.20, 5: 0.50})
    assert not rig.of("HOLD") and not rig.of("SWAP_FAILED")
    assert switched >= 0 and rig.loop.generation == 2


@pytest.mark.parametrize("blend", [0, BLEND])
def test_a_tick_is_not_chosen_if_the_step_to_it_breaks_a_limit(make_rig: Any, blend: int) -> None:
    """Both plans lie nearest at 4, but the step to there would be 0.5, or 0.335 if it is blended."""
    rig = make_rig(blend=blend)
    switched, _ = swap_between(rig, {4: 0.28}, {0: 0.25, 4: 0.50})
    assert not rig.of("HOLD") and not rig.of("SWAP_FAILED")
    assert switched >= 0 and rig.loop.generation == 2


def test_limits_that_the_new_version_tightens_count_in_the_choice() -> None:
    queue = ChunkQueue(blend_ticks=0)
    queue.take_over(chunk(np.zeros((12, 2))))
    new = np.tile((0.2, 0.2), (12, 1))
    new[5] = (0.1, 0.3)
    assert queue.calmest(chunk(new), limits(1.0, 1.0), early=0, latest=99) == 4
    assert queue.calmest(chunk(new), limits(0.15, 0.5), early=0, latest=99) == 5


def courses() -> st.SearchStrategy[dict[int, float]]:
    """Steps that the limits accept, on any ticks around the boundary."""
    steps = st.lists(st.sampled_from([0.0, 0.0, STEP, -STEP, 0.2, -0.1]), min_size=20, max_size=20)
    return steps.map(lambda s: dict(enumerate(reached(s), start=-5)))


def reached(steps: list[float]) -> list[float]:
    at, found = 0.0, []
    for step in steps:
        at = float(np.clip(at + step, LOW, HIGH))
        found.append(at)
    return found


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(old=courses(), new=courses(), blend=st.integers(0, 6))
def test_the_choice_never_costs_a_swap_or_a_step_that_the_boundary_would_not_have(
    old: dict[int, float], new: dict[int, float], blend: int
) -> None:
    ends = []
    for cause in ("UPDATE", WAYS_BACK[0]):  # the second switches at the boundary
        rig = Rig(blend=blend)
        try:
            switched, actions = swap_between(rig, old, new, cause)
            fade = actions[max(0, switched) :][: blend + 2]
            ends.append((rig.of("HOLD") + rig.of("SWAP_FAILED"), np.abs(np.diff(fade)).max(initial=0.0), switched))
        finally:
            rig.close()
    (faults, largest, switched), (faults_at_boundary, largest_at_boundary, _) = ends
    if not faults_at_boundary:
        assert not faults and switched >= 0
        assert largest <= largest_at_boundary + 1e-9
    else:
        assert not faults or switched <= 0  # no fault of its own, or the boundary's


@example(horizon=60, execute=20, other=(20, 2), blend=3, latency=6)
@example(horizon=60, execute=40, other=(20, 10), blend=8, latency=1)
@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    horizon=st.integers(8, 60),
    execute=st.integers(1, 40),
    other=st.tuples(st.integers(8, 60), st.integers(1, 40)),
    blend=st.integers(0, 8),
    latency=st.integers(1, 8),
)
def test_no_tick_starves_and_the_whole_overlap_is_blended_whatever_the_chunks(
    horizon: int, execute: int, other: tuple[int, int], blend: int, latency: int
) -> None:
    """The fade is smoother with every tick: it waits as long as it may."""
    early = latency + 2  # the rig's margin, and the tick on which it is asked
    for long, part in ((horizon, execute), other):
        assume(long >= max(part, early) + blend + early)
    approaching = np.outer(np.linspace(0.05, 0.0, other[0]), (1.0, 0.0))
    rig = Rig(blend=blend)
    try:
        rig.latency = latency
        rig.add(1, horizon=horizon, execute=execute)
        rig.activate(1, "NOW")
        rig.begin()
        rig.tick(3 * execute + latency + 5)
        rig.add(2, approaching, horizon=other[0], execute=other[1])
        rig.activate(2, "CHUNK", timeout_s=60.0)
        for _ in range(200):
            acting, plan = rig.loop.queue.current, rig.loop.queue.plan
            rig.tick()
            assert not rig.of("HOLD") and not rig.of("SWAP_FAILED")
            took_over = rig.loop.queue.current is not acting
            if took_over and 2 in (rig.loop.generation, acting.generation):
                assert acting.end - plan >= blend
        assert rig.loop.generation == 2
    finally:
        rig.close()


def chunk(rows: Any, start: int = 0, execute: int = 4, bad: int | None = None) -> Chunk:
    actions = np.asarray(rows, dtype=np.float64)
    verdicts = np.zeros(len(actions), np.uint8)
    if bad is not None:
        verdicts[bad] = LIMIT
    return Chunk(1, start, execute, actions, verdicts, 0, [np.inf] * len(actions))


def limits(*steps: float) -> Limiter:
    return Limiter([ChannelLimits(-9.0, 9.0, 1.0, s, 0.0) for s in steps], [f"j{i}" for i in range(len(steps))])


def test_channels_are_compared_in_units_of_their_step_limits() -> None:
    queue = ChunkQueue(blend_ticks=0)
    queue.take_over(chunk(np.zeros((12, 2))))
    new = np.tile((1.0, 0.5), (12, 1))
    new[6], new[5] = (0.4, 0.05), (0.1, 0.3)
    assert queue.calmest(chunk(new), limits(1.0, 1.0), early=0, latest=99) == 5
    assert queue.calmest(chunk(new), limits(1.0, 0.5), early=0, latest=99) == 6


def test_of_equal_ticks_the_first_counts_and_an_empty_queue_leaves_no_choice() -> None:
    queue = ChunkQueue(blend_ticks=0)
    assert queue.calmest(chunk(np.ones((12, 1))), limits(1.0), early=0, latest=99) == 0
    queue.take_over(chunk(np.zeros((12, 1))))
    assert queue.calmest(chunk(np.ones((12, 1))), limits(1.0), early=0, latest=99) == 4
    queue.at_once = True
    assert queue.calmest(chunk(np.ones((12, 1))), limits(1.0), early=0, latest=99) == 0


def test_an_acting_chunk_that_still_fades_in_leaves_no_choice() -> None:
    """Its own actions are not what is commanded, so the fade from them is not known."""
    queue = ChunkQueue(blend_ticks=3)
    queue.take_over(chunk(np.zeros((20, 1))))
    new = chunk(np.linspace(1.0, 0.0, 20)[:, None])
    assert queue.calmest(new, limits(1.0), early=0, latest=99) > 4
    queue.plan = 4
    queue.take_over(chunk(np.zeros((20, 1)), execute=3))
    assert queue.calmest(new, limits(1.0), early=0, latest=99) == queue.boundary == 7
