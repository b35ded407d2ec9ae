# SPDX-License-Identifier: Apache-2.0
"""Whole rollouts, over a real server with simulated robots on real lines; days pass in milliseconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bundles import make_bundle
from support.rollouts import HOUR_S, MODEL, NEW, OLD, RolloutFleet
from support.waits import TIMEOUT_S, wait_for

from vla_evidence.log.replay import replay_file
from vla_fleet.errors import ConflictError, MissingError
from vla_fleet.experiments.design import Design
from vla_fleet.protocol import Outcome
from vla_fleet.rollouts.rollouts import Rollouts
from vla_fleet.rollouts.settings import RolloutRequest
from vla_fleet.steering import loop
from vla_sim.fleet.simulated_robot import SimulatedRobot

NAMES = ("arm_0", "arm_1", "arm_2")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RolloutFleet]:
    with RolloutFleet(tmp_path) as fleet:
        yield fleet


def stage(name: str, share: float, hours: float = 24.0, margin: float | None = 0.2) -> dict[str, object]:
    return {"name": name, "share": share, "duration_s": hours * HOUR_S, "margin": margin}


FULL = {"name": "full", "share": 1.0}
STAGES = [stage("canary", 0.4), stage("wide", 0.5), FULL]
ONE_STAGE = [stage("canary", 0.5), FULL]


def replayed(fleet: RolloutFleet, rollout: str) -> int:
    """Check every verdict of a rollout's log, and return how many there are."""
    path = fleet.folder / "log.jsonl"
    path.write_bytes(fleet.client.rollout_log(rollout))
    return replay_file(path).verdicts


def standings(rollout: dict[str, Any]) -> dict[str, str]:
    return {robot["robot"]: robot["standing"] for robot in rollout["robots"]}


def actions(rollout: dict[str, Any]) -> list[tuple[str, str]]:
    return [(line["who"], line["action"].removeprefix("rollout.")) for line in rollout["history"]]


def test_a_good_version_reaches_every_robot_stage_by_stage(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, new=0.95)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)
    assert (rollout["state"], rollout["unit"]) == ("INSTALLING", "episode")
    fleet.until(rollout["id"], "JUDGING")
    assert all(robot.lineage == [OLD] and NEW in robot.on_disk for robot in robots), "drawn for episodes, not committed"
    end = fleet.until(rollout["id"], "DONE", "ROLLED_BACK", "ASKING", hours=24, episodes=50)
    assert end["state"] == "DONE", end
    assert all(robot.lineage == [OLD, NEW] and robot.active == NEW for robot in robots)
    assert actions(end) == [("admin", "create")] + [
        ("vla-fleet", action) for action in ("judging", "installing", "judging", "installing", "done")
    ]
    assert end["outcomes"]["counted"] >= 200 and replayed(fleet, rollout["id"]) >= 2


def test_a_worse_version_is_rolled_back_everywhere_and_what_robots_came_from_is_not_blocked(
    fleet: RolloutFleet,
) -> None:
    robots = fleet.add(*NAMES, old=1.0, new=0.0)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)["id"]
    end = fleet.until(rollout, "DONE", "ROLLED_BACK", "ASKING", hours=1, episodes=20)
    assert end["state"] == "ROLLED_BACK" and end["verdict"]["code"] == "SUCCESS_WORSE"
    for robot in robots:
        assert robot.active == OLD and not robot.blocked
        assert all(outcome.version == OLD for outcome in robot.episodes(20)), "nothing is drawn any more"
    assert replayed(fleet, rollout) > 0
    with pytest.raises(ConflictError, match="ROLLOUT_STATE"):
        fleet.client.steer_rollout(rollout, "approve", "all the same")


def test_a_version_whose_episodes_a_person_finishes_is_rolled_back(
    fleet: RolloutFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = SimulatedRobot._episode

    def finished(robot: SimulatedRobot) -> Outcome:
        outcome = play(robot)
        taken_over = outcome.version == NEW
        return outcome.model_copy(update={"success": True, "intervention": True}) if taken_over else outcome

    monkeypatch.setattr(SimulatedRobot, "_episode", finished)
    robots = fleet.add(*NAMES, old=1.0, new=1.0)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)["id"]
    end = fleet.until(rollout, "DONE", "ROLLED_BACK", "ASKING", hours=1, episodes=20)
    assert end["state"] == "ROLLED_BACK" and end["verdict"]["code"] == "SUCCESS_WORSE"
    assert all(robot.active == OLD for robot in robots) and replayed(fleet, rollout) > 0


def test_without_automatic_rollback_a_person_decides_when_harm_was_found(fleet: RolloutFleet) -> None:
    fleet.add(*NAMES, old=1.0, new=0.0)
    rollout = fleet.client.create_rollout(MODEL, stages=ONE_STAGE, auto_rollback=False)["id"]
    asked = fleet.until(rollout, "ROLLED_BACK", "ASKING", hours=1, episodes=20)
    assert asked["state"] == "ASKING" and asked["verdict"]["decision"] == "ROLLBACK"
    with pytest.raises(ConflictError, match="ROLLOUT_HARM"):
        fleet.client.steer_rollout(rollout, "approve", "I do not believe it")
    fleet.client.steer_rollout(rollout, "abort", "I do")
    end = fleet.until(rollout, "ROLLED_BACK")
    assert set(standings(end).values()) == {"BACK"}


def test_while_a_person_thinks_about_harm_no_robot_gets_the_version(fleet: RolloutFleet) -> None:
    away = fleet.add(*NAMES, old=1.0, new=0.0)[2]
    away.disconnect()
    wait_for(lambda: not fleet.client.robot(away.name)["online"] or fleet.do(fleet.clock.advance(1.0)), "its absence")
    rollout = fleet.client.create_rollout(MODEL, stages=ONE_STAGE, auto_rollback=False)["id"]
    fleet.until(rollout, "ASKING", hours=1, episodes=20)
    fleet.connect(away.name)
    fleet.step(5)
    assert NEW not in away.on_disk


def test_few_robots_with_one_version_each_cannot_be_judged_and_a_person_decides(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    created = fleet.client.create_rollout(MODEL, stages=STAGES)
    assert created["unit"] == "robot" and "3 robots with one version each cannot be judged" in created["warnings"][0]
    rollout = created["id"]
    fleet.until(rollout, "JUDGING")
    assert [robot.active for robot in robots].count(NEW) == 1, "at least one robot, and no more than the share"
    asked = fleet.until(rollout, "ASKING", hours=24, episodes=3)
    assert any("cannot be judged" in text for text in asked["verdict"]["missing"])
    fleet.client.steer_rollout(rollout, "approve", "looks well")
    fleet.until(rollout, "ASKING", hours=24, episodes=3)
    fleet.client.steer_rollout(rollout, "approve", "still does")
    end = fleet.until(rollout, "DONE")
    assert set(standings(end).values()) == {"INSTALLED"} and all(robot.active == NEW for robot in robots)
    assert [line["why"] for line in end["history"] if line["who"] == "admin"] == ["", "looks well", "still does"]
    assert b'"person": "admin", "action": "advance", "reason": "still does"' in fleet.client.rollout_log(rollout)
    replayed(fleet, rollout)


def test_thirty_robots_with_one_version_each_are_judged_by_robot(fleet: RolloutFleet) -> None:
    robots = fleet.add(*(f"arm_{n}" for n in range(30)), arms=False, new=0.0)
    fleet.episodes(2)
    rollout = fleet.client.create_rollout(MODEL, stages=[stage("canary", 0.3), FULL], advance="same_shift")
    assert (rollout["unit"], rollout["warnings"]) == ("robot", [])
    fleet.until(rollout["id"], "JUDGING")
    assert [robot.active for robot in robots].count(NEW) == 9
    end = fleet.until(rollout["id"], "ASKING", "DONE", "ROLLED_BACK", hours=6, episodes=3)
    assert end["state"] == "ROLLED_BACK" and all(robot.active == OLD for robot in robots)
    assert sorted(standings(end).values()) == ["BACK"] * 9 + ["OUTSIDE"] * 21, "who never had it gets no order"
    replayed(fleet, rollout["id"])


def test_an_abort_takes_every_robot_back_or_lets_it_stay(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    for keep, version in ((True, NEW), (False, OLD)):
        rollout = fleet.client.create_rollout(MODEL, stages=[stage("canary", 0.7), FULL])["id"]
        fleet.until(rollout, "JUDGING")
        fleet.client.steer_rollout(rollout, "abort", "not today", keep=keep)
        end = fleet.until(rollout, "ABORTED", "ROLLED_BACK")
        assert end["state"] == ("ABORTED" if keep else "ROLLED_BACK")
        assert [robot.active for robot in robots].count(version) == (2 if keep else 3)
        if keep:
            ids = [command["id"] for command in fleet.client.rollback(NAMES, version=OLD)]
            wait_for(lambda ids=ids: all(c["final"] for c in fleet.client.commands(ids)), "the way back")  # type: ignore[misc]


def test_an_abort_ends_the_draws_of_robots_that_stay(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES)
    rollout = fleet.client.create_rollout(MODEL, stages=ONE_STAGE)["id"]
    fleet.until(rollout, "JUDGING")
    assert {outcome.version for robot in robots for outcome in robot.episodes(20)} == {OLD, NEW}
    fleet.client.steer_rollout(rollout, "abort", "another day", keep=True)
    wait_for(lambda: all(not robot._assignment for robot in robots), "the end of the draws")
    assert {outcome.version for robot in robots for outcome in robot.episodes(20)} == {OLD}


def test_a_robot_whose_own_trial_failed_has_failed_and_is_left_alone(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    for robot in robots:
        robot.ends[NEW] = ("ROLLED_BACK", "SCORES_WORSE")
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)["id"]
    asked = fleet.until(rollout, "ASKING", hours=1, episodes=1)
    assert asked["verdict"]["message"] == "no robot has the version: 2 OUTSIDE, 1 FAILED; a person decides"
    fleet.step(5)
    failed = [robot for robot in fleet.client.rollout(rollout)["robots"] if robot["standing"] == "FAILED"]
    assert [robot["detail"] for robot in failed] == ["SCORES_WORSE"]
    assert sum(list(robot.updates.values()).count(NEW) for robot in robots) == 1, "ordered once"
    assert b'"robots_changed"' in fleet.client.rollout_log(rollout)


def test_a_robot_that_a_person_gave_another_version_is_left_alone_and_does_not_count(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    rollout = fleet.client.create_rollout(MODEL, stages=[stage("canary", 0.7), FULL])["id"]
    fleet.until(rollout, "JUDGING")
    chosen = next(robot for robot in robots if robot.active == NEW)
    fleet.pass_time(60)
    back = fleet.client.rollback([chosen.name], version=OLD)[0]["id"]
    wait_for(lambda: fleet.client.commands([back])[0]["final"], "the way back")
    fleet.pass_time(60)
    fleet.step(3)
    found = {robot["robot"]: robot for robot in fleet.client.rollout(rollout)["robots"]}[chosen.name]
    assert (found["standing"], found["detail"], chosen.active) == ("FAILED", f"runs {OLD}", OLD)


def test_a_pause_stops_orders_and_stages_but_not_the_rollback_of_harm(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, old=1.0, new=0.0)
    rollout = fleet.client.create_rollout(MODEL, stages=ONE_STAGE)["id"]
    fleet.client.steer_rollout(rollout, "pause", "the customer visits")
    fleet.step(3)
    assert not any(NEW in robot.on_disk for robot in robots)
    with pytest.raises(ConflictError, match="ROLLOUT_STATE"):
        fleet.client.steer_rollout(rollout, "pause")
    fleet.client.steer_rollout(rollout, "resume")
    fleet.until(rollout, "JUDGING")
    paused = fleet.client.steer_rollout(rollout, "pause", "they are back")
    assert paused["state"] == "JUDGING" and paused["paused"]
    with pytest.raises(ConflictError, match="paused"):
        fleet.client.steer_rollout(rollout, "approve", "go on")
    assert fleet.until(rollout, "ROLLED_BACK", "DONE", hours=1, episodes=20)["state"] == "ROLLED_BACK"


def test_a_robot_that_was_away_is_caught_up_and_a_silent_one_has_failed_until_it_comes(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    robots[2].disconnect()
    wait_for(lambda: not fleet.client.robot("arm_2")["online"] or fleet.do(fleet.clock.advance(1.0)), "its absence")
    rollout = fleet.client.create_rollout(MODEL, stages=[FULL], deadline_s=HOUR_S)["id"]
    for _ in range(5):
        fleet.step()
    assert standings(fleet.client.rollout(rollout))["arm_2"] == "WAITING"
    wait_for(lambda: [robot.active for robot in robots] == [NEW, NEW, OLD], "the others")
    fleet.pass_time(HOUR_S)
    end = fleet.until(rollout, "DONE")
    assert end["history"][-1]["why"] == "2 INSTALLED, 1 SILENT"

    fleet.connect("arm_2")
    wait_for(lambda: robots[2].active == NEW, "it to be caught up")
    wait_for(lambda: standings(fleet.client.rollout(rollout))["arm_2"] == "INSTALLED", "the word of it")

    robots[2].disconnect()
    wait_for(lambda: not fleet.client.robot("arm_2")["online"] or fleet.do(fleet.clock.advance(1.0)), "its absence")
    back = fleet.client.create_rollout(f"pick_place@{OLD}", stages=[FULL], deadline_s=HOUR_S)["id"]
    for _ in range(5):
        fleet.step()
    fleet.connect("arm_2")
    end = fleet.until(back, "DONE")
    assert standings(end)["arm_2"] == "INSTALLED", "it came in time, and was given the order"
    with pytest.raises(MissingError, match="NO_ROBOTS: every robot"):
        fleet.client.create_rollout(f"pick_place@{OLD}")


def test_an_order_to_a_robot_that_went_away_is_carried_out_when_it_comes_unless_everybody_goes_back(
    fleet: RolloutFleet,
) -> None:
    robots = fleet.add(*NAMES, arms=False)
    rollout = fleet.client.create_rollout(MODEL, stages=[FULL])["id"]
    robots[2].disconnect()  # it still counts as online
    fleet.step(2)
    assert standings(fleet.client.rollout(rollout))["arm_2"] == "ORDERED"
    fleet.client.steer_rollout(rollout, "abort", "a mistake")
    fleet.connect("arm_2")
    end = fleet.until(rollout, "ROLLED_BACK")
    assert all(robot.active == OLD for robot in robots) and NEW not in robots[2].updates.values()
    assert set(standings(end).values()) == {"BACK"}


def test_limits_and_maintenance_windows_hold_back_orders_forward_and_never_back(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    noon = fleet.clock.now() - fleet.clock.now() % 86400 + 1.5 * 86400  # of tomorrow, UTC
    fleet.pass_time(noon - fleet.clock.now())
    for robot in robots:
        robot.ends[NEW] = ("TRIAL", "")  # it takes its time
    rollout = fleet.client.create_rollout(MODEL, stages=[FULL], windows=["13:00-14:00"], max_concurrent=2)["id"]
    fleet.step(3)
    assert not any(robot.active == NEW for robot in robots)
    fleet.pass_time(HOUR_S)
    fleet.step(3)
    wait_for(lambda: [robot.active for robot in robots].count(NEW) == 2, "two robots")
    fleet.step(3)
    assert sorted(standings(fleet.client.rollout(rollout)).values()) == ["ORDERED", "ORDERED", "WAITING"]
    fleet.pass_time(2 * HOUR_S)
    fleet.client.steer_rollout(rollout, "abort", "enough")
    fleet.until(rollout, "ROLLED_BACK", limit=100)
    assert all(robot.active == OLD for robot in robots)


def test_outcomes_that_do_not_belong_are_counted_apart(fleet: RolloutFleet) -> None:
    robot, other, _ = fleet.add(*NAMES)
    rollout = fleet.client.create_rollout(MODEL, stages=ONE_STAGE)["id"]
    fleet.episodes(5)  # before anything is drawn
    fleet.until(rollout, "JUDGING")
    fleet.pass_time(60)
    good = robot.episodes(1)[0]
    assert robot._bridge is not None
    for number, change in enumerate(({"known": False}, {"mixed": True}, {"version": "9.9.9"}, {"arm": ""})):
        robot._bridge.on_outcome(
            good.model_copy(update={**change, "episode_id": twin(rollout, robot.name, good.arm, number)})
        )
    other._bridge.on_outcome(good)  # type: ignore[union-attr]
    fleet.heard()
    fleet.step(2)
    found = fleet.client.rollout(rollout)["outcomes"]
    assert found.pop("not drawn") >= 16
    assert found in (
        {"counted": 1, "unknown": 1, "mixed": 1, "other version": 1, "repeated": 1},
        {"counted": 1, "unknown": 1, "mixed": 1, "other version": 1},  # the other robot would have drawn the other arm
    )


def twin(rollout: str, robot: str, arm: str, number: int) -> str:
    """Return an episode of the same arm."""
    from vla_evidence.assignment import arm as draw

    names = (f"twin-{number}-{n}" for n in range(1000))
    return next(name for name in names if "AB"[draw(rollout, robot, name, 0.5)] == arm)


def test_one_rollout_at_a_time_moves_a_robot(fleet: RolloutFleet) -> None:
    fleet.add("arm_0", group="lab")
    fleet.add("arm_1", group="hall")
    first = fleet.client.create_rollout(MODEL, "group:lab")["id"]
    for target, code in (("group:lab", "ROLLOUT_ACTIVE"), ("all", "ROBOT_TAKEN")):
        with pytest.raises(ConflictError, match=code):
            fleet.client.create_rollout(MODEL, target)
    with pytest.raises(ConflictError, match="VERSION_IN_USE"):
        fleet.client.retire("pick_place", NEW)
    second = fleet.client.create_rollout(MODEL, "group:hall")["id"]
    for rollout in (first, second):
        fleet.client.steer_rollout(rollout, "abort", "done with it")
        fleet.until(rollout, "ROLLED_BACK")
    fleet.pass_time(1.0)
    fleet.client.create_rollout(MODEL)
    assert [r["state"] for r in fleet.client.rollouts()] == ["INSTALLING", "ROLLED_BACK", "ROLLED_BACK"]


def test_a_large_fleet_goes_back_in_parts_that_keep_the_database_free(
    fleet: RolloutFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    robots = fleet.add(*NAMES, arms=False)
    rollout = fleet.client.create_rollout(MODEL, stages=[stage("canary", 0.7), FULL])["id"]
    fleet.until(rollout, "JUDGING")
    monkeypatch.setattr(loop, "MOST_ORDERS", 1)
    for given in (1, 2):
        if given == 1:
            fleet.client.steer_rollout(rollout, "abort", "it does not work")
        else:
            fleet.step()
        orders = [line for line in fleet.client.log() if line["action"] == "rollback"]
        assert len(orders) == given
    fleet.until(rollout, "ROLLED_BACK")
    assert all(robot.active == OLD for robot in robots)


def test_a_robot_goes_back_to_what_it_ran_when_it_was_its_turn(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, arms=False)
    make_bundle(fleet.folder / "other", version="1.2.0", seed=5)
    fleet.client.publish(fleet.folder / "other")
    rollout = fleet.client.create_rollout(MODEL, stages=[stage("canary", 0.3), stage("wide", 0.7), FULL])["id"]
    fleet.until(rollout, "JUDGING")
    (canary,) = (robot for robot in robots if robot.active == NEW)
    others = [robot for robot in robots if robot is not canary]
    ids = [c["id"] for c in fleet.client.deploy("pick_place@1.2.0", [robot.name for robot in others])]
    wait_for(lambda: all(c["final"] for c in fleet.client.commands(ids)), "what a person ordered meanwhile")
    fleet.heard()
    fleet.client.steer_rollout(rollout, "approve", "looks well")
    fleet.until(rollout, "JUDGING")
    assert [robot.active for robot in robots].count(NEW) == 2
    fleet.client.steer_rollout(rollout, "abort", "it does not")
    fleet.until(rollout, "ROLLED_BACK")
    assert canary.active == OLD and {robot.active for robot in others} == {"1.2.0"}


def test_a_robot_with_another_model_of_the_same_version_number_gets_the_version(fleet: RolloutFleet) -> None:
    (robot,) = fleet.add("arm_0", arms=False)
    make_bundle(fleet.folder / "other", name="other", version=NEW, seed=7)
    fleet.client.publish(fleet.folder / "other")
    deployed = fleet.client.deploy(f"other@{NEW}", ["arm_0"])[0]["id"]
    wait_for(lambda: fleet.client.commands([deployed])[0]["final"], "the other model")
    fleet.heard()
    digest = fleet.do(fleet.rooms.registry.find(MODEL)).digest
    assert robot.on_disk[robot.active] != digest
    fleet.until(fleet.client.create_rollout(MODEL, stages=[FULL])["id"], "DONE")
    assert robot.on_disk[robot.active] == digest


def test_of_two_servers_that_begin_something_for_a_robot_at_the_same_moment_one_gets_it(fleet: RolloutFleet) -> None:
    fleet.add(*NAMES)
    rooms = fleet.rooms
    others = [
        Rollouts(rooms.database, rooms.registry, rooms.commands, fleet.clock, rooms.manifest_url, rooms.online)
        for _ in range(2)
    ]
    versions = {"a": f"pick_place@{OLD}", "b": MODEL, "unit": "episode", "group": "default", "difference": 0.3}
    design = Design(**versions, rate=0.6, per_day=100.0)

    async def all_at_once() -> list[Any]:
        asks: list[Any] = [rooms.experiments.create(design, "ada")]
        targets = ("all", "group:default")
        asks += [o.create(RolloutRequest(model=MODEL, target=t), "eve") for o, t in zip(others, targets, strict=True)]
        return await asyncio.gather(*asks, return_exceptions=True)

    found = fleet.do(all_at_once())
    refused = [error for error in found if isinstance(error, Exception)]
    assert len(refused) == 2 and all("ROBOT_TAKEN" in str(error) for error in refused), found


def test_two_servers_on_one_database_give_each_order_once_and_count_each_outcome_once(fleet: RolloutFleet) -> None:
    robots = fleet.add(*NAMES, new=0.95)
    rooms = fleet.rooms
    other = Rollouts(rooms.database, rooms.registry, rooms.commands, fleet.clock, rooms.manifest_url, rooms.online)

    async def both() -> None:
        await asyncio.gather(rooms.rollouts.step(), other.step())

    rollout, played = fleet.client.create_rollout(MODEL, stages=ONE_STAGE)["id"], False
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = fleet.client.rollout(rollout)
        if found["state"] in ("DONE", "ASKING", "ROLLED_BACK"):
            break
        fleet.do(both())
        fleet.heard()
        if found["state"] == "JUDGING" and not played:
            played = True
            fleet.pass_time(1.0)
            fleet.episodes(50)
            wait_for(lambda: fleet.client.rollout(rollout)["outcomes"] or fleet.do(both()), "the outcomes")
            fleet.pass_time(24 * HOUR_S)
        time.sleep(0.02)
    assert found["state"] == "DONE", found
    for robot in robots:
        assert list(robot.updates.values()) == [OLD, NEW, NEW], "installed once, activated once"
    assert [action for _, action in actions(found)] == ["create", "judging", "installing", "done"]
    assert replayed(fleet, rollout) and found["outcomes"]["counted"] == 150


def test_a_forecast_simulates_the_judge_in_this_fleet_before_anything_begins(fleet: RolloutFleet) -> None:
    fleet.add(*NAMES)
    fleet.episodes(30)
    fleet.pass_time(2 * HOUR_S)
    found = fleet.client.forecast({"model": MODEL, "stages": STAGES, "judge": "simple"})
    assert found["per_hour"] == pytest.approx(15, rel=0.05) and found["robots"] == 3 and fleet.client.rollouts() == []
    good, back, bad = (found["figures"][name][0] for name in ("good_passes", "good_rolled_back", "bad_found"))
    assert 0.2 < good < 0.8 and back > 0.0 and bad > 0.5 and "rolled back" in found["text"]
