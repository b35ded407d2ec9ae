"""Every request is answered with a chunk or a coded error, and a policy's misbehaviour in one does not touch the next."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.scripted import scripted_bundle
from support.worker_robot import WorkerRobot


def test_a_chunk_answers_its_request_with_physical_units(tmp_path: Path) -> None:
    scripted_bundle(
        tmp_path / "a", horizon=16, amplitude=(0.5, 0.0), offset=(0.0, 1.25), frequency_hz=0.1, sleep_s=0.02
    )
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        before = time.monotonic()
        answer = robot.chunk(generation, tick=1234)
        after = time.monotonic()
        actions = answer["actions"]
        assert answer["error"] == ""
        assert answer["tick"] == 1234
        assert answer["generation"] == generation.id
        assert before * 1e9 <= answer["observation_ns"] <= after * 1e9
        assert 0.02e9 <= answer["inference_ns"] <= (after - before) * 1e9
        assert actions.dtype == np.float32
        assert np.allclose(actions[:, 1], 1.25)
        wave = 0.5 * np.sin(2 * np.pi * 0.1 * (before + np.arange(16) / 50.0))
        assert np.allclose(
            actions[:, 0], wave, atol=0.35 * (after - before) + 1e-3
        )  # the sinusoid's slope is below 0.35 / s


@pytest.mark.parametrize(
    ("behaviour", "error", "text"),
    [
        ({"raise_at_call": 1}, "POLICY_FAILED", "ValueError: the script says so"),
        ({"nan_at_call": 1}, "NAN", "action 15, channel 0"),
        ({"wrong_shape_at_call": 1}, "WRONG_SHAPE", "(16, 1)"),
        ({"float64_at_call": 1}, "WRONG_SHAPE", "float64"),
    ],
)
def test_a_policy_that_fails_once_is_reported_and_asked_again(
    tmp_path: Path, behaviour: dict[str, Any], error: str, text: str
) -> None:
    scripted_bundle(tmp_path / "a", horizon=16, **behaviour)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        robot.assert_works(generation)
        bad = robot.chunk(generation)
        assert bad["error"] == error
        assert np.isnan(bad["actions"]).all()  # nobody can act on it by mistake
        event = robot.wait_for(lambda e: e.kind == "CHUNK_ERROR")
        assert event.code == error
        assert event.generation is generation
        assert text in event.message
        robot.assert_works(generation)


@pytest.mark.parametrize("observed", [None, {"valid": 0}, {"age_s": 30.0}])
def test_no_action_comes_from_a_missing_or_old_observation(tmp_path: Path, observed: dict[str, Any] | None) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=False, observation_max_age_s=20.0) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        if observed is not None:
            robot.observe(**observed)
        answer = robot.answer(generation, robot.request(generation))
        assert answer is not None
        assert answer["error"] == "OBSERVATION_STALE"
        assert np.isnan(answer["actions"]).all()
        robot.assert_works(generation)


def test_the_policy_sees_state_and_instruction_as_they_were_observed(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", echo=True)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        robot.observe(state=(0.5, -0.25), instruction="lege den grünen Würfel ab")
        assert robot.answer(generation, robot.request(generation)) is not None
        assert "'lege den grünen Würfel ab' [0.5, -0.25]" in robot.logged("call 0 ")


def resets(robot: WorkerRobot) -> int:
    return max(int(e.message.split()[1]) for e in robot.events if e.kind == "LOG" and e.message.startswith("reset "))


def test_the_policy_is_reset_at_its_start_when_asked_and_with_each_episode(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", print_resets=True, echo=True)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")

        def ask(call: int, *, episode: int, reset: bool = False) -> int:
            robot.observe(episode=episode)
            assert robot.answer(generation, robot.request(generation, reset=reset)) is not None
            robot.logged(f"call {call} ")
            return resets(robot)

        first = ask(0, episode=7)
        assert ask(1, episode=7) == first
        assert ask(2, episode=7, reset=True) == first + 1
        assert ask(3, episode=8) == first + 2
        assert ask(4, episode=8) == first + 2


def test_a_reset_asked_for_in_an_overtaken_request_is_not_lost(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", print_resets=True, sleep_s=0.2, echo=True)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        robot.observe()
        assert robot.answer(generation, robot.request(generation)) is not None
        robot.logged("call 0 ")
        before = resets(robot)
        robot.request(generation)
        time.sleep(0.05)  # the policy is busy; the next two requests come meanwhile
        robot.request(generation, reset=True)
        assert robot.answer(generation, robot.request(generation)) is not None
        robot.logged(f"reset {before + 1}")


def test_a_policy_whose_reset_fails_answers_with_an_error_until_it_works(tmp_path: Path) -> None:
    resets_before_ready = 2 + 1  # two golden observations, the end of the warm-up
    scripted_bundle(tmp_path / "a", reset_raises_at=resets_before_ready + 1)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        assert robot.chunk(generation)["error"] == "POLICY_FAILED"
        robot.assert_works(generation)


def test_a_policy_that_always_fails_does_not_flood_the_node(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", raise_always=True)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        for _ in range(40):
            assert robot.chunk(generation)["error"] == "POLICY_FAILED"
        time.sleep(1.1)
        assert robot.chunk(generation)["error"] == "POLICY_FAILED"
        robot.wait_for(lambda e: e.kind == "CHUNK_ERROR" and "more not shown" in e.message)
        assert len([e for e in robot.events if e.kind == "CHUNK_ERROR"]) < 20


def test_a_policy_that_prints_much_is_cut_short_and_goes_on(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", print_lines=3000)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        robot.assert_works(generation)
        robot.logged("lines a second")
        assert len([e for e in robot.events if e.kind == "LOG"]) < 1000


def test_two_generations_answer_side_by_side(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", amplitude=0.0, offset=0.25)
    scripted_bundle(tmp_path / "b", "1.1.0", amplitude=0.0, offset=-0.5)
    with WorkerRobot(spare=False) as robot:
        a, b = (robot.pool.prepare(tmp_path / name) for name in "ab")
        for _ in range(5):
            assert np.all(robot.chunk(a)["actions"] == 0.25)
            assert np.all(robot.chunk(b)["actions"] == -0.5)
