# SPDX-License-Identifier: Apache-2.0
"""What acted and was taken back by a verdict is blocked; what failed before it acted is not, and no update tries it twice."""

from __future__ import annotations

import pytest
from support.ota import Robot

from vla_ota_manager.states import UpdateState

S = UpdateState


def log(robot: Robot) -> list[str]:
    return list(robot.policy.look()["log"])


def acts(robot: Robot) -> str:
    return str(robot.policy.look()["active"]["version"])


def wait_for_a_boundary(robot: Robot) -> None:
    """Offer 1.1.0, and let no boundary come at which it could act."""
    robot.say(swap_s=1000.0)
    robot.offer("1.1.0")
    robot.until(lambda: "waits for a boundary" in robot.engine.status().message)


def check_blocked(robot: Robot, code: str) -> None:
    """1.1.0 was rolled back for good, and the update did not try it again."""
    robot.ended("u-1.1.0", S.ROLLED_BACK, code)
    assert robot.engine.status().blocked == ("1.1.0",) and robot.current_version() == "1.0.0"
    robot.until(lambda: robot.policy.look()["lease"] is None and acts(robot) == "1.0.0")
    assert log(robot).count("swap 1.1.0 UPDATE CHUNK") == log(robot).count("prepare 1.1.0") == 1
    assert robot.install("1.1.0", S.REJECTED, update_id="again").error_code == "VERSION_BLOCKED"


def check_not_blocked(robot: Robot, code: str) -> None:
    """1.1.0 never acted: the update failed, tried it once, and another update may try it."""
    robot.ended("u-1.1.0", S.FAILED, code)
    assert robot.engine.status().blocked == () and acts(robot) == "1.0.0"
    assert log(robot) == ["prepare 1.1.0"]
    robot.say(refuse_swap="", swap_s=0.0)
    robot.offer("1.1.0", update_id="again")
    robot.reach(S.TRIAL)
    assert acts(robot) == "1.1.0"


@pytest.mark.parametrize("code", ["LIMIT", "SEAM_JUMP", "NAN", "POLICY_FAILED", "WRONG_SHAPE"])
def test_a_version_whose_first_chunk_is_refused_fails_with_its_code_and_is_not_blocked(ready: Robot, code: str) -> None:
    ready.say(refuse_swap=code)
    ready.offer("1.1.0")
    check_not_blocked(ready, code)


def test_a_worker_that_crashes_between_two_requests_is_not_started_again_by_the_same_update(ready: Robot) -> None:
    wait_for_a_boundary(ready)
    ready.policy.lose_prepared()
    check_not_blocked(ready, "GENERATION_LOST")


@pytest.mark.parametrize("loses_reply", [False, True], ids=["told", "the reply gets lost"])
def test_a_version_that_crashes_as_it_takes_over_is_rolled_back_and_blocked(ready: Robot, loses_reply: bool) -> None:
    ready.say(crashes_at_swap="1.1.0", loses_reply=loses_reply)
    ready.offer("1.1.0")
    check_blocked(ready, "WORKER_LOST")


def test_a_version_that_crashes_while_the_manager_is_away_is_not_put_on_trial_again(ready: Robot) -> None:
    ready.offer("1.1.0")
    ready.reach(S.TRIAL)
    ready.stop()
    ready.policy.lose_worker()
    ready.start()
    check_blocked(ready, "WORKER_LOST")


def test_a_first_install_that_crashes_as_it_takes_over_fails_and_is_blocked(robot: Robot) -> None:
    robot.publish("1.1.0")
    robot.boot_policy()
    robot.say(crashes_at_swap="1.1.0")
    robot.start()
    robot.ended(robot.offer("1.1.0"), S.FAILED, "WORKER_LOST")
    assert robot.engine.status().blocked == ("1.1.0",) and robot.current_version() == ""


def test_what_was_only_let_go_of_is_loaded_again(ready: Robot) -> None:
    """Its place in memory was needed: nothing is wrong with it."""
    wait_for_a_boundary(ready)
    ready.say(prepared=None, swap_s=0.0)
    ready.reach(S.TRIAL)
    assert log(ready).count("prepare 1.1.0") == 2


def test_an_operators_rollback_loads_again_what_has_crashed_as_the_standby_this_moment(ready: Robot) -> None:
    ready.offer("1.1.0")
    ready.reach(S.TRIAL)
    with ready.policy.edit() as document:
        document["crashed"][document["standby"]["digest"]] = "GENERATION_LOST"
        document["forget_at_swap"] = True  # the last status said that it is there
    reply = ready.engine.rollback()
    assert (reply.success, reply.to_version, reply.warm) == (True, "1.0.0", False), reply
    assert acts(ready) == "1.0.0" and log(ready)[-2:] == ["prepare 1.0.0", "swap 1.0.0 ROLLBACK CHUNK"]


def test_permission_withdrawn_while_it_is_loaded_again_withdraws_the_swap(robot: Robot) -> None:
    robot.settings = {"require_permission": True, "min_trial_chunks": 1000}
    robot.try_out()
    robot.stop()
    robot.boot_policy()  # it has nothing of 1.1.0 in memory any more
    robot.say(prepare_s=1000.0)
    robot.start()
    robot.engine.set_update_permitted(True)
    robot.until(lambda: "policy_node loads" in robot.engine.status().message)
    robot.engine.set_update_permitted(False)
    robot.say(prepare_s=0.0)
    robot.until(lambda: "waits for update_permitted" in robot.engine.status().message)
    robot.go_round()
    assert acts(robot) == "1.0.0" and log(robot) == ["prepare 1.1.0"]
