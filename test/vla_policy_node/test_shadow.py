"""A version sees what the robot sees before it may act; what acts does not notice, and what is amiss is refused by name."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle
from support.worker_robot import thread_levels

from vla_policy_node.generations.recovery import EXPECTED_ERRORS
from vla_policy_node.generations.residents import Resident
from vla_policy_node.generations.swapping import SwapRequest
from vla_policy_node.shadow import session
from vla_policy_node.shadow.incumbent import Seen

CALM = {"amplitude": 0.02, "frequency_hz": 0.1}  # a worker that stalls for a second answers nearly the same
SHORT = {"horizon": 16}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an offset": ({"offset": (0.5, 0.9)}, "SHADOW_DIVERGED"),
    "another sign": ({"offset": (-0.5, -0.5)}, "SHADOW_DIVERGED"),
    "an action outside the robot's limits": ({"jump_at_call": 2, "jump": 3.0}, "SHADOW_LIMIT"),
    "chunks that come too late": ({"live_sleep_s": 0.3, **SHORT}, "SHADOW_TOO_SLOW"),
    "NaN": ({"nan_at_call": 2}, "SHADOW_FAILED"),
    "a chunk of a wrong shape": ({"wrong_shape_at_call": 2}, "SHADOW_FAILED"),
    "an exception": ({"raise_at_call": 2}, "SHADOW_FAILED"),
    "a crash": ({"crash_at_call": 2}, "WORKER_DIED"),
}


def prepare(rig: EngineRig, folder: Path, states: list[str] | None = None) -> Resident:
    heard: list[str] = [] if states is None else states
    return rig.engine.prepare(str(folder), "", lambda state, share: heard.append(state), bool)


def test_a_version_that_wants_what_the_acting_one_wants_passes_and_may_act(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", offset=0.5, **CALM)
    scripted_bundle(tmp_path / "b", "1.1.0", offset=0.52, **CALM)
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), shadow_chunks=6) as rig:
        rig.wait_running("1.0.0")
        starved, levels, states = rig.control.starved, dict[str, int](), list[str]()

        def on_progress(state: str, share: float) -> None:
            states.append(state)
            if state == "SHADOW" and share > 0.6:
                levels.update(thread_levels(rig.engine._pool.generations()[-1].pid))

        prepared = rig.engine.prepare(str(tmp_path / "b"), "", on_progress, bool)
        assert states[-2:] == ["SHADOW", "READY"] and states.count("READY") == 1
        assert max(levels.values()) > min(levels.values())  # it infers behind what acts
        assert rig.control.starved == starved

        _, report = rig.engine.swap(SwapRequest(digest=prepared.digest))
        rig.wait_running("1.1.0")
        assert report is not None
        assert (report.shadow.chunks, report.shadow.compared) == (6, 6)
        assert 0.0 < report.shadow.divergence < 5.0 and report.shadow.channel in ("j1", "j2")
        assert report.shadow.seconds > 0.0 and report.starved == 0
        assert max(thread_levels(prepared.generation.pid).values()) == min(levels.values())  # it acts at its own level


@pytest.mark.parametrize("history", [1, 3])
def test_it_is_asked_about_the_observations_that_the_acting_policy_was_asked_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, history: int
) -> None:
    for version in ("1.0.0", "1.1.0"):
        scripted_bundle(tmp_path / version, version, echo=True, n_obs_steps=history, **CALM)
    with caplog.at_level("INFO"), EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), shadow_chunks=4) as rig:
        rig.wait_running()
        prepared = prepare(rig, tmp_path / "1.1.0")
        active = rig.snapshot.active
        assert active is not None

        def seen(pid: int) -> list[str]:
            said = [r.message for r in list(caplog.records)]
            lines = [text.split(" ", 2)[2] for text in said if text.startswith(f"worker {pid}: call ")]
            return [line.partition("'' ")[2] for line in lines if not line.startswith("call -")]

        shadow = prepared.generation.pid
        rig.wait_for(lambda: len(seen(shadow)) >= 4, "what it was asked about")
        of_the_acting = active.generation.pid
        rig.wait_for(lambda: set(seen(shadow)) <= set(seen(of_the_acting)), "the acting one asked about the same")


def test_what_is_amiss_is_refused_by_name_and_the_acting_policy_does_not_notice(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", offset=0.5, **CALM)
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), shadow_chunks=4) as rig:
        rig.wait_running("1.0.0")
        before, found = rig.control, {}
        for number, (what, (changes, _)) in enumerate(BAD.items()):
            folder = tmp_path / f"bad{number}"
            scripted_bundle(folder, "1.1.0", **{"offset": 0.5, **CALM, **changes})
            with pytest.raises(EXPECTED_ERRORS) as caught:
                prepare(rig, folder)
            found[what] = caught.value.code
        assert found == {what: code for what, (_, code) in BAD.items()}
        after = rig.control
        assert (after.starved, after.generation) == (before.starved, before.generation)
        assert len(rig.engine._pool.generations()) == 1  # their memory is back


def test_an_observation_that_is_incomplete_is_not_held_against_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", **CALM)
    scripted_bundle(tmp_path / "b", "1.1.0", **CALM)
    ask, spoiled = session._Session._ask, []

    def ask_blindly_at_first(self: Any, seen: Seen) -> None:
        if not spoiled:
            spoiled.append(True)
            seen = replace(seen, record={**seen.record, "valid": np.zeros_like(seen.record["valid"])})
        ask(self, seen)

    monkeypatch.setattr(session._Session, "_ask", ask_blindly_at_first)
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), shadow_chunks=3) as rig:
        rig.wait_running("1.0.0")
        prepare(rig, tmp_path / "b")
        assert spoiled


def test_there_is_nothing_to_compare_a_first_install_or_another_major_version_with(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", offset=0.5, **CALM)
    scripted_bundle(tmp_path / "b", "2.0.0", offset=-0.5, **CALM)
    scripted_bundle(tmp_path / "c", "2.1.0", offset=-0.5, **CALM, jump_at_call=1, jump=3.0)
    with EngineRig(tmp_path, shadow_chunks=3) as rig:
        first = prepare(rig, tmp_path / "a")
        assert (first.shadow.chunks, first.shadow.compared) == (3, 0)
        rig.engine.swap(SwapRequest(digest=first.digest))
        rig.wait_running("1.0.0")
        major = prepare(rig, tmp_path / "b")
        assert (major.shadow.chunks, major.shadow.compared) == (3, 0)
        assert "nothing to compare" in str(major.shadow)
        with refused("SHADOW_LIMIT"):  # its limits are looked at all the same
            prepare(rig, tmp_path / "c")


def test_a_way_back_and_what_is_not_to_wait_go_without_a_shadow(tmp_path: Path) -> None:
    for version, offset in (("1.0.0", 0.5), ("1.1.0", 0.52), ("1.2.0", 0.55)):
        scripted_bundle(tmp_path / version, version, offset=offset, **CALM)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), shadow_chunks=3) as rig:
        rig.wait_running("1.0.0")
        urgent = rig.engine.prepare(str(tmp_path / "1.1.0"), "", lambda *_: None, bool, skip_shadow=True)
        _, report = rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "1.2.0"), cause="ROLLBACK"))
        assert urgent.shadow.chunks == 0
        assert report is not None and report.shadow.chunks == 0 and not report.warm


def test_a_shadow_ends_when_it_is_cancelled_or_sees_nothing_for_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_PATIENCE_S", 0.5)
    scripted_bundle(tmp_path / "a", "1.0.0", **CALM, **SHORT)
    scripted_bundle(tmp_path / "b", "1.1.0", **CALM, **SHORT)
    with EngineRig(tmp_path, model_path=str(tmp_path / "a"), shadow_chunks=2, bundle_roots=(str(tmp_path),)) as rig:
        rig.wait_running("1.0.0")
        cancel = threading.Event()
        with refused("CANCELLED"):
            in_shadow = lambda state, share: cancel.set() if state == "SHADOW" else None  # noqa: E731
            rig.engine.prepare(str(tmp_path / "b"), "", in_shadow, cancel.is_set)
        assert len(rig.engine._pool.generations()) == 1

        rig.feeding = False
        rig.wait_for(lambda: rig.control.mode == "HOLDING", "a hold without observations")
        with refused("SHADOW_INCOMPLETE") as error:
            prepare(rig, tmp_path / "b")
        assert "observations" in str(error.value)
        rig.feeding = True
        rig.wait_running("1.0.0")
        monkeypatch.setattr(session, "_PATIENCE_S", 60.0)
        prepare(rig, tmp_path / "b")
