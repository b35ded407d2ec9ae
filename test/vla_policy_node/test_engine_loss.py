"""The acting worker is lost, in every way: hold at once, then what DESIGN says acts next; nothing else is disturbed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle
from support.waits import TIMEOUT_S

from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.generations.swapping import SwapError, SwapRequest

LONGEST_STEP = 4.0 / 50 + 1e-6


def kill_active(rig: EngineRig) -> int:
    """SIGKILL to the acting worker; return its process id."""
    active = rig.snapshot.active
    assert active is not None
    os.kill(active.generation.pid, signal.SIGKILL)
    return active.generation.pid


def wait_other(rig: EngineRig, pid: int, version: str) -> None:
    """Wait until a version acts in another process."""
    rig.wait_for(lambda: (active := rig.snapshot.active) is not None and active.generation.pid != pid, "another worker")
    rig.wait_running(version)


def test_a_killed_worker_means_hold_at_once_and_the_committed_policy_is_loaded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = scripted_bundle(tmp_path / "a", "1.0.0").digest
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        start = len(rig.commands()[1])
        pid = kill_active(rig)
        rig.wait_for(lambda: "hold: WORKER_LOST" in caplog.text, "the hold")
        wait_other(rig, pid, "1.0.0")
        assert rig.snapshot.error_code == "WORKER_DIED" and rig.snapshot.active.digest == digest  # type: ignore[union-attr]
        rig.wait_for(lambda: len(rig.reports) == 2, "the report")
        report = rig.reports[1]
        assert (report.cause, report.from_version, report.to_version) == ("WORKER_LOST", "1.0.0", "1.0.0")
        assert not report.warm and report.timings.load_s > 0
        steps = np.abs(np.diff(rig.commands()[1][start:], axis=0))
        assert steps.max() <= LONGEST_STEP
        assert (steps.max(axis=1) == 0.0).sum() > 5  # it stood still meanwhile


@pytest.mark.parametrize(
    ("behaviour", "error", "words"),
    [
        ({"nan_at_call": 5}, "NAN", "1.1.0: an action was not a finite number"),
        ({"raise_at_call": 5}, "POLICY_FAILED", "1.1.0: ValueError: the script says so"),
        (
            {"wrong_shape_at_call": 5},
            "POLICY_FAILED",
            "1.1.0: the policy returned float32 (100, 1), not float32 (100, 2)",
        ),
        ({"exit_at_call": 5}, "WORKER_DIED", "ended with exit code 7"),
        ({"hang_at_call": 5}, "WORKER_HUNG", "owed a chunk for more than 3 s and was killed"),
    ],
)
def test_a_policy_on_trial_that_fails_gives_way_to_the_one_before_and_is_told_for_what_it_did(
    tmp_path: Path, behaviour: dict[str, Any], error: str, words: str
) -> None:
    scripted_bundle(tmp_path / "good", "1.0.0")
    scripted_bundle(tmp_path / "bad", "1.1.0", **behaviour)
    patience = {"inference_timeout_s": 3.0} if error == "WORKER_HUNG" else {}
    with EngineRig(tmp_path, model_path=str(tmp_path / "good"), **patience) as rig:
        rig.wait_running("1.0.0")
        bad, _ = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "bad"), trial=True, trial_lease_s=60.0))
        start = len(rig.commands()[1])
        rig.wait_for(lambda: (active := rig.snapshot.active) is not None and active.version == "1.0.0", "the fallback")
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: "WORKER_LOST" in [r.cause for r in rig.reports], "the report")
        snapshot, report = rig.snapshot, rig.reports[-1]
        assert snapshot.error_code == error and words in snapshot.message and not snapshot.on_trial
        assert snapshot.message.startswith("1.1.0: ") and "\n" not in snapshot.message
        with pytest.raises(
            SwapError, match=rf"\({error}: "
        ) as caught:  # every later request for it gives the same code
            rig.engine.swap(SwapRequest(digest=bad.digest))
        assert caught.value.code == "WORKER_LOST"
        assert (report.from_version, report.to_version, report.warm) == ("1.1.0", "1.0.0", True)
        assert not bad.generation.alive and not (snapshot.standby or snapshot.prepared)
        assert np.abs(np.diff(rig.commands()[1][start:], axis=0)).max() <= LONGEST_STEP
        assert np.isfinite(rig.commands()[1]).all()
        assert [s.value for s in rig.scores if s.source == "hard_limit"] == ([1.0] if error == "NAN" else [])
        assert all(s.generation == bad.id and s.version == "1.1.0" for s in rig.scores if s.source == "hard_limit")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ({"crash_at_call": 0}, "GENERATION_LOST"),
        ({"nan_at_call": 0}, "NAN"),
        ({"raise_at_call": 0}, "POLICY_FAILED"),
        ({"jump_from_call": 0, "jump": 1.0}, "SEAM_JUMP"),
        ({"jump_from_call": 0, "jump": 50.0}, "LIMIT"),
    ],
)
def test_a_version_that_fails_on_its_first_live_chunk_never_acts_and_says_why(
    tmp_path: Path, behaviour: dict[str, Any], code: str
) -> None:
    scripted_bundle(tmp_path / "good", "1.0.0")
    scripted_bundle(tmp_path / "bad", "1.1.0", **behaviour)
    with EngineRig(tmp_path, model_path=str(tmp_path / "good")) as rig:
        rig.wait_running("1.0.0")
        bad = rig.engine.prepare(str(tmp_path / "bad"), "", lambda *_: None, bool)
        before = rig.control
        with refused(code) as caught:
            rig.engine.swap(SwapRequest(digest=bad.digest, trial=True, trial_lease_s=60.0))
        if code == "POLICY_FAILED":
            assert caught.value.message == "the new generation's first chunk: ValueError: the script says so"
        after = rig.control
        assert (after.mode, after.generation, after.starved) == ("RUNNING", before.generation, before.starved)
        assert rig.snapshot.active is not None and rig.snapshot.active.version == "1.0.0"
        assert not rig.snapshot.on_trial and not rig.reports[1:]
        if code == "GENERATION_LOST":  # also to whoever asks again: it is not loaded again unless somebody prepares it
            with refused("GENERATION_LOST"):
                rig.engine.swap(SwapRequest(digest=bad.digest, trial=True, trial_lease_s=60.0))


def test_nan_straight_after_another_fault_is_not_overlooked(tmp_path: Path) -> None:
    """A worker reports at most one fault a second: what counts is that the control process holds."""
    scripted_bundle(tmp_path / "good", "1.0.0")
    scripted_bundle(tmp_path / "bad", "1.1.0", nan_at_call=3)
    with EngineRig(tmp_path, model_path=str(tmp_path / "good")) as rig:
        rig.wait_running("1.0.0")
        prepared = rig.engine.prepare(str(tmp_path / "bad"), "", lambda *_: None, bool)
        rig.feeding = False  # its first answer is a fault that is reported: no fresh observation
        rig.wait_for(lambda: rig.control.hold_reason == "OBSERVATION_STALE", "the hold")
        swap = SwapRequest(digest=prepared.digest, at="NOW", trial=True, trial_lease_s=60.0)
        thread = threading.Thread(target=lambda: rig.engine.swap(swap))
        thread.start()
        rig.feeding = True
        rig.wait_for(lambda: not prepared.generation.alive, "its end")
        thread.join(TIMEOUT_S)
        rig.wait_running("1.0.0")


def test_reloads_run_out_then_the_standby_acts_then_nothing_and_the_hold_stays(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), reload_attempts=1) as rig:
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        rig.wait_running("1.1.0")
        wait_other(rig, kill_active(rig), "1.1.0")  # once
        assert rig.snapshot.standby and rig.snapshot.standby.version == "1.0.0"
        wait_other(rig, kill_active(rig), "1.0.0")  # the standby: nothing was loaded for it
        rig.wait_for(lambda: len(rig.reports) == 4, "the reports")
        assert [r.warm for r in rig.reports] == [False, False, False, True]
        wait_other(rig, kill_active(rig), "1.0.0")  # it has a reload of its own
        kill_active(rig)
        rig.wait_for(lambda: rig.snapshot.error_code == "POLICY_LOST", "nothing left")
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "the hold")
        assert rig.snapshot.active is None
        rig.wait_for(lambda: np.array_equal(*rig.commands()[1][-2:]), "the stop")
        at = rig.commands()[1][-1]
        ticks = rig.control.ticks
        rig.wait_for(lambda: rig.control.ticks > ticks + 50, "a second")
        assert np.array_equal(rig.commands()[1][-1], at)
        rig.engine.resume()
        assert rig.snapshot.error_code == "POLICY_LOST" and rig.control.mode == "HOLDING"
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))  # a person or the manager can still help
        rig.wait_running("1.1.0")


def test_without_auto_resume_nothing_moves_after_a_loss_until_resume(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with EngineRig(tmp_path, contract={"auto_resume": False}, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        pid = kill_active(rig)
        rig.wait_for(lambda: (active := rig.snapshot.active) is not None and active.generation.pid != pid, "reload")
        ticks = rig.control.ticks
        rig.wait_for(lambda: rig.control.ticks > ticks + 40, "time to pass")
        status = rig.control
        assert (status.mode, status.latched, status.hold_reason) == ("HOLDING", True, "WORKER_LOST")
        values = rig.commands()[1]
        assert np.array_equal(values[-30:], np.tile(values[-1], (30, 1)))
        assert rig.engine.resume() == ""
        rig.wait_running("1.0.0")


def test_one_automatic_swap_an_episode_the_next_one_waits_for_its_end(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        rig.engine.start_episode("one", "", 0.0)
        wait_other(rig, kill_active(rig), "1.0.0")
        kill_active(rig)
        rig.wait_for(lambda: rig.snapshot.error_code == "AUTO_SWAP_LIMIT", "the limit")
        ticks = rig.control.ticks
        rig.wait_for(lambda: rig.control.ticks > ticks + 40, "time to pass")
        assert rig.snapshot.active is None and rig.control.mode == "HOLDING"
        assert rig.control.hold_reason in ("WORKER_LOST", "NO_POLICY")
        rig.engine.end_episode("one", success=False)
        rig.wait_running("1.0.0")


def test_a_loss_while_a_swap_is_pending_is_recovered_from(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    digest = scripted_bundle(tmp_path / "b", "1.1.0").digest
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        prepared = rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)
        answers: list[object] = []

        def swap() -> None:
            try:
                answers.append(rig.engine.swap(SwapRequest(digest=digest, at="EPISODE"))[0])
            except PolicyNodeError as e:
                answers.append(e.code)

        # The one that is to come is lost: the acting one is not disturbed.
        waiting = threading.Thread(target=swap)
        rig.wait_asked(waiting.start)
        os.kill(prepared.generation.pid, signal.SIGKILL)
        waiting.join(TIMEOUT_S)
        assert answers == ["GENERATION_LOST"] and rig.snapshot.prepared is None and rig.control.mode == "RUNNING"
        # The acting one is lost: what was to come is in memory, and comes now.
        prepared = rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)
        waiting = threading.Thread(target=swap)
        rig.wait_asked(waiting.start)
        pid = kill_active(rig)
        waiting.join(TIMEOUT_S)
        assert answers[1:] == [prepared]
        wait_other(rig, pid, "1.1.0")
        assert rig.snapshot.prepared is None and len(rig.engine._pool.generations()) == 1


def test_a_loss_while_another_bundle_is_being_prepared_waits_for_it_and_recovers(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        begun, go_on = threading.Event(), threading.Event()

        def on_progress(state: str, share: float) -> None:
            begun.set()
            go_on.wait(TIMEOUT_S)

        loading = threading.Thread(target=lambda: rig.engine.prepare(str(tmp_path / "b"), "", on_progress, bool))
        loading.start()
        assert begun.wait(TIMEOUT_S)
        pid = kill_active(rig)
        rig.wait_for(lambda: rig.snapshot.active is None, "the loss noticed")
        go_on.set()
        wait_other(rig, pid, "1.0.0")
        loading.join(TIMEOUT_S)


def test_a_version_that_was_rolled_back_from_its_trial_never_stands_in_for_what_is_lost(tmp_path: Path) -> None:
    digest = scripted_bundle(tmp_path / "a", "1.0.0").digest
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), reload_attempts=0) as rig:
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b"), trial=True))
        rig.engine.swap(SwapRequest(digest=digest, cause="ROLLBACK"))
        rig.wait_running("1.0.0")
        assert rig.snapshot.standby and rig.snapshot.standby.version == "1.1.0"
        kill_active(rig)
        rig.wait_for(lambda: rig.snapshot.error_code == "POLICY_LOST", "the end of what may act")
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "the hold")
        assert rig.snapshot.active is None and "never committed" in rig.snapshot.message


def test_the_loss_of_standby_or_prepared_disturbs_nothing(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    first = scripted_bundle(tmp_path / "b", "1.1.0").digest
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        before = rig.control
        prepared = rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)
        os.kill(prepared.generation.pid, signal.SIGKILL)
        rig.wait_for(lambda: rig.snapshot.prepared is None, "the loss of the prepared one")
        with refused("GENERATION_LOST"):
            rig.engine.swap(SwapRequest(digest=first))
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        standby = rig.snapshot.standby
        assert standby is not None
        os.kill(standby.generation.pid, signal.SIGKILL)
        rig.wait_for(lambda: rig.snapshot.standby is None, "the loss of the standby")
        after = rig.control
        assert (after.mode, after.starved) == ("RUNNING", before.starved)
        assert rig.snapshot.active and rig.snapshot.active.version == "1.1.0"


def test_a_control_process_that_hangs_is_told_with_its_code(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        pid = rig.engine._control.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            rig.wait_for(lambda: not rig.snapshot.control_alive, "the silence")
            assert rig.snapshot.error_code == "CONTROL_UNRESPONSIVE"
        finally:
            os.kill(pid, signal.SIGCONT)
        rig.wait_for(lambda: rig.snapshot.control_alive and not rig.snapshot.error_code, "it ticks again")


def test_without_its_control_process_nothing_is_published_and_the_node_says_so(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    digest = scripted_bundle(tmp_path / "b", "1.1.0").digest
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)
        codes: list[str] = []

        def swap() -> None:
            with pytest.raises(PolicyNodeError) as caught:
                rig.engine.swap(SwapRequest(digest=digest, at="EPISODE"))
            codes.append(caught.value.code)

        waiting = threading.Thread(target=swap)
        rig.wait_asked(waiting.start)
        pid = rig.engine._control.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while (snapshot := rig.snapshot).control_alive:
            pass
        assert snapshot.error_code == "CONTROL_LOST" and snapshot.message  # whoever is told so is told why
        rig.wait_for(lambda: rig.engine.control_lost, "the node's end")
        count = len(rig.commands()[1])
        assert not rig.snapshot.control_alive
        waiting.join(TIMEOUT_S)
        assert codes == ["CONTROL_LOST"]
        for call in (
            lambda: rig.engine.swap(SwapRequest(digest=digest)),
            lambda: rig.engine.prepare(str(tmp_path / "a"), "", lambda *_: None, bool) and rig.engine.resume(),
        ):
            with refused("CONTROL_LOST"):
                call()
        os.kill(rig.snapshot.active.generation.pid, signal.SIGKILL)  # type: ignore[union-attr]
        rig.wait_for(lambda: rig.snapshot.active is None, "the loss noticed all the same")
        assert len(rig.commands()[1]) == count
