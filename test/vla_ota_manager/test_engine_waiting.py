# SPDX-License-Identifier: Apache-2.0
"""What waits says for what, once in the log; a remark that is no longer true goes; nobody is asked what must be refused."""

from __future__ import annotations

import pytest
from support.ota import Robot

from vla_ota_manager.records import Event
from vla_ota_manager.states import PIPELINE, UpdateState

S = UpdateState


def logged(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


# -- motion -----------------------------------------------------------------------------------------------------------------


def test_with_motion_off_an_update_is_loaded_waits_before_its_swap_and_can_be_cancelled(ready: Robot) -> None:
    ready.say(motion=False)
    update_id = ready.offer("1.1.0")
    ready.until(lambda: "waits for motion" in ready.engine.status().message)
    assert ready.engine.status().state is S.PREPARING
    assert ready.policy.look()["prepared"]["version"] == "1.1.0" and ready.policy.look()["asked"] == 0
    assert ready.engine.cancel(update_id).success
    ready.ended(update_id, S.CANCELLED, "CANCELLED")
    assert ready.policy.look()["active"]["version"] == "1.0.0"


def test_it_waits_for_motion_as_long_as_a_person_takes_and_goes_on_then(ready: Robot) -> None:
    ready.stop()
    ready.settings = {"policy_wait_s": 0.0, "swap_timeout_s": 0.1}
    ready.say(motion=False)
    ready.start()
    ready.offer("1.1.0")
    ready.until(lambda: "waits for motion" in ready.engine.status().message)
    ready.go_round()
    assert ready.engine.status().state is S.PREPARING
    ready.say(motion=True)
    ready.reach(S.COMMITTED)


def test_a_shadow_that_saw_nothing_because_motion_is_off_is_waited_for_as_long_as_a_person_takes(ready: Robot) -> None:
    ready.stop()
    ready.settings = {"policy_wait_s": 0.0, "swap_timeout_s": 5.0}
    ready.say(motion=False, fails_to_prepare={"1.1.0": ["SHADOW_INCOMPLETE"]})
    ready.start()
    ready.offer("1.1.0")
    ready.until(lambda: "waits for motion" in ready.engine.status().message)
    assert ready.policy.look()["prepared"] is None
    ready.say(motion=True)
    ready.reach(S.COMMITTED)


def test_an_update_has_a_shadow_and_an_urgent_one_and_a_way_back_have_none(ready: Robot) -> None:
    ready.stop()
    ready.settings = {}
    ready.publish("1.2.0")
    ready.start()
    ready.install("1.1.0")
    ready.install("1.2.0", urgent=True)
    ready.say(standby=None)
    assert ready.engine.rollback("1.1.0").success  # it has to be loaded
    document = ready.policy.look()
    assert document["log"].count("prepare 1.1.0") == 2 and "prepare 1.2.0" in document["log"]
    assert [version for version in document["shadowed"] if version != "1.0.0"] == ["1.1.0"]


def test_motion_that_goes_off_while_a_boundary_is_waited_for_is_waited_for_without_asking(ready: Robot) -> None:
    ready.say(swap_s=1000.0)
    ready.offer("1.1.0")
    ready.until(lambda: "waits for a boundary" in ready.engine.status().message)
    ready.say(motion=False, swap_s=0.0)
    ready.until(lambda: "waits for motion" in ready.engine.status().message)
    asked = ready.policy.look()["asked"]
    ready.go_round()
    assert ready.policy.look()["asked"] == asked and ready.engine.status().state is S.SWAPPING
    ready.say(motion=True)
    ready.reach(S.TRIAL)


def test_a_trial_that_a_manager_enters_again_while_motion_is_off_goes_on(ready: Robot) -> None:
    ready.offer("1.1.0")
    ready.reach(S.TRIAL)
    ready.stop()
    ready.settings = {"min_trial_chunks": 5, "policy_wait_s": 0.0, "swap_timeout_s": 0.1}
    ready.say(motion=False)
    ready.start()
    ready.until(lambda: "waits for motion" in ready.engine.status().message)
    ready.go_round()
    assert ready.engine.status().trial_version == "1.1.0"
    ready.say(motion=True)
    ready.reach(S.COMMITTED)


def test_an_urgent_update_leaves_the_trial_alone_until_it_could_be_swapped_in(ready: Robot) -> None:
    ready.publish("1.2.0")
    first = ready.offer("1.1.0")
    ready.reach(S.TRIAL)
    ready.say(motion=False)
    ready.offer("1.2.0", urgent=True)
    ready.until(lambda: "on disk and waits for motion" in ready.engine.status().message)
    assert ready.engine.status().trial_version == "1.1.0"
    ready.say(motion=True)
    assert ready.ended(first).error_code == "SUPERSEDED"


def test_a_rollback_does_not_wait_for_motion(ready: Robot) -> None:
    ready.offer("1.1.0")
    ready.reach(S.TRIAL)
    ready.say(motion=False)
    assert ready.engine.rollback().success and ready.policy.look()["active"]["version"] == "1.0.0"


# -- one line and a counter -------------------------------------------------------------------------------------------------


def test_a_swap_that_is_refused_again_and_again_is_one_line_in_the_log_and_a_counter_in_the_status(
    ready: Robot, caplog: pytest.LogCaptureFixture
) -> None:
    ready.say(swap_s=1000.0)
    ready.offer("1.1.0")
    ready.until(lambda: ready.engine.status().message.endswith("(asked 2 times)"))
    assert logged(caplog, "waits for a boundary") == 1


def test_a_preparation_that_is_refused_for_now_is_one_line_too(ready: Robot, caplog: pytest.LogCaptureFixture) -> None:
    ready.say(refuse_prepare="PREPARE_IN_PROGRESS")
    ready.offer("1.1.0")
    ready.until(lambda: ready.engine.status().message.endswith("(asked 2 times)"))
    ready.say(refuse_prepare="")
    ready.reach(S.TRIAL)
    assert logged(caplog, "PREPARE_IN_PROGRESS") == logged(caplog, "policy_node: LOADING") == 1


# -- what is no longer true -------------------------------------------------------------------------------------------------


def test_what_a_committed_version_waited_for_is_not_said_once_it_acts(ready: Robot) -> None:
    ready.stop()
    ready.settings = {"trial_lease_s": 2.0}  # a quarter of it between two attempts; nothing is on trial
    ready.start()
    ready.say(absent=True)
    assert not ready.engine.rollback("1.0.0").success
    ready.say(absent=False, refuse_swap="SWAP_FAILED")
    ready.until(lambda: "does not run the committed" in ready.engine.status().message)
    ready.say(refuse_swap="")
    ready.until(lambda: not ready.engine.store.state.activation_due)
    ready.until(lambda: "does not run the committed" not in ready.engine.status().message)
    assert ready.engine.status().error_code == ready.engine.store.state.error_code


def test_an_update_that_was_taken_back_is_not_said_to_wait(ready: Robot) -> None:
    ready.publish("1.2.0")
    ready.offer("1.1.0")
    ready.reach(S.TRIAL)
    patient = ready.offer("1.2.0")
    ready.until(lambda: "1.2.0 waits until the trial" in ready.engine.status().message)
    assert ready.engine.cancel(patient).success
    ready.until(lambda: "1.2.0" not in ready.engine.status().message)


class CancelsIn(list[Event]):
    """Events of a robot, which cancels its first update the moment that it has entered a state."""

    def __init__(self, robot: Robot, state: S) -> None:
        self.robot, self.state, self.replies = robot, state, []

    def append(self, event: Event) -> None:
        super().append(event)
        if event.to_state == self.state.name and not self.replies:
            self.replies.append(self.robot.engine.cancel(event.update_id))


@pytest.mark.parametrize("state", PIPELINE, ids=lambda state: state.name)
def test_a_cancellation_is_carried_out_in_every_state_before_the_swap(robot: Robot, state: S) -> None:
    robot.events = events = CancelsIn(robot, state)
    robot.begin(shows_shadow=True)
    robot.ended(robot.offer("1.1.0"), S.CANCELLED, "CANCELLED")
    assert events.replies[0].success and robot.trail("u-1.1.0")[-2:] == [state.name, "CANCELLED"]
    assert robot.current_version() == "1.0.0" and robot.policy.look()["active"]["version"] == "1.0.0"
    robot.install("1.1.0", update_id="again")
