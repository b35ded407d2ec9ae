# SPDX-License-Identifier: Apache-2.0
"""What a robot runs before its first update is the committed version: a first update is judged, and there is a way back."""

from __future__ import annotations

import pytest
from support.bundles import flip_last_byte, make_bundle
from support.ota import Robot
from support.simulated_policy import SimulatedPolicy

from vla_checkpoint import verify_bundle
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.state import Block

S = UpdateState


@pytest.fixture
def factory(robot: Robot) -> Robot:
    """The policy node runs a bundle that is in no store; the manager is told which."""
    folder = robot.folder / "factory"
    make_bundle(folder, version="1.0.0", seed=5)
    robot.settings = {"factory_bundle": str(folder), "first_install_chunks": 1, "block_chunks": 1}
    SimulatedPolicy.boot(robot.policy_file, folder)
    return robot


def committed(robot: Robot, version: str) -> bool:
    assert robot.engine is not None
    return robot.engine.status().committed_version == version


def test_the_factory_bundle_is_what_a_rejected_first_update_goes_back_to(factory: Robot) -> None:
    factory.settings["min_trial_chunks"] = 1000
    factory.start()
    factory.until(lambda: committed(factory, "1.0.0"))
    assert factory.current_version() == "1.0.0"
    factory.publish("1.1.0")
    factory.offer("1.1.0")
    factory.reach(S.TRIAL)
    factory.until(lambda: "chunks" in factory.engine.status().trial_message)
    assert "first install" not in factory.engine.status().trial_message
    factory.score(1.0, "hard_limit")
    outcome = factory.ended("u-1.1.0", S.ROLLED_BACK, "HARD_LIMIT")
    assert "warm" in outcome.message
    assert factory.policy.look()["active"]["version"] == "1.0.0"
    assert factory.policy.look()["log"][0] == "prepare 1.1.0"  # nothing was done to what acts already


def test_a_factory_bundle_that_was_damaged_in_the_store_is_made_whole_from_the_original(factory: Robot) -> None:
    factory.start()
    factory.until(lambda: committed(factory, "1.0.0"))
    factory.stop()
    for file in (factory.store_dir / "current").iterdir():
        file.chmod(0o644)
        with file.open("r+b") as opened:
            opened.truncate(10)
    factory.start()
    factory.until(lambda: committed(factory, "1.0.0") and factory.engine.list_models().models)
    assert verify_bundle(factory.store_dir / "current")


def test_it_is_looked_at_only_while_nothing_is_committed(factory: Robot) -> None:
    factory.start()
    factory.until(lambda: committed(factory, "1.0.0"))
    factory.publish("1.1.0")
    factory.install("1.1.0")
    factory.stop()
    make_bundle(factory.folder / "other", version="0.9.0", seed=6)
    factory.settings["factory_bundle"] = str(factory.folder / "other")
    factory.start()
    factory.until(lambda: committed(factory, "1.1.0"))
    assert [model.ref.version for model in factory.engine.list_models().models] == ["1.1.0", "1.0.0"]


@pytest.mark.parametrize(
    ("harm", "settings", "code"),
    [
        (lambda folder: flip_last_byte(folder / "model.safetensors"), {}, "DIGEST_FILE"),
        (lambda folder: (folder / "manifest.json").unlink(), {}, "FILE_MISSING"),
        (lambda folder: None, {"robot_type": "other_arm"}, "ROBOT_TYPE_MISMATCH"),
        (lambda folder: None, {"factory_bundle": "/nowhere/at/all"}, "BUNDLE_NOT_A_FOLDER"),
    ],
    ids=["damaged", "no manifest", "another robot", "not there"],
)
def test_a_bad_factory_bundle_is_reported_with_its_code_and_updates_work_without(
    factory: Robot, harm, settings: dict, code: str
) -> None:
    harm(factory.folder / "factory")
    factory.settings |= settings
    factory.start()
    factory.until(lambda: any(event.error_code == code for event in factory.events))
    factory.until(lambda: factory.engine.status().error_code == code)
    assert "factory_bundle" in factory.engine.status().message
    assert factory.current_version() == "" and factory.engine.list_models().models == ()
    factory.publish("1.1.0", **({"robot_type": settings["robot_type"]} if "robot_type" in settings else {}))
    factory.install("1.1.0")


def test_a_blocked_factory_bundle_is_not_committed(factory: Robot) -> None:
    factory.start()
    factory.until(lambda: committed(factory, "1.0.0"))
    ref = factory.engine.store.state.committed
    store = factory.engine.store
    factory.stop()
    store.open()
    with store.edit() as state:
        state.committed, state.blocked[ref.digest] = None, Block(ref, "broke a limit", 0.0)
    store.close()
    (factory.store_dir / "current").unlink()
    factory.start()
    factory.until(lambda: factory.engine.status().error_code == "VERSION_BLOCKED")
    assert factory.current_version() == ""
