"""Hard limits, motion_enabled and rollbacks: what the engine makes of a hold, and that a way back is never gated."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle

from vla_policy_node import engine
from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.generations import recovery
from vla_policy_node.generations.swapping import SwapError, SwapRequest

LATCHED = {"auto_resume": False}
MOTION = {"auto_resume": False, "motion_required": True}


def stays(rig: EngineRig, ticks: int = 30) -> bool:
    """Whether nothing is published, or always the same, for so many ticks."""
    start, tick = len(rig.commands()[1]), rig.control.tick
    rig.wait_for(lambda: rig.control.tick > tick + ticks, "time to pass")
    values = rig.commands()[1][start:]
    return len(values) == 0 or bool((values == values[0]).all())


def test_a_jump_is_not_commanded_it_is_a_latched_hold_and_a_score_and_rollback_works_in_it(tmp_path: Path) -> None:
    good = scripted_bundle(tmp_path / "good", "1.0.0").digest
    scripted_bundle(tmp_path / "bad", "1.1.0", jump_from_call=6, jump=1.5)
    scripted_bundle(tmp_path / "other", "1.2.0")
    with EngineRig(tmp_path, contract=LATCHED, model_path=str(tmp_path / "good")) as rig:
        rig.wait_running("1.0.0")
        bad, _ = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "bad"), trial=True, trial_lease_s=60.0))
        rig.wait_for(lambda: any(s.source == "hard_limit" for s in rig.scores), "the score")
        score = next(s for s in rig.scores if s.source == "hard_limit")
        assert (score.value, score.generation, score.version) == (1.0, bad.id, "1.1.0")
        status, snapshot = rig.control, rig.snapshot
        assert (status.mode, status.latched, status.hold_reason) == ("HOLDING", True, "LIMIT")
        assert snapshot.error_code == "LIMIT" and ("j1" in snapshot.message or "j2" in snapshot.message)
        assert snapshot.active is bad and bad.generation.alive  # the manager judges; nothing was lost
        values = rig.commands()[1]
        assert np.abs(np.diff(values, axis=0)).max() <= 4.0 / 50 + 1e-6 and np.abs(values).max() < 0.5
        rig.wait_for(lambda: np.array_equal(*rig.commands()[1][-2:]), "the stop")
        scores = len(rig.scores)
        assert stays(rig) and len(rig.scores) == scores  # no scores while holding

        _, report = rig.engine.swap(SwapRequest(digest=good, cause="ROLLBACK"))  # at CHUNK, which does not come
        assert report is not None and (report.at, report.cause, report.warm) == ("NOW", "ROLLBACK", True)
        assert not rig.snapshot.on_trial and rig.control.latched and stays(rig)  # rolled back, and still latched
        assert rig.engine.resume() == ""
        rig.wait_running("1.0.0")
        assert not rig.snapshot.error_code


def test_after_a_start_nothing_moves_until_resume_and_a_swap_does_not_change_that(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with EngineRig(tmp_path, contract=LATCHED, resumed=False, model_path=str(tmp_path / "a")) as rig:
        rig.wait_for(lambda: rig.snapshot.active is not None, "the policy")
        assert stays(rig) and not len(rig.commands()[1])
        status = rig.control
        assert (status.mode, status.latched, status.hold_reason) == ("HOLDING", True, "STARTUP")
        scripted_bundle(tmp_path / "b", "1.1.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b"), at="NOW"))
        assert stays(rig) and not len(rig.commands()[1]) and rig.control.latched
        assert rig.engine.resume() == ""
        rig.wait_running("1.1.0")


def test_an_update_waits_for_a_held_robot_and_gives_up_in_time(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "bad", "1.0.0", jump_from_call=6, jump=1.5)
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, contract=LATCHED, model_path=str(tmp_path / "bad")) as rig:
        rig.wait_for(lambda: rig.control.hold_reason == "LIMIT", "the hold")
        with pytest.raises(SwapError) as caught:
            rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b"), timeout_s=0.3))
        assert caught.value.code == "SWAP_TIMEOUT" and rig.snapshot.active.version == "1.0.0"  # type: ignore[union-attr]


def test_stale_motion_enabled_stops_everything_and_nothing_resumes_by_itself(tmp_path: Path) -> None:
    first = scripted_bundle(tmp_path / "a", "1.0.0").digest
    second = scripted_bundle(tmp_path / "b", "1.1.0").digest
    with EngineRig(tmp_path, contract=MOTION, model_path=str(tmp_path / "a")) as rig:
        rig.wait_for(lambda: rig.snapshot.active is not None, "the policy")
        assert rig.control.mode == "MOTION_DISABLED" and len(rig.commands()[1]) == 0  # nobody has permitted it yet
        assert "MOTION_DISABLED" in rig.engine.resume()
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING" and rig.control.latched, "permission")
        assert stays(rig)
        assert rig.engine.resume() == ""
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        rig.wait_running("1.1.0")

        rig.motion = None  # nobody says anything any more: after the contract's timeout that is "no"
        rig.wait_for(lambda: rig.control.mode == "MOTION_DISABLED", "the stop")
        count = len(rig.commands()[1])
        assert not rig.snapshot.motion_permitted
        scripted_bundle(tmp_path / "c", "1.2.0")
        for request in (
            SwapRequest(digest=first),
            SwapRequest(digest=first, at="NOW"),
            SwapRequest(bundle_path=str(tmp_path / "c")),
        ):
            with refused("MOTION_DISABLED"):
                rig.engine.swap(request)
        assert rig.snapshot.active.digest == second  # type: ignore[union-attr]
        _, report = rig.engine.swap(SwapRequest(digest=first, cause="ROLLBACK"))
        assert report is not None and rig.snapshot.active.digest == first  # type: ignore[union-attr]
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "permission again")
        assert rig.control.latched and stays(rig) and len(rig.commands()[1]) == count
        measured = rig.commands()[1][-1]
        assert rig.engine.resume() == ""
        rig.wait_running("1.0.0")
        assert np.abs(rig.commands()[1][count] - measured).max() <= 4.0 / 50 + 1e-6  # from where the robot is


def test_a_rollback_does_not_wait_for_observations_that_no_longer_come(tmp_path: Path) -> None:
    first = scripted_bundle(tmp_path / "a", "1.0.0").digest
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        rig.wait_running("1.1.0")
        rig.feeding = False
        rig.wait_for(lambda: rig.control.hold_reason == "OBSERVATION_STALE", "the hold")
        begun = rig.control.tick
        rig.engine.swap(SwapRequest(digest=first, cause="ROLLBACK", timeout_s=80.0))
        assert rig.control.tick - begun < 40 * 50 and rig.control.hold_reason == "OBSERVATION_STALE"
        rig.feeding = True
        rig.wait_running("1.0.0")


def test_the_instruction_of_an_episode_reaches_the_policy_and_ends_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", echo=True, print_resets=True)
    caplog.set_level("INFO", "vla_policy_node")

    def said() -> str:
        return "\n".join(record.getMessage() for record in caplog.records)

    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), instruction="stand by") as rig:
        rig.wait_running()
        rig.wait_for(lambda: "'stand by'" in said(), "the default instruction")
        resets = said().count(" reset ")
        rig.engine.start_episode("one", "reach the blue block", 0.0)
        rig.wait_for(lambda: "'reach the blue block'" in said(), "the instruction")
        assert said().count(" reset ") > resets  # the policy began anew
        assert rig.snapshot.instruction == "reach the blue block" and rig.snapshot.episode_id == "one"
        rig.engine.set_instruction("wait")  # not now: an episode names its own
        assert rig.snapshot.instruction == "reach the blue block"
        rig.engine.end_episode("one", success=True)
        rig.wait_for(lambda: "'wait'" in said(), "the default again")
        assert rig.snapshot.instruction == "wait"
        for text in ("x" * 1025, "a\0b", "é" * 513):
            with pytest.raises(PolicyNodeError) as caught:
                rig.engine.start_episode("two", text, 0.0)
            assert caught.value.code == "INSTRUCTION_TOO_LONG" and rig.snapshot.episode_id == ""
            with pytest.raises(PolicyNodeError):
                rig.engine.set_instruction(text)
        assert rig.snapshot.instruction == "wait"
        for value in (-1.0, float("nan"), 1e9):
            with pytest.raises(PolicyNodeError) as caught:
                rig.engine.start_episode("two", "", value)
            assert caught.value.code == "DURATION_INVALID" and rig.snapshot.episode_id == ""


def test_an_episode_is_told_once_with_what_acted_in_it(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        begun = time.monotonic()
        rig.engine.start_episode("one", "reach", 0.0)
        rig.engine.end_episode("one", success=True, intervention=True)
        longest = time.monotonic() - begun
        outcome = rig.outcomes[0]
        assert (outcome.episode_id, outcome.instruction, outcome.success, outcome.known) == ("one", "reach", True, True)
        assert outcome.intervention and not outcome.mixed and 0.0 <= outcome.duration_s <= longest
        for call, code in (
            (lambda: rig.engine.end_episode("one", success=True), "NO_EPISODE"),
            (lambda: rig.engine.start_episode("not a name", "", 0.0), "EPISODE_ID_INVALID"),
            (lambda: rig.engine.start_episode("x" * 129, "", 0.0), "EPISODE_ID_INVALID"),
        ):
            with refused(code):
                call()
        rig.engine.start_episode("two", "", 0.0)
        rig.wait_for(lambda: bool(rig.engine._episodes.open.generations), "the first one acting")  # type: ignore[union-attr]
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b"), at="NOW"))
        rig.wait_running("1.1.0")
        for call, code in (
            (lambda: rig.engine.start_episode("three", "", 0.0), "EPISODE_OPEN"),
            (lambda: rig.engine.end_episode("three", success=True), "WRONG_EPISODE"),
        ):
            with refused(code):
                call()
        rig.engine.end_episode("", success=False)  # at once: the second one has acted for moments only
        assert rig.outcomes[1].mixed and not rig.outcomes[1].success
        name = rig.engine.start_episode("", "", 0.1).episode_id  # a client that dies
        rig.wait_for(lambda: len(rig.outcomes) == 3, "the end by time")
        assert rig.outcomes[2].episode_id == name and not rig.outcomes[2].known and not rig.outcomes[2].success
        assert not rig.outcomes[2].mixed and rig.snapshot.episode_id == ""


def test_with_require_episode_the_robot_holds_between_episodes(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), require_episode=True) as rig:
        rig.wait_for(lambda: rig.snapshot.active is not None and rig.control.hold_reason == "NO_EPISODE", "the hold")
        with pytest.raises(PolicyNodeError):
            rig.engine.start_episode("one", "x" * 2000, 0.0)
        assert stays(rig) and rig.control.hold_reason == "NO_EPISODE"  # what was refused opened nothing
        for name in ("one", "two"):
            rig.engine.start_episode(name, "", 0.0)
            rig.wait_running("1.0.0")
            rig.engine.end_episode(name, success=True)
            rig.wait_for(lambda: rig.control.hold_reason == "NO_EPISODE", "the hold")
        assert not rig.scores or all(s.episode_id in ("one", "two") for s in rig.scores)


def test_scores_are_emitted_while_it_acts_and_a_jerky_policy_s_are_larger(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "calm", "1.0.0", golden=False)
    scripted_bundle(tmp_path / "jerky", "1.1.0", golden=False, frequency_hz=11.0, amplitude=0.1)
    with EngineRig(tmp_path, model_path=str(tmp_path / "calm")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.start_episode("one", "", 0.0)
        rig.wait_for(lambda: sum(s.source == "tce" for s in rig.scores) >= 8, "scores")
        calm = list(rig.scores)
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "jerky"), at="NOW"))
        rig.wait_for(lambda: sum(s.generation == 2 and s.source == "tce" for s in rig.scores) >= 8, "scores")
        jerky = [s for s in rig.scores if s.generation == 2]
        assert {s.version for s in jerky} == {"1.1.0"} and {s.source for s in jerky} == {"tce", "reversal", "magnitude"}
        assert all(s.episode_id in ("", "one") for s in calm) and jerky[-1].episode_id == "one"
        for source in ("reversal", "magnitude"):
            of = [np.median([s.value for s in scores if s.source == source]) for scores in (calm, jerky)]
            assert of[1] > 2 * of[0] + 0.1, (source, of)
        rig.feeding = False
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "the hold")
        rig.wait_for(lambda: np.array_equal(*rig.commands()[1][-2:]), "the stop")
        rig.supervised()
        count = len(rig.scores)
        assert stays(rig) and len(rig.scores) == count


@pytest.mark.parametrize("enabled", [False, True])
def test_activation_is_told_when_it_is_so_and_a_control_process_that_does_not_answer_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        rig.engine.enable(False)
        count = len(rig.commands()[1])
        assert stays(rig) and len(rig.commands()[1]) == count
        if not enabled:
            rig.engine.enable(True)
            rig.wait_running()
        pid = rig.engine._control.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(engine, "_ENABLE_S", 2.0)
        with refused("CONTROL_UNRESPONSIVE"):
            rig.engine.enable(enabled)
        rig.wait_for(lambda: rig.engine.control_lost, "its end")
        assert not enabled or len(rig.commands()[1]) == count  # what was asked for does not happen later
        with refused("CONTROL_LOST"):
            rig.engine.enable(True)


def test_a_first_load_that_fails_for_a_passing_reason_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_START_WAITS_S", (0.1, 0.5, 3.0, 30.0))
    scripted_bundle(tmp_path / "a", "1.0.0")
    flag = tmp_path / "a" / "config.json"
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), worker_python=str(tmp_path / "python")) as rig:
        rig.wait_for(lambda: rig.snapshot.error_code == "WORKER_START_FAILED", "the first failure")
        assert rig.snapshot.loading and flag.exists()
        late = tmp_path / "late"  # as on a volume that is mounted after the node has started
        late.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        late.chmod(0o755)
        late.rename(tmp_path / "python")
        rig.wait_running("1.0.0", 30.0)
