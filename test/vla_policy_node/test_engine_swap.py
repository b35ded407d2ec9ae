"""A swap disturbs nothing: no tick is missed or starved for it, commands go on, and what is refused changes nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle
from support.waits import TIMEOUT_S

from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.generations.recovery import EXPECTED_ERRORS
from vla_policy_node.generations.swapping import SwapRequest
from vla_sim.witness import Witness

VELOCITY, RATE_HZ = 4.0, 50.0  # of the rig's contract
LONGEST_STEP = VELOCITY / RATE_HZ + 1e-6

alone = pytest.mark.alone
"""Of a test that looks at the commands of real ticks."""


def bundles(folder: Path, *versions: str, **behaviour: object) -> dict[str, str]:
    """Write bundles that draw the same curve; return version → digest."""
    return {v: scripted_bundle(folder / v, v, **behaviour).digest for v in versions}


def no_gap(rig: EngineRig, start: int) -> np.ndarray:
    """Commands since ``start``: each step keeps the contract's velocity."""
    values = rig.commands()[1][start:]
    assert len(values) > 10
    assert np.abs(np.diff(values, axis=0)).max() <= LONGEST_STEP
    return values


def test_swaps_in_motion_cost_no_tick_and_their_reports_add_up(tmp_path: Path, witness: Witness) -> None:
    digests = bundles(tmp_path, "1.0.0")
    digests["1.1.0"] = scripted_bundle(tmp_path / "1.1.0", "1.1.0", load_sleep_s=1.0).digest
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: len(rig.reports) == 1, "the report of the start")
        start, before, begun_s = len(rig.commands()[1]), rig.control, time.monotonic()
        resident, report = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0")))
        assert report is not None and (resident.version, resident.digest) == ("1.1.0", digests["1.1.0"])
        rig.wait_running("1.1.0")
        rig.wait_for(lambda: len(rig.reports) == 2, "the report of the update")
        _, back = rig.engine.swap(SwapRequest(digest=digests["1.0.0"], cause="ROLLBACK"))
        rig.wait_for(lambda: len(rig.reports) == 3, "the report of the rollback")
        after = rig.control
        assert after.generation == 1 and rig.snapshot.standby is resident

        update, rollback = rig.reports[1:]
        assert (update.from_version, update.to_version) == ("1.0.0", "1.1.0")
        assert (update.from_digest, update.to_digest) == (digests["1.0.0"], digests["1.1.0"])
        assert (update.cause, update.at, update.warm, update.generation) == ("UPDATE", "CHUNK", False, resident.id)
        timings = update.timings
        assert min(timings.load_s, timings.digest_s, timings.golden_s, timings.warm_up_s) > 0
        assert back is not None and (rollback.cause, rollback.warm, rollback.timings.load_s) == ("ROLLBACK", True, 0.0)
        assert (rollback.from_version, rollback.to_version) == ("1.1.0", "1.0.0")
        ticks = after.ticks - before.ticks
        for told in (update, rollback):
            assert told.missed == witness.share(told.missed, begun_s), "ticks that the witness did not miss"
            assert told.starved == 0 and told.swap_latency_s > 0
            assert RATE_HZ <= sum(told.histogram) <= ticks  # a span lasts until a second after the swap
            assert told.seam_jump <= LONGEST_STEP and told.seam_channel in ("j1", "j2")
        assert sum(update.histogram) + sum(rollback.histogram) <= ticks
        assert sum(update.histogram) > sum(rollback.histogram)  # it counts from the preparation on
        missed = after.missed - before.missed
        assert missed == witness.share(missed, begun_s) and after.starved == before.starved
        no_gap(rig, start)


@alone
def test_commands_go_from_one_generation_to_the_other_and_never_back(tmp_path: Path) -> None:
    old, new, blend_ticks = 0.0, 0.12, 2  # the rig's contract blends over two ticks
    scripted_bundle(tmp_path / "old", "1.0.0", amplitude=0.0, offset=old)
    scripted_bundle(tmp_path / "new", "1.1.0", amplitude=0.0, offset=new)
    with EngineRig(tmp_path, model_path=str(tmp_path / "old")) as rig:
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: len(rig.commands()[1]) > 5, "commands of the old one")
        start = len(rig.commands()[1])
        _, report = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "new")))
        rig.wait_running("1.1.0")
        rig.wait_for(lambda: bool(np.isclose(rig.commands()[1][-1], new).all()), "commands of the new one")
        values = no_gap(rig, start)
        between = ~np.isclose(values, old, atol=1e-6) & ~np.isclose(values, new, atol=1e-6)
        assert (np.diff(values, axis=0) >= -1e-6).all() and between.sum(axis=0).max() <= blend_ticks
        assert report is not None and report.seam_jump == pytest.approx(np.diff(values, axis=0).max(), rel=1e-3)


def test_what_prepare_loaded_is_told_once_in_the_report_of_the_swap_that_follows(tmp_path: Path) -> None:
    digests = bundles(tmp_path, "1.0.0", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        states: list[str] = []
        prepared = rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda state, share: states.append(state), bool)
        assert rig.snapshot.prepared is prepared and rig.snapshot.active.version == "1.0.0"  # type: ignore[union-attr]
        assert (
            states[0] == "QUEUED" and states[-1] == "READY" and {"LOADING", "DIGEST", "GOLDEN", "WARM_UP"} <= {*states}
        )
        assert rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool) is prepared  # it is there already
        _, first = rig.engine.swap(SwapRequest(digest=digests["1.1.0"]))
        _, back = rig.engine.swap(SwapRequest(digest=digests["1.0.0"]))
        _, again = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.1.0")))  # by its folder: no load either
        assert first is not None and back is not None and again is not None
        assert [r.warm for r in (first, back, again)] == [False, True, True]
        assert first.timings == prepared.generation.timings and again.timings.load_s == 0.0


@alone
def test_each_boundary_is_kept(tmp_path: Path) -> None:
    digests = bundles(tmp_path, "1.0.0", "1.1.0", horizon=40, execute=20, frequency_hz=[0.0, 0.0], amplitude=0.0)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        _, rest = rig.engine.swap(SwapRequest(digest=digests["1.1.0"], at="REST"))  # this curve is at rest
        assert rest is not None and rest.at == "REST" and rig.snapshot.active.version == "1.1.0"  # type: ignore[union-attr]
        start = rig.control.tick
        _, now = rig.engine.swap(SwapRequest(digest=digests["1.0.0"], at="NOW"))
        assert now is not None and now.at == "NOW" and rig.control.tick - start < 20  # within the executed part

        result: list[object] = []
        waiting = threading.Thread(
            target=lambda: result.append(rig.engine.swap(SwapRequest(digest=digests["1.1.0"], at="EPISODE")))
        )
        waiting.start()
        rig.wait_for(lambda: rig.engine.generations.swap_pending, "the swap pending")
        chunks = rig.control.chunks
        rig.wait_for(lambda: rig.control.chunks >= chunks + 2, "two chunk boundaries without an episode")
        assert not result and rig.snapshot.active.version == "1.0.0"  # type: ignore[union-attr]
        rig.engine.start_episode("e1", "", 0.0)
        waiting.join(TIMEOUT_S)
        assert result and rig.snapshot.active.version == "1.1.0"  # type: ignore[union-attr]
        no_gap(rig, 0)


def test_an_episode_that_begins_right_after_the_request_is_its_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = bundles(tmp_path, "1.0.0", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        activate = rig.engine._control.activate

        def activate_then_begin(*arguments: Any) -> None:
            activate(*arguments)  # within the same tick, before the control process has read it
            rig.engine.start_episode("", "", 0.0)

        monkeypatch.setattr(rig.engine._control, "activate", activate_then_begin)
        for version in ("1.1.0", "1.0.0", "1.1.0"):
            rig.engine.swap(SwapRequest(digest=digests[version], at="EPISODE", timeout_s=60.0))
            assert rig.snapshot.active.version == version  # type: ignore[union-attr]
            rig.engine.end_episode("", success=True)


@alone
def test_a_boundary_that_does_not_come_leaves_the_old_one_acting_and_the_new_one_ready(tmp_path: Path) -> None:
    digests = bundles(tmp_path, "1.0.0", "1.1.0", phase=(0.0, np.pi / 2))
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        for at in ("EPISODE", "REST"):  # no episode begins, and when one joint turns round the other is fastest
            with refused("SWAP_TIMEOUT"):
                rig.engine.swap(SwapRequest(digest=digests["1.1.0"], at=at, timeout_s=0.2))
        snapshot = rig.snapshot
        assert snapshot.active and snapshot.prepared
        assert (snapshot.active.version, snapshot.prepared.version) == ("1.0.0", "1.1.0")
        _, report = rig.engine.swap(SwapRequest(digest=digests["1.1.0"]))
        assert report is not None and not report.warm and report.timings.load_s > 0  # still what was loaded for it
        assert report.starved == 0


@alone
def test_requests_that_cannot_be_followed_are_refused_with_their_code(tmp_path: Path) -> None:
    digests = bundles(tmp_path / "in", "1.0.0", "1.1.0")
    bundles(tmp_path / "out", "2.0.0")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out" / "2.0.0")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in" / "loop")
    inside = tmp_path / "in"
    new = str(inside / "1.1.0")
    refused = [
        (SwapRequest(), "EMPTY_REQUEST"),
        (SwapRequest(expected_active_digest=digests["1.0.0"]), "EMPTY_REQUEST"),
        (SwapRequest(bundle_path=new, at="SOON"), "SWAP_BOUNDARY_UNKNOWN"),
        (SwapRequest(bundle_path=new, cause="WHIM"), "CAUSE_UNKNOWN"),
        (SwapRequest(bundle_path=new, cause="WORKER_LOST"), "CAUSE_UNKNOWN"),  # the node's own
        (SwapRequest(bundle_path=new, timeout_s=float("nan")), "DURATION_INVALID"),
        (SwapRequest(bundle_path=new, timeout_s=-1.0), "DURATION_INVALID"),
        (SwapRequest(bundle_path=new, timeout_s=float("inf")), "DURATION_INVALID"),
        (SwapRequest(bundle_path=new, trial=True, trial_lease_s=-1.0), "DURATION_INVALID"),
        (SwapRequest(bundle_path=new, expected_active_digest="0" * 64), "EXPECTATION_FAILED"),
        (SwapRequest(digest="0" * 64), "NOT_PREPARED"),
        (SwapRequest(bundle_path=new, digest="0" * 64), "DIGEST_BUNDLE"),
        (SwapRequest(bundle_path=str(tmp_path / "out" / "2.0.0")), "BUNDLE_OUTSIDE_ROOTS"),
        (SwapRequest(bundle_path=str(inside / ".." / "out" / "2.0.0")), "BUNDLE_OUTSIDE_ROOTS"),
        (SwapRequest(bundle_path=str(inside / "link")), "BUNDLE_OUTSIDE_ROOTS"),
        (SwapRequest(bundle_path="/"), "BUNDLE_OUTSIDE_ROOTS"),
        (SwapRequest(bundle_path="a\0b"), "BUNDLE_PATH_INVALID"),
        (SwapRequest(bundle_path="~nobody_of_that_name/b"), "BUNDLE_PATH_INVALID"),
    ]
    with EngineRig(inside, model_path=str(inside / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        for request, code in refused:
            with pytest.raises(PolicyNodeError) as caught:
                rig.engine.swap(request)
            assert caught.value.code == code, request
        for path in ("missing", "loop", "x" * 5000):
            with pytest.raises(EXPECTED_ERRORS) as other:
                rig.engine.swap(SwapRequest(bundle_path=str(inside / path)))
            assert other.value.code
        snapshot = rig.snapshot
        assert snapshot.active and snapshot.active.version == "1.0.0" and not (snapshot.standby or snapshot.prepared)
        same, report = rig.engine.swap(SwapRequest(digest=digests["1.0.0"], expected_active_digest=digests["1.0.0"]))
        assert same is snapshot.active and report is None  # it acts already: done
        assert len(rig.reports) <= 1 and rig.control.starved == 0


def test_a_second_swap_or_preparation_meanwhile_is_refused_and_does_not_disturb_the_first(tmp_path: Path) -> None:
    digests = bundles(tmp_path, "1.0.0", "1.1.0")
    scripted_bundle(tmp_path / "third", "1.2.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        prepared = rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool)
        result: list[object] = []
        waiting = threading.Thread(
            target=lambda: result.append(rig.engine.swap(SwapRequest(digest=digests["1.1.0"], at="EPISODE")))
        )
        rig.wait_asked(waiting.start)
        for call in (
            lambda: rig.engine.swap(SwapRequest(digest=digests["1.1.0"])),
            lambda: rig.engine.prepare(str(tmp_path / "third"), "", lambda *_: None, bool),  # its place is taken
        ):
            with refused("SWAP_IN_PROGRESS"):
                call()
        assert rig.snapshot.prepared is prepared and prepared.generation.alive
        rig.engine.start_episode("", "", 0.0)
        waiting.join(TIMEOUT_S)
        assert result and rig.snapshot.active is prepared

        begun, go_on = threading.Event(), threading.Event()

        def on_progress(state: str, share: float) -> None:
            begun.set()
            go_on.wait(TIMEOUT_S)

        loading = threading.Thread(target=lambda: rig.engine.prepare(str(tmp_path / "third"), "", on_progress, bool))
        loading.start()
        assert begun.wait(TIMEOUT_S)
        with refused("PREPARE_IN_PROGRESS"):
            rig.engine.prepare(str(tmp_path / "1.0.0"), "", lambda *_: None, bool)
        go_on.set()
        loading.join(TIMEOUT_S)
        assert rig.snapshot.prepared and rig.snapshot.prepared.version == "1.2.0"


def test_one_preparation_replaces_another_also_before_anything_acts(tmp_path: Path) -> None:
    digests = bundles(tmp_path, "1.0.0", "1.1.0", "1.2.0", "1.3.0")
    with EngineRig(tmp_path) as rig:
        for version in digests:
            prepared = rig.engine.prepare(str(tmp_path / version), "", lambda *_: None, bool)
            assert rig.snapshot.prepared is prepared and rig.snapshot.active is None
        assert len(rig.engine._pool.generations()) <= 2
        rig.engine.swap(SwapRequest(digest=digests["1.3.0"], at="EPISODE"))  # nothing acts: there is no boundary
        rig.wait_running("1.3.0")
