# SPDX-License-Identifier: Apache-2.0
"""A robot learns from its own episodes: real episodes, real training processes, the real manager."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.adaptive_robot import QUICK, AdaptiveRobot, Made, Trained, state_of
from support.refusals import refused
from support.tiny_vla_bundles import CONFIG
from support.waits import wait_for

from vla_adaptation import engine, facts
from vla_adaptation.engine import Adaptation
from vla_adaptation.job import JOB, RESULT, Job, Result, write
from vla_adaptation.process import Throttle
from vla_adaptation.settings import AdaptationSettings
from vla_adaptation.state import ROLLED_BACK
from vla_checkpoint import load_manifest, verify_bundle
from vla_ota_manager.records import Update
from vla_ota_manager.states import UpdateState

pytestmark = pytest.mark.long

TOP = Path(__file__).resolve().parents[2]


def test_an_idle_robot_trains_an_adapter_that_goes_on_trial_and_is_committed(trained: Trained) -> None:
    status = trained.status
    assert trained.committed == status.adapter_version
    assert status.adapter_version.startswith("1.0.1-adapted.x") and status.base_version == "1.0.0"
    assert (status.episodes_used, status.corrections_used) == (20, 10), "a third is held out"
    assert "pass: old recorded episodes" in status.validation and "pass: new recorded episodes" in status.validation
    bundle = verify_bundle(trained.robot / "store" / "current")
    assert bundle.manifest.kind == "adapter" and bundle.has_golden
    assert bundle.manifest.lineage["training"]["examples"] == 20 * 14
    assert trained.offers == 1


def test_episodes_with_nan_cut_off_or_of_another_contract_are_refused_and_the_others_learned(trained: Trained) -> None:
    """One that was cut off ends without saying what it is: it is not even looked at."""
    assert trained.status.episodes_refused == 2
    assert not trained.status.error_code


def test_training_stands_still_when_an_episode_begins_and_goes_on_from_its_checkpoint_after_any_kill(
    robot: AdaptiveRobot, trained: Trained
) -> None:
    robot.record()
    robot.start()
    robot.until(lambda s: robot.checkpointed())
    first, robot.episode = robot.process, "e-1"
    robot.hear()  # nothing else: no look of the thread is needed
    wait_for(lambda: state_of(first) == "T", "standing still")
    status = robot.tick()
    assert (status.state, status.waits_for) == ("PAUSED", "the end of episode e-1")
    robot.episode = ""
    robot.until(lambda s: s.state == "TRAINING")
    assert robot.process == first and state_of(first) != "T"
    robot.episode = "e-2"
    robot.tick()
    robot.later_s += engine._PAUSE_KEPT_S + 1.0  # a long episode: its memory is the robot's
    robot.until(lambda s: not Path(f"/proc/{first}").exists())
    assert robot.checkpointed()
    robot.episode = ""
    robot.until(lambda s: s.state == "TRAINING")
    robot.kill_training()
    robot.until(lambda s: s.state == "TRAINING" and robot.process != first)
    robot.stop()  # the node ends, and begins anew
    robot.start()
    status = robot.until_standing("COMMITTED")
    assert status.adapter_version == trained.status.adapter_version, "the weights are those of a run without any stop"


def test_an_adapter_that_passes_on_a_new_base_runs_on_it_and_one_that_does_not_is_dropped(
    adapted: AdaptiveRobot, tmp_path: Path
) -> None:
    offers = adapted.folder / "adaptation" / "offers"
    (offers / "tiny" / "0.9.1-adapted.x0").mkdir()  # of a record that was lost
    adapted.start()
    adapted.until(lambda s: s.base_version)
    adapted.install_base(tmp_path / "1.1.0", "1.1.0")
    status = adapted.until(lambda s: s.adapter_standing == "COMMITTED" and s.adapter_version.startswith("1.1.1"))
    assert status.base_version == "1.1.0" and adapted.committed() == status.adapter_version
    assert [folder.name for folder in offers.glob("*/*")] == [status.adapter_version]
    adapted.install_base(tmp_path / "2.0.0", "2.0.0", dim_model=2 * CONFIG.dim_model)
    status = adapted.until_standing("DROPPED")
    assert status.error_code == "ADAPTER_MISMATCH" and "is dropped" in status.message
    assert adapted.committed() == "2.0.0", "the robot runs the base"
    assert not list(offers.glob("*/*"))


def test_corrections_whose_training_another_base_ended_are_learned_from_on_that_base(
    robot: AdaptiveRobot, tmp_path: Path
) -> None:
    robot.record()
    robot.start(steps=100_000)
    robot.until(lambda s: s.state == "TRAINING")
    first = robot.process
    robot.install_base(tmp_path / "1.1.0", "1.1.0")
    assert robot.until(lambda s: s.base_version == "1.1.0" and s.state == "TRAINING").adapter_version == ""
    assert robot.process != first and not Path(f"/proc/{first}").exists()


def test_what_an_earlier_process_answered_is_not_taken_for_the_answer_of_a_killed_one(robot: AdaptiveRobot) -> None:
    """The node died between taking an adapter and remembering it; the process that makes it again dies too."""
    robot.record()
    robot.start(steps=100_000)
    robot.until(lambda s: s.state == "TRAINING")
    robot.stop()
    write(robot.folder / "adaptation" / "job" / RESULT, Result(version="1.0.1", digest="0" * 64))
    (robot.folder / "adaptation" / "job" / "bundle").mkdir(exist_ok=True)
    robot.start()
    robot.until(lambda s: s.state == "TRAINING")
    first = robot.process
    robot.kill_training()
    status = robot.until(lambda s: s.state == "TRAINING" and robot.process != first)
    assert (status.adapter_version, status.error_code) == ("", "")


def test_training_leaves_space_on_the_disk(robot: AdaptiveRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    robot.record()
    robot.start()
    monkeypatch.setattr(engine, "_SPARE_BYTES", 1 << 60)
    assert "GB of free disk space" in robot.until(lambda s: s.waits_for).waits_for
    assert not (robot.folder / "adaptation" / "job").exists()
    monkeypatch.undo()
    robot.later_s += 10.0
    robot.until(lambda s: s.state == "TRAINING")


def test_an_adapter_whose_base_was_away_for_a_moment_is_offered_again(adapted: AdaptiveRobot) -> None:
    manager = adapted.robot.engine
    assert manager is not None and manager.rollback("", "a test").success
    adapted.rewrite_state(standing="OFFERED")
    offers: list[facts.Offer] = []
    adaptation = Adaptation(AdaptationSettings(**adapted.settings), offers.append, adapted.clock)
    digest = load_manifest(adapted.adapter_folder()).digest
    refusal = replace(
        manager.status(), state=UpdateState.REJECTED, error_code="BASE_CHANGED", update_id=f"adaptation-{digest[:16]}-0"
    )
    for _ in range(2):
        adaptation.policy(facts.Policy(""))
        adaptation.manager(refusal)
        adaptation.tick()
    adaptation.close()
    assert [offer.update_id for offer in offers] == [f"adaptation-{digest[:16]}-1"]


def test_nothing_is_trained_without_enough_corrections_and_the_status_says_how_many_are_there(
    robot: AdaptiveRobot,
) -> None:
    robot.record(corrected=0, plain=16)
    robot.start()
    status = robot.until(lambda s: "corrected" in s.waits_for)
    assert status.waits_for == "0 of 15 new corrected episodes and 16 of 15 successes are there"
    robot.record(corrected=15, plain=0, first=100)
    robot.episode = "e-9"
    robot.later_s += 10.0
    assert robot.until(lambda s: "episode" in s.waits_for).waits_for == "the end of episode e-9"
    assert not (robot.folder / "adaptation" / "job").exists()


def test_an_adapter_that_a_person_rolls_back_is_not_offered_again(adapted: AdaptiveRobot) -> None:
    adapted.start()
    adapted.until(lambda s: s.base_version)
    assert adapted.robot.engine is not None
    assert adapted.robot.engine.rollback("", "it bumps into things").success
    assert adapted.until_standing(ROLLED_BACK).base_version == "1.0.0"
    adapted.later_s += 60.0
    assert "corrected episodes" in adapted.until(lambda s: s.waits_for).waits_for
    assert not adapted.offers and adapted.committed() == "1.0.0"


def test_an_adapter_that_the_manager_refuses_is_reported_with_its_code(make_robot: Made, trained: Trained) -> None:
    """The manager has never heard of it, and finds other bytes than were promised."""
    fresh = make_robot()
    shutil.copytree(trained.robot / "adaptation", fresh.folder / "adaptation")
    fresh.rewrite_state(standing="OFFERED", folder=str(fresh.folder / "adaptation" / "offers" / "bad"))
    folder = fresh.adapter_folder()
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(b"{}")
    fresh.start()
    status = fresh.until_standing("REJECTED")
    assert status.error_code == "MANIFEST_DIGEST_MISMATCH" and fresh.committed() == "1.0.0"


def test_an_adapter_whose_verdict_was_missed_is_offered_again(adapted: AdaptiveRobot) -> None:
    engine = adapted.robot.engine
    assert engine is not None and engine.rollback("", "a test").success
    assert engine.offer(Update("other", "file:///elsewhere/manifest.json", "0" * 64)).success
    wait_for(lambda: engine.status().update_id == "other" and engine.status().error_code, "another update")
    adapted.rewrite_state(standing="TRIAL")
    adapted.start()
    status = adapted.until_standing("COMMITTED")
    assert [offer.version for offer in adapted.offers] == [status.adapter_version] and adapted.committed() != "1.0.0"


def test_an_adapter_that_waited_while_another_base_was_committed_never_acts(
    adapted: AdaptiveRobot, tmp_path: Path
) -> None:
    manifest = load_manifest(adapted.adapter_folder())
    adapted.install_base(tmp_path / "1.1.0", "1.1.0")
    engine = adapted.robot.engine
    assert engine is not None
    url = (adapted.adapter_folder() / "manifest.json").resolve().as_uri()
    assert engine.offer(Update("late", url, manifest.digest, manifest.name, manifest.version)).success
    outcome = wait_for(lambda: o if (o := engine.outcome("late")) and o.final else None, "the manager's answer")
    assert (outcome.state.name, outcome.error_code) == ("REJECTED", "BASE_CHANGED"), outcome
    assert adapted.committed() == "1.1.0"


def test_a_base_of_another_type_is_not_trained_on_and_ends_the_adapter(adapted: AdaptiveRobot) -> None:
    adapted.start()
    adapted.robot.publish("2.0.0", name="tiny", policy_type="scripted")
    adapted.robot.install("2.0.0")
    status = adapted.until_standing("DROPPED")
    assert status.error_code == "ADAPTATION_UNSUPPORTED" and "scripted" in status.message
    assert not (adapted.folder / "adaptation" / "job").exists()


def test_an_adapter_of_the_fleet_takes_the_place_of_the_robots_own_and_is_not_trained_on(
    adapted: AdaptiveRobot,
) -> None:
    """What is committed is an adapter that adaptation does not know as its own."""
    adapted.rewrite_state(digest="f" * 64)
    adapted.record(first=200)
    adapted.start()
    status = adapted.until_standing("DROPPED")
    assert "took its place" in status.message and "full base" in adapted.until(lambda s: s.waits_for).waits_for
    assert not (adapted.folder / "adaptation" / "job").exists()


@pytest.mark.parametrize("settings", [{"python": "/bin/false"}, {"max_memory_bytes": 256 << 20}])
def test_a_training_process_that_cannot_go_on_is_given_up_and_the_robot_keeps_its_policy(
    robot: AdaptiveRobot, settings: dict[str, Any]
) -> None:
    robot.record()
    robot.start(**settings)
    status = robot.until(lambda s: s.error_code)
    assert (status.error_code, robot.committed()) == ("ADAPTATION_FAILED", "1.0.0")
    assert "max_memory_bytes" in status.message
    robot.later_s += 60.0
    assert "0 of 15 new" in robot.until(lambda s: s.waits_for).waits_for, "not the same again"


def test_training_that_takes_too_long_is_ended(robot: AdaptiveRobot) -> None:
    robot.record()
    robot.start(steps=100_000)
    robot.until(lambda s: s.state == "TRAINING")
    pid = robot.process
    robot.later_s += 10_000.0
    assert robot.until(lambda s: s.error_code).error_code == "ADAPTATION_TIME"
    assert not Path(f"/proc/{pid}").exists()


def test_a_training_process_is_niced_and_dies_with_the_node_also_while_it_stands_still(tmp_path: Path) -> None:
    write(tmp_path / JOB, Job("train", "/nowhere", "", 1, 7, 1 << 30))
    code = """
import sys, time
from pathlib import Path
from vla_adaptation.process import TrainingProcess
made = TrainingProcess(Path(sys.argv[1]), sys.argv[2], 1)
print(made.pid, flush=True)
time.sleep(600)
"""
    sleeps = tmp_path / "python"  # takes its bounds, then waits: what it would do next is not asked here
    sleeps.write_text(
        f"#!{sys.executable}\nimport sys, time\nsys.path.insert(0, {str(TOP)!r})\n"
        "from vla_adaptation.training import take_bounds\ntake_bounds(int(sys.argv[4]), 7, 1 << 30)\ntime.sleep(600)\n"
    )
    sleeps.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(sleeps)], cwd=TOP, stdout=subprocess.PIPE, text=True
    ) as node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        wait_for(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 7, "its niceness")
        wait_for(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000", "to be the first to go")
        os.kill(pid, signal.SIGSTOP)
        node.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z", "its end")


def test_the_share_of_cpu_time_is_kept_over_time_whatever_was_saved_up() -> None:
    throttle, used, waited = Throttle(0.25), 0.0, 0
    for tick in range(4000):
        exceeded = throttle.exceeded(tick * 0.1, used)
        waited += exceeded
        used += 0.0 if exceeded else 0.1  # it takes whatever it may
    assert 0.24 * 400.0 <= used <= 0.25 * 400.0 + 1.0 and waited
    assert not throttle.exceeded(10_000.0, used)
    assert throttle.exceeded(10_000.1, used + 0.7), "an hour without work is no hour of work"


def test_a_damaged_record_is_put_aside_and_a_second_node_in_the_same_folder_is_refused(
    adapted: AdaptiveRobot,
) -> None:
    state = adapted.folder / "adaptation" / "state.json"
    state.write_bytes(state.read_bytes()[:40])
    running = adapted.start()
    assert running.status().error_code == "ADAPTATION_STATE" and not state.exists()
    with refused("ADAPTATION_DIR"):
        Adaptation(AdaptationSettings(**adapted.settings), lambda offer: None)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    folders = {name: str(tmp_path) for name in ("adaptation_dir", "recording_dir", "store_dir")}
    for wrong in ({"store_dir": ""}, {"server": "https://fleet"}, {"server": "wss://fleet"}):
        with refused("PARAMETER_INVALID"):
            AdaptationSettings(**{**QUICK, **folders, **wrong})
