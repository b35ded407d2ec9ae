"""Two generations an episode: what is drawn acts from the episode's start, nothing is loaded for it, and A is always near."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.engine_rig import EngineRig
from support.scripted import scripted_bundle

from vla_evidence import assignment
from vla_policy_node.draws import Assignment, Draw
from vla_policy_node.errors import ControlError

PLACES = {"1.0.0": 0.0, "1.1.0": 0.05}
ROBOT = "arm_1"


class Trial:
    """An engine with two versions in memory, and a manager that names an experiment until it is silenced."""

    def __init__(self, folder: Path, rig: EngineRig, digests: dict[str, str]) -> None:
        self.rig, self.digests = rig, digests
        self.assignment: Assignment | None = Assignment("x", ROBOT, (digests["1.0.0"], digests["1.1.0"]), 0.5)
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(folder / "1.1.0"), "", lambda *_: None, bool)
        self.speak()

    def speak(self) -> None:
        """The manager publishes a status."""
        self.rig.engine.on_manager_status("", self.digests["1.0.0"], self.assignment)

    def episode_of(self, arm: str) -> str:
        """Return the name of an episode for which an arm is drawn."""
        names = (f"{arm}-{time.monotonic_ns()}-{i}" for i in range(1000))
        return next(n for n in names if "AB"[assignment.arm("x", ROBOT, n, 0.5)] == arm)

    def begin(self, arm: str) -> str:
        """Open an episode for which an arm is drawn; return the arm that it got."""
        self.speak()
        return self.rig.engine.start_episode(self.episode_of(arm), "", 0.0).arm

    @property
    def active(self) -> str:
        active = self.rig.snapshot.active
        return active.version if active is not None else ""


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, str]:
    still = {"amplitude": 0.0}
    return {v: scripted_bundle(tmp_path / v, v, offset=place, **still).digest for v, place in PLACES.items()}


@pytest.fixture
def trial(tmp_path: Path, bundles: dict[str, str]) -> Iterator[Trial]:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), trial_lease_s=60.0) as rig:
        yield Trial(tmp_path, rig, bundles)


def test_each_episode_runs_what_the_servers_hash_draws_and_nothing_is_loaded_for_it(trial: Trial) -> None:
    rig, drawn = trial.rig, []
    for i in range(12):
        name = f"e-{i}"
        episode = rig.engine.start_episode(name, "", 0.0)
        arm = "AB"[assignment.arm("x", ROBOT, name, 0.5)]
        version = {"A": "1.0.0", "B": "1.1.0"}[arm]
        assert (episode.arm, trial.active, rig.snapshot.arm) == (arm, version, arm)
        assert rig.control.generation == rig.snapshot.active.id  # type: ignore[union-attr]  (it acts when the episode opens)
        rig.engine.end_episode(name, success=True)
        outcome = rig.outcomes[-1]
        assert (outcome.arm, outcome.mixed) == (arm, False)
        drawn.append(arm)
    assert {*drawn} == {"A", "B"}
    swaps = sum(a != b for a, b in zip(["A", *drawn], drawn, strict=False))
    rig.wait_for(lambda: sum(r.cause == "EXPERIMENT" for r in rig.reports) == swaps, "the reports")
    draws = [r for r in rig.reports if r.cause == "EXPERIMENT"]
    assert {r.at for r in draws} == {"EPISODE"} and all(r.timings.load_s == 0.0 for r in draws[1:])
    assert rig.control.starved == 0 and rig.snapshot.experiment == "x" and rig.snapshot.episode_arms


def test_an_episode_that_cannot_be_drawn_runs_with_what_acts_is_of_no_arm_and_the_status_says_why(trial: Trial) -> None:
    rig = trial.rig
    prepared = rig.snapshot.prepared
    assert prepared is not None
    os.kill(prepared.generation.pid, signal.SIGKILL)
    rig.wait_for(lambda: rig.snapshot.prepared is None, "the loss noticed")
    for arm in ("A", "B"):  # neither, so that no arm has more episodes than were drawn for it
        assert trial.begin(arm) == ""
        assert (trial.active, rig.snapshot.arm, rig.snapshot.draw_error[0]) == ("1.0.0", "", "GENERATION_LOST")
        rig.engine.end_episode("", success=True)
    assert {o.arm for o in rig.outcomes} == {""}


def test_a_draw_that_the_limits_refuse_leaves_the_episode_to_what_acts(tmp_path: Path) -> None:
    far = {"1.0.0": -0.9, "1.1.0": 0.9}  # further apart than one step, blended
    digests = {v: scripted_bundle(tmp_path / v, v, offset=p, amplitude=0.0).digest for v, p in far.items()}
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), trial_lease_s=60.0) as rig:
        trial = Trial(tmp_path, rig, digests)
        assert trial.begin("B") == "" and rig.snapshot.draw_error[0] == "SEAM_JUMP" and trial.active == "1.0.0"
        rig.engine.end_episode("", success=True)
        assert not rig.outcomes[-1].mixed


def test_nothing_swaps_while_motion_is_disabled_and_a_robot_that_holds_swaps_at_a_standstill(
    tmp_path: Path, bundles: dict[str, str]
) -> None:
    contract = {"auto_resume": False, "motion_required": True}
    with EngineRig(
        tmp_path, contract=contract, model_path=str(tmp_path / "1.0.0"), trial_lease_s=60.0, require_episode=True
    ) as rig:
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING" and rig.snapshot.active is not None, "motion and a policy")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        assert rig.engine.resume() == ""
        rig.wait_for(lambda: rig.control.hold_reason == "NO_EPISODE", "the hold between episodes")
        trial = object.__new__(Trial)
        trial.rig, trial.digests = rig, bundles
        trial.assignment = Assignment("x", ROBOT, (bundles["1.0.0"], bundles["1.1.0"]), 0.5)
        commands = len(rig.commands()[1])
        assert trial.begin("B") == "B" and trial.active == "1.1.0"
        rig.wait_running("1.1.0")
        assert (abs(rig.commands()[1][commands:]) <= PLACES["1.1.0"] + 1e-6).all()
        rig.engine.end_episode("", success=True)
        rig.motion = False
        rig.wait_for(lambda: rig.control.mode == "MOTION_DISABLED", "motion disabled")
        assert trial.begin("A") == "" and rig.snapshot.draw_error[0] == "MOTION_DISABLED" and trial.active == "1.1.0"


def test_without_a_manager_a_acts_again_and_nothing_is_drawn(tmp_path: Path, bundles: dict[str, str]) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), trial_lease_s=3.0) as rig:
        trial = Trial(tmp_path, rig, bundles)
        assert trial.begin("B") == "B" and rig.snapshot.on_trial
        rig.wait_for(lambda: rig.snapshot.error_code == "AUTO_SWAP_LIMIT", "the silence noticed")
        assert trial.active == "1.1.0"  # the draw was this episode's automatic swap
        rig.engine.end_episode("", success=True)
        rig.wait_running("1.0.0")
        name = trial.episode_of("B")
        assert rig.engine.start_episode(name, "", 0.0).arm == "" and trial.active == "1.0.0"
        assert rig.snapshot.experiment == ""


def test_an_experiment_that_is_over_ends_with_the_open_episode_at_the_latest(trial: Trial) -> None:
    rig = trial.rig
    assert trial.begin("B") == "B"
    trial.assignment = None
    trial.speak()
    ticks = rig.control.ticks
    rig.wait_for(lambda: rig.control.ticks > ticks + 25, "time to pass")
    assert trial.active == "1.1.0" and not rig.snapshot.error_code
    rig.engine.end_episode("", success=True)
    assert rig.engine.start_episode("next", "", 0.0).arm == ""  # at once: before the node went back by itself
    rig.wait_running("1.0.0")
    rig.wait_for(lambda: not rig.snapshot.on_trial, "the end of the lease")
    rig.engine.end_episode("next", success=True)
    assert rig.snapshot.standby is not None and rig.snapshot.standby.version == "1.1.0"


def test_a_lost_worker_of_b_gives_way_to_a_and_b_is_never_drawn_again(trial: Trial) -> None:
    rig = trial.rig
    trial.begin("B")
    rig.engine.end_episode("", success=True)
    assert trial.begin("B") == "B"  # it acted already: this episode has its automatic swap left
    active = rig.snapshot.active
    assert active is not None
    os.kill(active.generation.pid, signal.SIGKILL)
    rig.wait_running("1.0.0")
    rig.engine.end_episode("", success=True)
    assert rig.outcomes[-1].mixed and rig.outcomes[-1].arm == "B"
    assert rig.snapshot.draw_error[0] == "WORKER_LOST"
    for arm in ("A", "B"):
        assert trial.begin(arm) == "" and trial.active == "1.0.0"
        rig.engine.end_episode("", success=True)


def test_a_draw_is_the_episodes_automatic_swap(trial: Trial) -> None:
    rig = trial.rig
    assert trial.begin("B") == "B"
    active = rig.snapshot.active
    assert active is not None
    os.kill(active.generation.pid, signal.SIGKILL)
    rig.wait_for(lambda: rig.snapshot.error_code == "AUTO_SWAP_LIMIT", "the hold")
    rig.wait_for(lambda: rig.control.mode == "HOLDING", "the robot holding")
    assert rig.snapshot.active is None
    rig.engine.end_episode("", success=False)
    rig.wait_running("1.0.0")


def test_a_hard_limit_of_b_holds_and_a_acts_after_the_resume(tmp_path: Path) -> None:
    digests = {
        "1.0.0": scripted_bundle(tmp_path / "1.0.0", amplitude=0.0).digest,
        "1.1.0": scripted_bundle(tmp_path / "1.1.0", "1.1.0", amplitude=0.0, jump_from_call=4, jump=5.0).digest,
    }
    with EngineRig(
        tmp_path, contract={"auto_resume": False}, model_path=str(tmp_path / "1.0.0"), trial_lease_s=60.0
    ) as rig:
        trial = Trial(tmp_path, rig, digests)
        assert trial.begin("B") == "B"
        rig.wait_for(lambda: rig.control.hold_reason == "LIMIT", "the hard limit")
        rig.wait_for(lambda: trial.active == "1.0.0", "the way back in the hold")
        assert rig.control.latched and rig.snapshot.draw_error[0] == "HARD_LIMIT"
        assert any(s.source == "hard_limit" and s.version == "1.1.0" for s in rig.scores)
        rig.engine.resume()
        rig.wait_running("1.0.0")
        rig.engine.end_episode("", success=False)
        assert trial.begin("B") == "" and trial.active == "1.0.0"
        rig.engine.end_episode("", success=False)
        named, trial.assignment = (
            trial.assignment,
            None,
        )  # a pause: ota_manager names no digests without update_permitted
        trial.speak()
        trial.assignment = named
        assert trial.begin("B") == "" and trial.active == "1.0.0" and rig.snapshot.draw_error[0] == "HARD_LIMIT"


def test_what_is_under_test_does_not_stand_in_for_a_lost_a(tmp_path: Path, bundles: dict[str, str]) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), trial_lease_s=60.0, reload_attempts=0) as rig:
        trial = Trial(tmp_path, rig, bundles)
        for arm in ("B", "A"):
            assert trial.begin(arm) == arm
            rig.engine.end_episode("", success=True)
        active, standby = rig.snapshot.active, rig.snapshot.standby
        assert active is not None and standby is not None and standby.version == "1.1.0"
        os.kill(active.generation.pid, signal.SIGKILL)
        rig.wait_for(lambda: rig.snapshot.error_code == "POLICY_LOST", "the end of what may act")
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "the hold")
        assert rig.snapshot.active is None and "never committed" in rig.snapshot.message


def test_an_episode_that_is_being_opened_keeps_its_instruction_and_one_that_fails_to_open_leaves_none(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, engine = trial.rig, trial.rig.engine

    def shown(instruction: str) -> bool:
        record = engine.observations.arena.read(["instruction"])
        return record is not None and record[1]["instruction"].tobytes().rstrip(b"\0").decode() == instruction

    def while_another_comes(name: str, begin: Callable[[], None]) -> Draw:
        begin()
        engine.set_instruction("another task")
        return Draw()

    def fails(name: str, begin: Callable[[], None]) -> Draw:
        begin()
        raise ControlError("CONTROL_LOST", "the control process is gone")

    monkeypatch.setattr(engine.draws, "draw", while_another_comes)
    engine.start_episode("one", "pick", 0.0)
    rig.wait_for(lambda: shown("pick"), "the episode's instruction")
    engine.end_episode("one", success=True)
    rig.wait_for(lambda: shown("another task"), "the one that came meanwhile")
    monkeypatch.setattr(engine.draws, "draw", fails)
    with pytest.raises(ControlError):
        engine.start_episode("two", "pick", 0.0)
    rig.wait_for(lambda: shown("another task"), "the one of no episode")
