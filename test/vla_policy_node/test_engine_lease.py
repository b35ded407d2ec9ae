"""A trial is a lease: a manager that falls silent, for whatever reason, ends it, and the policy that acted before acts again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle

from vla_policy_node.generations.swapping import SwapRequest
from vla_sim.witness import Witness

LEASE_S = 2.0
LONG_S = 60.0


def on_trial(rig: EngineRig, folder: Path, lease_s: float = LONG_S, version: str = "1.1.0") -> str:
    """Swap to a version on trial; return its digest."""
    rig.wait_running()
    resident, report = rig.engine.swap(
        SwapRequest(bundle_path=str(folder / version), trial=True, trial_lease_s=lease_s)
    )
    assert report is not None and rig.snapshot.on_trial
    return resident.digest


@pytest.fixture
def digests(tmp_path: Path) -> dict[str, str]:
    return {v: scripted_bundle(tmp_path / v, v).digest for v in ("1.0.0", "1.1.0")}


def test_without_a_manager_the_fallback_acts_again_at_a_chunk_boundary(
    tmp_path: Path, digests: dict[str, str], witness: Witness
) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        begun_s = time.monotonic()
        on_trial(rig, tmp_path, LEASE_S)
        start = len(rig.commands()[1])
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: not rig.snapshot.on_trial, "the end of the trial")
        assert rig.snapshot.error_code == "LEASE_EXPIRED"
        rig.wait_for(lambda: len(rig.reports) == 3, "the report of the way back")
        report = rig.reports[-1]
        assert (report.cause, report.at, report.warm, report.from_version) == ("LEASE_EXPIRED", "CHUNK", True, "1.1.0")
        assert report.missed == witness.share(report.missed, begun_s) and report.starved == 0
        assert np.abs(np.diff(rig.commands()[1][start:], axis=0)).max() <= 4.0 / 50 + 1e-6


def test_only_a_status_of_this_trial_renews_the_lease(tmp_path: Path, digests: dict[str, str]) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        digest = on_trial(rig, tmp_path, LEASE_S)
        lease = rig.engine.generations.lease
        assert lease is not None
        end = time.monotonic() + 1.5 * LEASE_S
        while time.monotonic() < end:  # longer than the lease
            rig.engine.on_manager_status(digest, digests["1.0.0"])
            time.sleep(0.05)
        assert rig.snapshot.on_trial and rig.engine.generations.lease is lease
        renewed = lease.renewed_s
        for trial, committed in (("", ""), ("f" * 64, digests["1.0.0"]), (digests["1.0.0"], "")):
            rig.engine.on_manager_status(trial, committed)
        assert lease.renewed_s == renewed  # none of them spoke of this trial
        rig.wait_running("1.0.0")


def test_commit_ends_the_lease_for_good(tmp_path: Path, digests: dict[str, str]) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        digest = on_trial(rig, tmp_path, LEASE_S)
        rig.engine.on_manager_status("", digest)
        assert not rig.snapshot.on_trial
        ticks = rig.control.ticks
        rig.wait_for(lambda: rig.control.ticks > ticks + 1.5 * LEASE_S * 50, "time to pass")
        assert rig.snapshot.active and rig.snapshot.active.version == "1.1.0" and not rig.snapshot.error_code


def test_asking_again_for_the_trial_renews_it_and_keeps_its_fallback(tmp_path: Path, digests: dict[str, str]) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        digest = on_trial(rig, tmp_path)
        lease = rig.engine.generations.lease
        assert lease is not None and lease.fallback is rig.snapshot.standby
        renewed = lease.renewed_s
        _, report = rig.engine.swap(SwapRequest(digest=digest))  # no word of a trial: its lease stays as it is
        assert report is None and rig.engine.generations.lease is lease and lease.renewed_s == renewed
        _, report = rig.engine.swap(SwapRequest(digest=digest, trial=True, trial_lease_s=LEASE_S))
        assert report is None and lease.renewed_s > renewed and lease.lease_s == LEASE_S
        rig.wait_running("1.0.0")


def test_a_trial_keeps_its_fallback_in_memory_and_rolls_back_to_it(tmp_path: Path, digests: dict[str, str]) -> None:
    scripted_bundle(tmp_path / "1.2.0", "1.2.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        on_trial(rig, tmp_path)
        fallback = rig.snapshot.standby
        for call in (
            lambda: rig.engine.prepare(str(tmp_path / "1.2.0"), "", lambda *_: None, bool),
            lambda: rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.2.0"))),
        ):
            with refused("TRIAL_RUNNING"):
                call()
        assert fallback is not None and rig.snapshot.standby is fallback and fallback.generation.alive
        rig.engine.swap(SwapRequest(digest=digests["1.0.0"], cause="ROLLBACK"))
        assert rig.snapshot.active is fallback and not rig.snapshot.on_trial


def test_a_fallback_that_has_died_is_loaded_again_when_the_lease_expires(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        digest = on_trial(rig, tmp_path)
        fallback = rig.snapshot.standby
        assert fallback is not None
        os.kill(fallback.generation.pid, signal.SIGKILL)
        rig.wait_for(lambda: rig.snapshot.standby is None, "the loss noticed")
        assert rig.snapshot.on_trial  # the trial itself is not disturbed
        rig.engine.swap(SwapRequest(digest=digest, trial=True, trial_lease_s=0.1))
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: "LEASE_EXPIRED" in [r.cause for r in rig.reports], "the report")
        assert not rig.reports[-1].warm and rig.reports[-1].timings.load_s > 0
        assert rig.snapshot.active is not fallback and rig.snapshot.active.digest == digests["1.0.0"]  # type: ignore[union-attr]


def test_a_lease_that_expires_while_motion_is_disabled_or_held_is_ended_there(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    contract = {"auto_resume": False, "motion_required": True}
    with EngineRig(tmp_path, contract=contract, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING" and rig.snapshot.active is not None, "motion and a policy")
        assert rig.engine.resume() == ""  # motion was disabled before it came
        digest = on_trial(rig, tmp_path)
        rig.motion = False
        rig.wait_for(lambda: rig.control.mode == "MOTION_DISABLED", "motion disabled")
        count = len(rig.commands()[1])
        rig.engine.swap(SwapRequest(digest=digest, trial=True, trial_lease_s=0.1, cause="ROLLBACK"))
        rig.wait_for(lambda: (active := rig.snapshot.active) is not None and active.version == "1.0.0", "the way back")
        assert not rig.snapshot.on_trial and len(rig.commands()[1]) == count  # nothing was commanded

        rig.motion = True
        rig.wait_for(lambda: rig.control.mode == "HOLDING" and rig.control.latched, "the latched hold")
        with_trial = SwapRequest(digest=digest, at="NOW", trial=True, trial_lease_s=0.1)
        rig.engine.swap(with_trial)  # the pointer moves, the hold stays
        rig.wait_for(lambda: (active := rig.snapshot.active) is not None and active.version == "1.0.0", "the way back")
        assert rig.control.latched and len(rig.commands()[1]) == count


def test_a_first_install_has_nothing_to_fall_back_to_and_goes_on(tmp_path: Path, digests: dict[str, str]) -> None:
    with EngineRig(tmp_path) as rig:
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.0.0"), trial=True, trial_lease_s=0.1))
        rig.wait_for(lambda: rig.snapshot.error_code == "LEASE_EXPIRED", "the error")
        rig.wait_running("1.0.0")
        assert rig.snapshot.on_trial  # still: a manager that comes back can commit it
        rig.engine.on_manager_status("", digests["1.0.0"])
        assert not rig.snapshot.on_trial


def test_past_the_limit_of_automatic_swaps_the_trial_ends_with_the_episode_unless_it_is_committed(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), auto_swaps_per_episode=0) as rig:
        digest = on_trial(rig, tmp_path)
        rig.engine.start_episode("one", "", 0.0)
        rig.engine.swap(SwapRequest(digest=digest, trial=True, trial_lease_s=0.1))
        rig.wait_for(lambda: rig.snapshot.error_code == "AUTO_SWAP_LIMIT", "the limit")
        assert rig.snapshot.on_trial and rig.snapshot.active.version == "1.1.0"  # type: ignore[union-attr]
        rig.engine.on_manager_status("", digest)  # the manager was back in time
        rig.engine.end_episode("one", success=True)
        rig.engine.start_episode("two", "", 0.0)
        rig.engine.swap(SwapRequest(digest=digests["1.0.0"], trial=True, trial_lease_s=0.1))
        rig.wait_for(lambda: rig.engine._recovery._deferred is not None, "the limit again")
        assert rig.snapshot.active.version == "1.0.0"  # type: ignore[union-attr]  (the commit held: nothing went back to it)
        rig.engine.end_episode("two", success=True)
        rig.wait_running("1.1.0")
