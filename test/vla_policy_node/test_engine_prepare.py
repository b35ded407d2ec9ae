"""A bundle that does not fit, is damaged, or misbehaves while it is loaded is refused with its code, and nothing else happens."""

from __future__ import annotations

import logging
import re
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bundles import JOINTS, flip_last_byte
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle

from vla_checkpoint import Channel
from vla_policy_node.generations.recovery import EXPECTED_ERRORS
from vla_policy_node.generations.swapping import SwapRequest

MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "another rate": ({"rate_hz": 20.0}, "RATE_MISMATCH"),
    "another robot": ({"robot_type": "crane"}, "ROBOT_TYPE_MISMATCH"),
    "another order": ({"channels": JOINTS[::-1]}, "CHANNELS_MISMATCH"),
    "one channel less": ({"channels": JOINTS[:1]}, "CHANNELS_MISMATCH"),
    "another unit": ({"channels": (JOINTS[0], Channel("j2", "m", "absolute"))}, "UNIT_MISMATCH"),
    "another mode": ({"channels": (JOINTS[0], Channel("j2", "rad", "relative"))}, "MODE_MISMATCH"),
    "a camera that is not there": ({"images": {"observation.images.front": (8, 8)}}, "OBSERVATION_MISMATCH"),
    "no actions left to blend": ({"horizon": 9, "execute": 8}, "HORIZON_TOO_SHORT"),
    "an unknown policy": ({"policy_type": "oracle"}, "POLICY_TYPE_UNKNOWN"),
    "an exception": ({"load_raise": True}, "LOAD_FAILED"),
    "no memory": ({"load_no_memory": True}, "OUT_OF_MEMORY"),
    "a crash": ({"load_crash": True}, "WORKER_DIED"),
    "another answer than where it was made": ({"golden_error": 0.1}, "GOLDEN_MISMATCH"),
    "NaN while it warms up": ({"warm_up_nan": True, "golden": False}, "WARM_UP_FAILED"),
}


def test_every_misfit_is_refused_and_the_acting_policy_goes_on(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running("1.0.0")
        before, refused = rig.control, {}
        for number, (name, (changes, _)) in enumerate(MISFITS.items()):
            folder = tmp_path / f"misfit{number}"
            scripted_bundle(folder, "2.0.0", **changes)
            refused[name] = _refusal(rig, folder)
        assert refused == {name: code for name, (_, code) in MISFITS.items()}
        damaged = tmp_path / "damaged"
        scripted_bundle(damaged, "2.0.0")
        flip_last_byte(damaged / "model.safetensors")
        assert _refusal(rig, damaged) == "DIGEST_TENSOR"
        assert _refusal(rig, "") == "EMPTY_REQUEST"
        after = rig.control
        assert (after.mode, after.starved, after.generation) == ("RUNNING", before.starved, before.generation)
        assert len(rig.engine._pool.generations()) == 1
        rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)  # all their memory is back


def test_a_preparation_is_cancelled_or_given_up_at_once_whatever_the_policy_does(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    scripted_bundle(tmp_path / "hangs", "1.2.0", load_sleep_s=3600.0)
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        cancel, outcome = threading.Event(), _Outcome()
        thread = outcome.run(lambda: rig.engine.prepare(str(tmp_path / "hangs"), "", lambda *_: None, cancel.is_set))
        rig.wait_for(lambda: rig.snapshot.standby is None, "the standby making way")
        rig.wait_for(lambda: len(rig.engine._pool._residents) == 2, "the load")
        cancel.set()
        thread.join(40.0)
        assert outcome.code == "CANCELLED"
        with refused("LOAD_TIMEOUT"):
            rig.engine.generations._pool.prepare(tmp_path / "hangs", timeout_s=0.2)
        assert rig.control.mode == "RUNNING" and rig.snapshot.active.version == "1.1.0"  # type: ignore[union-attr]
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "a")))
        rig.wait_running("1.0.0")


def test_what_is_refused_before_it_is_loaded_costs_no_standby(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    scripted_bundle(tmp_path / "misfit", "2.0.0", rate_hz=20.0)
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running()
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        standby = rig.snapshot.standby
        for path in ("misfit", "missing", "../misfit"):
            with pytest.raises(EXPECTED_ERRORS):
                rig.engine.prepare(str(tmp_path / path), "", lambda *_: None, bool)
        assert standby is not None and rig.snapshot.standby is standby and standby.generation.alive


def test_a_start_that_fails_is_told_and_a_later_swap_gives_the_robot_its_policy(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", load_raise=True)
    scripted_bundle(tmp_path / "b", "1.1.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:
        rig.wait_for(lambda: rig.snapshot.error_code == "LOAD_FAILED", "the error")
        rig.wait_for(lambda: not rig.snapshot.loading, "the end of loading")
        assert rig.snapshot.active is None and rig.control.hold_reason == "NO_POLICY"
        assert len(rig.commands()[1]) == 0
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
        rig.wait_running("1.1.0")


def test_the_store_s_current_goes_before_the_factory_policy(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "factory", "1.0.0")
    store = tmp_path / "store"
    (store / "models").mkdir(parents=True)
    with EngineRig(tmp_path, store_dir=str(store), bundle_roots=()) as rig:
        assert rig.snapshot.error_code == "NO_POLICY"  # an empty store: a first install will come
    scripted_bundle(store / "models" / "x", "1.1.0")
    (store / "current").symlink_to("models/x")
    with EngineRig(tmp_path, store_dir=str(store), model_path=str(tmp_path / "factory"), bundle_roots=()) as rig:
        rig.wait_running("1.1.0")


def _refusal(rig: EngineRig, path: Path | str) -> str:
    try:
        rig.engine.prepare(str(path), "", lambda *_: None, bool)
    except EXPECTED_ERRORS as e:
        return e.code
    return ""


class _Outcome:
    """The code that a call on a thread of its own raised."""

    code = ""

    def run(self, call: Callable[[], object]) -> threading.Thread:
        def work() -> None:
            try:
                call()
            except EXPECTED_ERRORS as e:
                self.code = e.code

        thread = threading.Thread(target=work)
        thread.start()
        return thread


def test_a_policy_with_a_history_acts_on_what_the_robot_has_just_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_bundle(tmp_path / "a", n_obs_steps=3, echo=True)
    with caplog.at_level(logging.INFO, "vla_policy_node"), EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:

        def shown() -> list[list[float]]:
            """First joint of each observation, a row for each chunk."""
            found = re.findall(r"call \d+ '' \[\[(.*?), .*?\], \[(.*?), .*?\], \[(.*?), .*?\]\]", caplog.text)
            return [[float(position) for position in row] for row in found]

        rig.wait_running()
        # It moves at up to 0.4 rad/s: half of the chunks, at the least, are made in motion.
        rig.wait_for(lambda: len([row for row in shown() if len(set(row)) == 3]) >= 3, "three chunks made in motion")
    moved = [row for row in shown() if len(set(row)) == 3]
    # Of the last moments, not of long ago: at its start it moves by up to 0.08 rad a period; the machine may stall.
    assert statistics.median(max(row) - min(row) for row in moved) < 0.2, moved
