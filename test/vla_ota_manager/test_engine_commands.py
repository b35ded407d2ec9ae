# SPDX-License-Identifier: Apache-2.0
"""What a person asks for is done, or refused with a code; it never waits for a download and blocks nothing."""

from __future__ import annotations

import threading

import pytest
from support.ota import Robot, shared_weights

from vla_ota_manager.errors import StoreError
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.state import RollbackRecord
from vla_sim.checkpoint_server import Behaviour

S = UpdateState


def test_an_empty_rollback_goes_to_the_previous_version_warm_and_blocks_nothing(updated: Robot) -> None:
    before = sum(updated.server.served.values())
    reply = updated.engine.rollback(reason="it looked nervous")
    assert (reply.success, reply.from_version, reply.to_version, reply.warm) == (True, "1.1.0", "1.0.0", True)
    assert updated.current_version() == "1.0.0"
    assert updated.policy.look()["active"]["version"] == "1.0.0"
    assert sum(updated.server.served.values()) == before
    status = updated.engine.status()
    assert (status.state, status.committed_version, status.blocked) == (S.ROLLED_BACK, "1.0.0", ())
    assert any("it looked nervous" in line for line in updated.engine.list_models().history)


def test_a_rollback_to_what_acts_does_not_name_it_twice(updated: Robot) -> None:
    reply = updated.engine.rollback("1.1.0", reason="to be sure")
    assert (reply.success, reply.message) == (True, "1.1.0 acts already")


def test_a_second_rollback_goes_further_back_never_forward(updated: Robot) -> None:
    updated.publish("1.2.0")
    updated.install("1.2.0")
    assert updated.engine.rollback().to_version == "1.1.0"
    assert updated.engine.rollback().to_version == "1.0.0"
    assert updated.engine.rollback().error_code == "NO_PREVIOUS"
    reply = updated.engine.rollback("1.2.0")
    assert reply.success and updated.current_version() == "1.2.0"


def test_a_cold_rollback_loads_from_disk(updated: Robot) -> None:
    updated.boot_policy()
    reply = updated.engine.rollback()
    assert reply.success and not reply.warm
    assert updated.policy.look()["log"] == ["prepare 1.0.0", "swap 1.0.0 ROLLBACK CHUNK"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"version": "9.9.9"}, "MODEL_NOT_FOUND"),
        ({"version": "../../etc"}, "MODEL_NOT_FOUND"),
        ({"expected_from_version": "1.0.0"}, "EXPECTATION_FAILED"),
    ],
)
def test_a_rollback_that_makes_no_sense_changes_nothing(updated: Robot, arguments: dict, code: str) -> None:
    assert updated.engine.rollback(**arguments).error_code == code
    assert updated.current_version() == "1.1.0" and updated.engine.status().state is S.COMMITTED


def test_a_rollback_is_never_gated_by_permission(updated: Robot) -> None:
    updated.stop()
    updated.settings = {"require_permission": True}
    updated.start()
    updated.engine.set_update_permitted(False)
    assert updated.engine.rollback().success


def test_a_rollback_does_not_wait_for_a_download_and_cancels_it(updated: Robot) -> None:
    updated.publish("1.2.0", tensors=shared_weights(3, 100_000))
    updated.server.behave("/blobs/", Behaviour(stall_after=1000))
    updated.offer("1.2.0")
    updated.reach(S.FETCHING)
    assert updated.engine.rollback(timeout_s=60.0).success  # the download would take minutes to give up
    outcome = updated.engine.outcome("u-1.2.0")
    assert (outcome.state, outcome.error_code, outcome.final) == (S.CANCELLED, "SUPERSEDED", True)


def test_a_rollback_in_a_trial_ends_it_without_blocking(updated: Robot) -> None:
    updated.try_next()
    assert updated.engine.rollback("1.2.0").error_code == "ON_TRIAL"
    reply = updated.engine.rollback(expected_from_version="1.2.0")
    assert (reply.success, reply.from_version, reply.to_version) == (True, "1.2.0", "1.1.0")
    outcome = updated.engine.outcome("u-1.2.0")
    assert (outcome.state, outcome.error_code, outcome.version) == (S.ROLLED_BACK, "OPERATOR_ROLLBACK", "1.2.0")
    status = updated.engine.status()
    assert (status.committed_version, status.previous_version, status.blocked) == ("1.1.0", "1.0.0", ())


def test_a_rollback_in_a_trial_to_a_third_version_leaves_the_trial_first(updated: Robot) -> None:
    updated.try_next()
    reply = updated.engine.rollback("1.0.0", timeout_s=50.0)  # sooner than the lease ends
    assert (reply.success, reply.from_version, reply.to_version) == (True, "1.2.0", "1.0.0"), reply
    document = updated.policy.look()
    assert document["active"]["version"] == "1.0.0" and document["lease"] is None
    assert document["log"][-3:] == ["swap 1.1.0 ROLLBACK CHUNK", "prepare 1.0.0", "swap 1.0.0 ROLLBACK CHUNK"]
    assert updated.current_version() == "1.0.0"


def test_with_a_dead_policy_node_the_rollback_is_ready_for_its_next_start(updated: Robot) -> None:
    updated.say(absent=True)
    reply = updated.engine.rollback()
    assert (reply.success, reply.error_code, reply.to_version) == (False, "POLICY_ABSENT", "1.0.0")
    assert updated.current_version() == "1.0.0"
    assert updated.boot_policy().look()["active"]["version"] == "1.0.0"
    updated.until(lambda: not updated.engine.store.state.activation_due)


def test_a_rollback_that_the_policy_node_refuses_keeps_the_committed_version(updated: Robot) -> None:
    updated.say(refuse_swap="MOTION_DISABLED")
    reply = updated.engine.rollback()
    assert (reply.success, reply.error_code) == (False, "MOTION_DISABLED")
    assert updated.current_version() == "1.1.0" and updated.engine.status().state is S.FAILED


def test_a_rollback_waits_for_a_busy_policy_node_and_loads_what_it_has_let_go(updated: Robot) -> None:
    updated.say(refuse_swap="SWAP_IN_PROGRESS", forget_at_swap=True)

    def calm_down() -> None:
        updated.say(refuse_swap="")

    threading.Timer(0.5, calm_down).start()
    reply = updated.engine.rollback()
    assert reply.success and not reply.warm
    assert updated.policy.look()["log"][-2:] == ["prepare 1.0.0", "swap 1.0.0 ROLLBACK CHUNK"]


def test_a_rollback_that_a_crash_interrupted_is_carried_out_at_the_next_start(updated: Robot) -> None:
    store = updated.engine.store
    updated.stop()
    store.open()
    with store.edit() as state:
        state.rollback = RollbackRecord(state.previous, "asked for before the crash", "1.1.0")
        state.state = S.ROLLING_BACK
    store.close()
    updated.start()
    updated.until(lambda: updated.engine.store.state.rollback is None)
    assert updated.current_version() == "1.0.0"
    assert updated.policy.look()["active"]["version"] == "1.0.0"
    assert updated.engine.status().state is S.ROLLED_BACK


def test_commit_ends_a_trial_on_a_persons_responsibility(updated: Robot) -> None:
    assert updated.engine.commit().error_code == "NO_TRIAL"
    updated.try_next()
    assert updated.engine.commit("1.1.0").error_code == "EXPECTATION_FAILED"
    reply = updated.engine.commit("1.2.0", "seen it work")
    assert (reply.success, reply.committed_version) == (True, "1.2.0")
    assert updated.current_version() == "1.2.0"
    assert "seen it work" in updated.ended("u-1.2.0").message


def test_pin_and_unpin(updated: Robot) -> None:
    assert updated.engine.pin("9.9.9").error_code == "MODEL_NOT_FOUND"
    assert updated.engine.pin("1.0.0").versions == ("1.0.0",)
    assert updated.engine.pin("1.0.0").versions == ("1.0.0",)
    assert updated.engine.pin().versions == ("1.0.0", "1.1.0")
    assert updated.engine.pin("1.0.0", unpin=True).versions == ("1.1.0",)


def test_unblock_allows_a_version_again(updated: Robot) -> None:
    updated.try_next()
    updated.score(1.0, "hard_limit")
    updated.ended("u-1.2.0")
    entry = next(entry for entry in updated.engine.list_models().models if entry.ref.version == "1.2.0")
    assert entry.blocked and "HARD_LIMIT" in entry.block_reason
    assert updated.engine.rollback("1.2.0").error_code == "VERSION_BLOCKED"
    assert not updated.engine.unblock("").success
    assert updated.engine.unblock("1.2.0").versions == ()
    updated.feeding = True
    updated.install("1.2.0", update_id="again")


def test_list_models_tells_what_each_version_is(updated: Robot) -> None:
    reply = updated.engine.list_models()
    marks = {e.ref.version: (e.committed, e.previous, e.active) for e in reply.models}
    assert marks == {"1.1.0": (True, False, True), "1.0.0": (False, True, False)}
    assert reply.free_bytes > 0 and all(entry.size_bytes > 0 for entry in reply.models)
    assert updated.engine.list_models("no_such_model").models == ()


def test_the_history_of_one_model_is_only_its_own(updated: Robot) -> None:
    updated.publish("3.0.0", name="fold_towel")
    updated.install("3.0.0", S.INSTALLED, activate=False)
    updated.engine.rollback()
    own = updated.engine.list_models("fold_towel").history
    assert own and all(" 3.0.0" in line for line in own)
    others = updated.engine.list_models("pick_place").history
    assert any("ROLLED_BACK" in line for line in others) and not any(" 3.0.0" in line for line in others)
    assert set(updated.engine.list_models().history) >= {*own, *others}
    assert updated.engine.list_models("no_such_model").history == ()


def test_commands_to_a_stopped_engine_are_refused_and_a_second_manager_too(updated: Robot) -> None:
    other = Robot(updated.folder, updated.server)
    with pytest.raises(StoreError, match="STORE_LOCKED"):
        other.start()
    other.engine = None
    engine = updated.engine
    updated.stop()
    assert engine.rollback().error_code == "ENGINE_STOPPED"
    assert not engine.healthy
