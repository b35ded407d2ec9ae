"""With room for one policy (``load_in_place``) another one is loaded in its place: the robot holds at rest, one set of weights
is in memory at any time, and whatever fails, what acted before acts again or the robot goes on holding."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.kept import children
from support.refusals import refused
from support.scripted import BALLAST, adapter_bundle, base_bundle, scripted_bundle
from support.waits import TIMEOUT_S

from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.generations.residents import OnDisk
from vla_policy_node.generations.swapping import SwapRequest

STILL = {"amplitude": 0.0}
LOAD_S = 1.5
"""A bundle that takes so long to load leaves a test the time to look, and to interfere."""


def still(folder: Path, version: str, **behaviour: object) -> str:
    """Write a bundle whose robot is at rest; return its digest."""
    return scripted_bundle(folder / version, version, **{**STILL, **behaviour}).digest


class Watch:
    """Looks at the workers again and again: ``most`` weights in memory, and in how many processes."""

    def __init__(self, rig: EngineRig) -> None:
        self._rig, self._stop = rig, threading.Event()
        self.most = self.processes = 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT_S)

    def _look(self) -> None:
        pool = self._rig.engine._pool
        while not self._stop.wait(0.01):
            self.most = max(self.most, sum(arena.users > 0 for arena in pool._weights._arenas))
            self.processes = max(self.processes, len(mapping("vla_ota_weights")))


def mapping(name: str) -> set[int]:
    """Return the children of this process that have mapped the memory of that name."""
    found = set()
    for pid in children():
        with contextlib.suppress(OSError):  # it has ended
            if name in Path(f"/proc/{pid}/maps").read_text():
                found.add(pid)
    return found


def loading(rig: EngineRig) -> None:
    """Wait until the robot holds for a load in place, and the node knows that nothing acts."""
    rig.wait_for(lambda: rig.control.hold_reason == "LOADING_IN_PLACE" and rig.snapshot.active is None, "the hold")


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[str]]:
    """Start a call; the list gets "" when it has succeeded, else the code."""
    answers: list[str] = []

    def run() -> None:
        try:
            call()
            answers.append("")
        except PolicyNodeError as e:
            answers.append(e.code)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


def test_an_update_is_checked_on_disk_then_loaded_while_the_robot_holds_and_acts_by_itself(tmp_path: Path) -> None:
    old = still(tmp_path, "1.0.0", offset=0.1)
    new = still(tmp_path, "1.1.0", offset=0.2, load_sleep_s=LOAD_S)
    contract = {"auto_resume": False}
    with EngineRig(tmp_path, contract=contract, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        assert not rig.snapshot.episode_arms
        before = rig.control.generation
        states: list[str] = []
        prepared = rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda state, share: states.append(state), bool)
        assert isinstance(prepared, OnDisk) and (prepared.digest, prepared.checked_s > 0) == (new, True)
        assert (states[0], states[-1]) == ("QUEUED", "READY") and "DIGEST" in states and "WARM_UP" not in states
        assert rig.snapshot.prepared == prepared and rig.control.generation == before
        assert len(rig.engine._pool.generations()) == 1

        rig.wait_for(lambda: len(rig.reports) == 1, "the report of the start")
        first_pid = rig.snapshot.active.generation.pid  # type: ignore[union-attr]
        with Watch(rig) as watch:
            thread, answers = in_background(lambda: rig.engine.swap(SwapRequest(digest=new)))
            loading(rig)
            at, ticks = len(rig.commands()[1]), rig.control.ticks
            assert not rig.control.latched and rig.snapshot.active is None
            rig.wait_for(lambda: rig.control.ticks > ticks + 20, "ticks while it is loaded")
            assert rig.control.mode == "HOLDING" and first_pid not in mapping("vla_ota_weights")
            held = rig.commands()[1][at:]
            assert len(held) > 10 and np.allclose(held, 0.1, atol=1e-6), "hold: last_command"
            thread.join(TIMEOUT_S)
            assert answers == [""]
            rig.wait_running("1.1.0")  # nobody resumes
        assert watch.processes == watch.most == 1
        rig.wait_for(lambda: len(rig.reports) == 2, "the report")
        report = rig.reports[1]
        assert (report.from_digest, report.to_digest, report.cause, report.at) == (old, new, "UPDATE", "REST")
        assert report.in_place and not report.warm and report.held_s >= LOAD_S and report.timings.golden_s > 0
        assert rig.snapshot.prepared is None and rig.snapshot.standby is None
        assert np.abs(np.diff(rig.commands()[1], axis=0)).max() <= 4.0 / 50 + 1e-6


def test_an_update_waits_for_rest_and_a_way_back_does_not(tmp_path: Path) -> None:
    old = scripted_bundle(tmp_path / "1.0.0", "1.0.0", phase=(0.0, np.pi / 2)).digest  # one joint or the other moves
    new = scripted_bundle(tmp_path / "1.1.0", "1.1.0", phase=(0.0, np.pi / 2)).digest
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        active = rig.snapshot.active
        for at in ("CHUNK", "REST", "EPISODE"):
            with refused("SWAP_TIMEOUT"):
                rig.engine.swap(SwapRequest(digest=new, at=at, timeout_s=0.2))
        assert rig.snapshot.active is active and rig.control.hold_reason != "LOADING_IN_PLACE"
        assert rig.snapshot.prepared is not None
        rig.engine.swap(SwapRequest(digest=new, at="NOW"))
        rig.wait_running("1.1.0")
        with refused("NOT_PREPARED"):
            rig.engine.swap(SwapRequest(digest=old, cause="ROLLBACK"))
        _, report = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.0.0"), cause="ROLLBACK"))
        assert report is not None and (report.cause, report.at, report.in_place) == ("ROLLBACK", "NOW", True)
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        thread, answers = in_background(lambda: rig.engine.swap(SwapRequest(digest=new, at="EPISODE", timeout_s=60.0)))

        def another_episode() -> bool:  # the first may begin before the request is there
            rig.engine.start_episode("", "", 0.0)
            rig.engine.end_episode("", success=True)
            return rig.control.hold_reason == "LOADING_IN_PLACE" or bool(answers)

        rig.wait_for(another_episode, "the boundary")
        thread.join(TIMEOUT_S)
        assert answers == [""]
        rig.wait_running("1.1.0")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"load_raise": True}, "PolicyWeightsError"),
        ({"golden_error": 1.0}, "GOLDEN_MISMATCH"),
        ({"load_crash": True}, "WORKER_DIED"),
        ({"offset": 9.0}, "LIMIT"),  # its first chunk
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bundle_that_cannot_act_leaves_the_former_one_acting(
    tmp_path: Path, fault: dict[str, object], code: str
) -> None:
    old = still(tmp_path, "1.0.0", offset=0.1)
    new = still(tmp_path, "1.1.0", **fault)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        with pytest.raises(PolicyNodeError) as caught:
            rig.engine.swap(SwapRequest(digest=new, trial=True))
        assert code in ("PolicyWeightsError", caught.value.code), caught.value
        active = rig.snapshot.active
        assert active is not None and active.digest == old and not rig.snapshot.on_trial
        rig.wait_running("1.0.0")
        assert len(rig.engine._pool.generations()) == 1
        rig.wait_for(lambda: bool(rig.reports) and rig.reports[-1].in_place, "the report of the way back")
        assert (rig.reports[-1].to_digest, rig.reports[-1].cause) == (old, "ROLLBACK")


def test_a_bundle_that_is_damaged_on_disk_is_refused_before_anything_happens(tmp_path: Path) -> None:
    still(tmp_path, "1.0.0")
    new = still(tmp_path, "1.1.0")
    weights = tmp_path / "1.1.0" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        active = rig.snapshot.active
        with refused("DIGEST_FILE"):
            rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        with refused("DIGEST_FILE"):
            rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0"), digest=new))
        with refused("CANCELLED"):
            rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, lambda: True)
        assert rig.snapshot.active is active and rig.snapshot.prepared is None


def test_a_bundle_whose_folder_has_gone_since_it_was_checked_does_not_stop_the_robot(tmp_path: Path) -> None:
    still(tmp_path, "1.0.0")
    new = still(tmp_path, "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        active = rig.snapshot.active
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        shutil.rmtree(tmp_path / "1.1.0")
        with refused("FILE_MISSING"):
            rig.engine.swap(SwapRequest(digest=new, at="NOW"))
        assert rig.snapshot.active is active and rig.control.hold_reason != "LOADING_IN_PLACE"


def test_a_node_that_is_shutting_down_lets_nothing_leave(tmp_path: Path) -> None:
    still(tmp_path, "1.0.0")
    new = still(tmp_path, "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        active = rig.snapshot.active
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        rig.engine.generations.close()
        with refused("CLOSED"):
            rig.engine.swap(SwapRequest(digest=new, at="NOW"))
        assert rig.snapshot.active is active and active is not None and active.generation.alive


def test_when_neither_can_be_loaded_the_robot_holds_and_the_status_says_why(tmp_path: Path) -> None:
    still(tmp_path, "1.0.0")
    new = still(tmp_path, "1.1.0", load_sleep_s=LOAD_S, golden_error=1.0)
    still(tmp_path, "1.2.0")
    with EngineRig(
        tmp_path, contract={"auto_resume": False}, model_path=str(tmp_path / "1.0.0"), load_in_place=True
    ) as rig:
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        thread, answers = in_background(lambda: rig.engine.swap(SwapRequest(digest=new)))
        loading(rig)
        shutil.move(tmp_path / "1.0.0", tmp_path / "gone")
        thread.join(TIMEOUT_S)
        assert answers == ["GOLDEN_MISMATCH"]
        rig.wait_for(lambda: rig.snapshot.error_code == "POLICY_LOST", "the recovery to give up")
        assert "1.0.0" in rig.snapshot.message and "GOLDEN_MISMATCH" in rig.snapshot.message
        rig.wait_for(lambda: rig.control.hold_reason == "NO_POLICY", "the hold")
        assert not rig.engine._pool.generations() and not mapping("vla_ota_weights")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.2.0")))  # a person helps
        rig.wait_for(lambda: rig.control.hold_reason == "STARTUP" and rig.control.latched, "a hold until resume")
        rig.engine.resume()
        rig.wait_running("1.2.0")


def test_a_lost_permission_to_move_ends_the_load_and_only_a_person_ends_the_hold(tmp_path: Path) -> None:
    old = still(tmp_path, "1.0.0")
    new = still(tmp_path, "1.1.0", load_sleep_s=LOAD_S)
    contract = {"auto_resume": True, "motion_required": True}
    with EngineRig(
        tmp_path, contract=contract, resumed=False, model_path=str(tmp_path / "1.0.0"), load_in_place=True
    ) as rig:
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING" and rig.snapshot.active is not None, "motion enabled")
        rig.engine.resume()
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        thread, answers = in_background(lambda: rig.engine.swap(SwapRequest(digest=new)))
        loading(rig)
        rig.motion = False
        rig.wait_for(lambda: rig.control.mode == "MOTION_DISABLED", "motion disabled")
        sent = len(rig.commands()[1])
        thread.join(TIMEOUT_S)
        assert answers == ["MOTION_DISABLED"]
        assert rig.snapshot.active is not None and rig.snapshot.active.digest == old
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "motion enabled again")
        tick = rig.control.tick
        rig.wait_for(lambda: rig.control.tick > tick + 50, "a second")
        assert rig.control.latched and rig.control.hold_reason == "MOTION_REENABLED"
        assert len(rig.commands()[1]) == sent
        rig.engine.resume()
        rig.wait_running("1.0.0")


def test_a_way_back_is_loaded_without_motion_and_waits_for_a_resume(tmp_path: Path) -> None:
    old = still(tmp_path, "1.0.0")
    new = still(tmp_path, "1.1.0")
    contract = {"auto_resume": True, "motion_required": True}
    with EngineRig(
        tmp_path, contract=contract, resumed=False, model_path=str(tmp_path / "1.0.0"), load_in_place=True
    ) as rig:
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING" and rig.snapshot.active is not None, "motion enabled")
        rig.engine.resume()
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0"), digest=new))
        rig.wait_running("1.1.0")
        rig.motion = False
        rig.wait_for(lambda: rig.control.mode == "MOTION_DISABLED", "motion disabled")
        for at in ("REST", "NOW"):
            with refused("MOTION_DISABLED"):
                rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.0.0"), at=at))
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.0.0"), at="REST", cause="ROLLBACK"))
        assert rig.snapshot.active is not None and rig.snapshot.active.digest == old
        rig.motion = True
        rig.wait_for(lambda: rig.control.hold_reason == "MOTION_REENABLED", "the hold")
        rig.engine.resume()
        rig.wait_running("1.0.0")


def test_an_expired_lease_and_a_lost_worker_of_a_trial_go_back_to_the_version_before(tmp_path: Path) -> None:
    old = still(tmp_path, "1.0.0", offset=0.1)
    new = still(tmp_path, "1.1.0", offset=0.2)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        request = SwapRequest(bundle_path=str(tmp_path / "1.1.0"), digest=new, trial=True, trial_lease_s=1.0)
        with Watch(rig) as watch:
            rig.engine.swap(request)
            rig.wait_for(lambda: bool(rig.reports) and rig.reports[-1].cause == "LEASE_EXPIRED", "the way back")
            rig.wait_running("1.0.0")
        assert watch.processes == 1 and rig.reports[-1].in_place and not rig.snapshot.on_trial
        assert rig.snapshot.error_code == "LEASE_EXPIRED"

        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0"), trial=True, trial_lease_s=60.0))
        rig.wait_running("1.1.0")
        assert rig.snapshot.on_trial and rig.snapshot.active is not None
        os.kill(rig.snapshot.active.generation.pid, 9)
        rig.wait_for(lambda: rig.reports[-1].cause == "WORKER_LOST", "the way back")
        rig.wait_running("1.0.0")
        assert rig.snapshot.active is not None and rig.snapshot.active.digest == old and not rig.snapshot.on_trial


def test_an_expired_lease_does_not_wait_behind_an_update_that_waits_for_its_boundary(tmp_path: Path) -> None:
    still(tmp_path, "1.0.0")
    still(tmp_path, "1.1.0")
    new = still(tmp_path, "1.2.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0"), at="NOW", trial=True, trial_lease_s=3.0))
        rig.engine.prepare(str(tmp_path / "1.2.0"), "", lambda *_: None, bool)
        thread, answers = in_background(lambda: rig.engine.swap(SwapRequest(digest=new, at="EPISODE", timeout_s=600.0)))
        rig.wait_for(lambda: bool(rig.reports) and rig.reports[-1].cause == "LEASE_EXPIRED", "the way back")
        thread.join(TIMEOUT_S)
        assert answers == ["CANCELLED"]
        rig.wait_running("1.0.0")


def test_what_was_on_trial_does_not_act_again_when_the_way_back_fails(tmp_path: Path) -> None:
    still(tmp_path, "1.0.0")
    still(tmp_path, "1.1.0")
    bad = still(tmp_path, "0.9.0", golden_error=1.0)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0"), trial=True, trial_lease_s=60.0))
        rig.wait_running("1.1.0")
        rig.engine.prepare(str(tmp_path / "0.9.0"), "", lambda *_: None, bool)
        with refused("GOLDEN_MISMATCH"):
            rig.engine.swap(SwapRequest(digest=bad, cause="ROLLBACK"))
        rig.wait_running("1.0.0")  # what the trial falls back to
        assert not rig.snapshot.on_trial


def test_an_adapter_and_its_base_take_turns_in_the_memory_of_one(tmp_path: Path) -> None:
    adapter_bundle(tmp_path, "1.1.0", base_bundle(tmp_path), 1)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), load_in_place=True) as rig:
        rig.wait_running("1.0.0")
        arenas = rig.engine._pool._weights._arenas
        base_size = max(arena.size for arena in arenas)
        assert base_size >= BALLAST.nbytes
        for version in ("1.1.0", "1.0.0", "1.1.0"):
            rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / version), at="NOW"))
            rig.wait_running(version)
            assert sum(arena.size for arena in arenas) < 1.5 * base_size
