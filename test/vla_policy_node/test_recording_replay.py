# SPDX-License-Identifier: Apache-2.0
"""A replay builds observations as the node does, in the recording's time, and reads commands as the robot was given them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.bundles import JOINTS
from support.engine_rig import contract_text
from support.scripted import scripted_bundle, worker_config

from vla_policy_node.contract.model import Contract, parse_contract
from vla_policy_node.errors import ObservationError, WorkerError
from vla_policy_node.replay.compare import between, commanded, table, with_commands
from vla_policy_node.replay.replay import STATUS, Message, Replayed, replay

BEGIN_NS = 1_767_225_600 * 10**9
PERIOD_NS = 20_000_000


def joints(tick: int, *position: float, stamp_ns: int = 0, names: tuple[str, ...] = ("j1", "j2")) -> Message:
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    value = SimpleNamespace(header=SimpleNamespace(stamp=stamp), name=names, position=position)
    return Message("joint_states", BEGIN_NS + tick * PERIOD_NS, value)


def moving(ticks: int, silent: range = range(0)) -> Iterator[Message]:
    """A robot whose first joint goes 0.01 rad a tick."""
    yield from (joints(t, 0.01 * t, 0.5) for t in range(ticks) if t not in silent)


def run(
    tmp_path: Path,
    messages: Any,
    *,
    contract: Contract | None = None,
    instruction: str | None = None,
    offsets: tuple[float, ...] = (0.0,),
    **bundle: Any,
) -> Replayed:
    paths = [tmp_path / f"b{i}" for i in range(len(offsets))]
    for path, offset in zip(paths, offsets, strict=True):
        settings = {"amplitude": 0.0, "offset": (0.0, offset), "from_state": True, "golden": False, **bundle}
        scripted_bundle(path, **settings)
    contract = contract or parse_contract(contract_text(tolerance_ms=200, max_age_ms=250))
    return replay(contract, messages, paths, worker_config(spare=False), instruction)


def test_each_bundle_is_asked_at_every_boundary_with_what_was_observed_then(tmp_path: Path) -> None:
    found = run(tmp_path, moving(100), offsets=(0.0, 0.25))
    assert found.times_s == pytest.approx(np.arange(1, 100, 8) * 0.02)  # the first tick has seen nothing yet
    observed = found.times_s / 0.02 * 0.01 - 0.01  # the message of the tick itself comes after it
    assert found.actions[0].shape == (13, 8, 2)
    assert found.actions[0][:, 0, 0] == pytest.approx(observed, abs=1e-6)
    assert (found.actions[1] - found.actions[0])[:, :, 1] == pytest.approx(0.25, abs=1e-6)
    channels = parse_contract(contract_text(tolerance_ms=200, max_age_ms=250)).channels
    compared = between(found, channels, "A and B", 0, 1)
    first, second = compared.differences
    assert (first.largest, second.mean) == (0.0, pytest.approx(0.25, abs=1e-6)) and compared.compared == 13 * 8
    assert "  j1 " in table(compared) and table(compared).startswith("A and B (104 actions)")


def test_where_an_observation_is_too_old_nothing_is_asked_until_it_is_fresh_again(tmp_path: Path) -> None:
    found = run(tmp_path, moving(200, silent=range(50, 100)))
    asked = set(np.round(found.times_s / 0.02).astype(int))
    assert not asked & set(range(61, 101)) and asked & set(range(101, 110))  # 200 ms are allowed
    assert 25 < found.postponed <= 41


def test_a_clock_that_is_set_by_years_costs_no_time(tmp_path: Path) -> None:
    booted = Message("joint_states", 10**9, joints(0, 0.0, 0.0).value)  # 1970, before the time server answered
    found = run(tmp_path, [booted, *moving(50)])
    assert len(found.times_s) == 7 and found.postponed == 0


def test_a_robot_on_simulated_time_is_aged_by_its_own_clock(tmp_path: Path) -> None:
    contract = parse_contract(
        contract_text(tolerance_ms=200, max_age_ms=250).replace("timeline: receive", "timeline: header")
    )
    messages = (joints(t, 0.0, 0.0, stamp_ns=10**9 + t * PERIOD_NS) for t in range(100))
    assert len(run(tmp_path, messages, contract=contract).times_s) == 13


def test_actions_that_are_relative_begin_at_the_measured_position(tmp_path: Path) -> None:
    text = contract_text(tolerance_ms=200, max_age_ms=250).replace("mode: absolute", "mode: relative")
    found = run(
        tmp_path,
        moving(50),
        contract=parse_contract(text),
        from_state=False,
        amplitude=0.0,
        offset=0.02,
        channels=[type(c)(c.name, c.unit, "relative") for c in JOINTS],
    )
    observed = found.times_s / 0.02 * 0.01 - 0.01
    assert found.actions[0][:, 3, 0] == pytest.approx(observed + 0.02, abs=1e-6)


def test_an_episode_of_the_recording_resets_the_policy_and_gives_its_instruction(tmp_path: Path) -> None:
    def recorded() -> Iterator[Message]:
        for tick in range(60):
            episode = f"e{tick // 20}"
            status = SimpleNamespace(state=2, episode_id=episode, instruction=f"task {episode}")
            yield Message(STATUS, BEGIN_NS + tick * PERIOD_NS, status)
            yield joints(tick, 0.0, 0.0)

    with pytest.raises(WorkerError) as refused:
        run(tmp_path, recorded(), reset_raises_at=4)  # the warm-up's, then one an episode
    assert refused.value.code == "POLICY_FAILED"
    assert len(run(tmp_path / "given", recorded(), instruction="another", reset_raises_at=4).times_s) == 8


@pytest.mark.parametrize("kind", ["array", "trajectory"])
def test_a_policy_is_compared_with_what_was_commanded_and_with_nothing_where_nothing_was(
    tmp_path: Path, kind: str
) -> None:
    text = contract_text(tolerance_ms=200, max_age_ms=250)
    if kind == "trajectory":
        text = text.replace("std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory")
        text = text.replace("[data.0, data.1]", "[position.j1, position.j2]")

    def recorded() -> Iterator[Message]:
        for tick in range(100):
            yield joints(tick, 0.0, 0.5)
            if tick in (50, 80):  # from then on a policy acts; from then on the robot holds
                status = SimpleNamespace(state=2 if tick == 50 else 3, episode_id="", instruction="")
                yield Message(STATUS, BEGIN_NS + tick * PERIOD_NS, status)
            if tick >= 50:
                point = SimpleNamespace(positions=(0.6, 0.1), velocities=(), effort=())
                value = SimpleNamespace(data=(0.1, 0.6), joint_names=("j2", "j1"), points=(point,))
                yield Message("commands", BEGIN_NS + tick * PERIOD_NS, value)

    found = run(tmp_path, recorded(), contract=parse_contract(text))
    assert list(np.isfinite(commanded(found, 0, np.array([0.5, 1.5, 1.8])))) == [False, True, False]
    compared = with_commands(found, parse_contract(text).channels, "A and commands", 0)
    assert [d.largest for d in compared.differences] == [pytest.approx(0.1), pytest.approx(0.1)]
    assert 20 < compared.compared < 40


def test_a_recording_that_never_shows_everything_is_refused_and_says_what_could_not_be_used(tmp_path: Path) -> None:
    messages = (joints(t, 0.0, 0.0, names=("a", "b")) for t in range(20))
    with pytest.raises(ObservationError, match=r"OBSERVATION_FIELD_MISSING: joint_states: .*\(20 times\)") as refused:
        run(tmp_path, messages)
    assert refused.value.code == "BAG_EMPTY"


def test_a_policy_that_dies_of_an_observation_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"pick_place 1\.0\.0") as refused:
        run(tmp_path, moving(50), crash_at_call=2)
    assert refused.value.code == "WORKER_DIED"
