# SPDX-License-Identifier: Apache-2.0
"""A/B tests on the fleet: B wins only on evidence, harm ends them early, and a kill or a wrong outcome changes nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select
from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.fleet_app import ClockedFleet
from support.waits import wait_for

from vla_evidence.assignment import arm
from vla_evidence.log.replay import Replay, replay_file
from vla_fleet.cli.main import main
from vla_fleet.client import Client
from vla_fleet.clock import SystemClock
from vla_fleet.errors import ConflictError, FleetError, InputError, MissingError, RoleError
from vla_fleet.storage.tables import OutcomeRow
from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot

A, B = "1.0.0", "1.1.0"
DAY_S = 86400.0
T = TypeVar("T")


def design(unit: str) -> dict[str, Any]:
    versions = {"a": f"pick_place@{A}", "b": f"pick_place@{B}"}
    return {**versions, "unit": unit, "group": "pickers", "rate": 0.8, "per_day": 48.0, "difference": 0.1}


class Fleet:
    """Robots that run A, on a server whose clock the test moves."""

    def __init__(self, server: ClockedFleet | KilledServer, client: Client, folder: Path) -> None:
        self.server, self.client, self.folder = server, client, folder
        self.key = (folder / "fleet" / "admin.key").read_text().strip()
        self.robots: list[SimulatedRobot] = []
        self.tokens: dict[str, str] = {}

    def add(self, count: int, rates: Mapping[str, float], *, episode_arms: bool = False, seed: int = 0) -> None:
        """Add robots with these success rates, and let them install A."""
        behaviours = {version: Behaviour(success=rate) for version, rate in rates.items()}
        added = []
        for number in range(len(self.robots), len(self.robots) + count):
            name, now = f"arm_{number}", self.server.clock.now
            robot = SimulatedRobot(name, behaviours, seed=seed, episode_arms=episode_arms, now=now)
            self.tokens[name] = enrolled(self.client, name, "pickers")
            self.connect(robot)
            added.append(robot)
        self.robots += added
        self.client.deploy(f"pick_place@{A}", [robot.name for robot in added])
        self.until(lambda: all(robot.active == A for robot in added), "A on every robot")
        self.until(lambda: all(self.client.robot(r.name)["status"] for r in added), "their statuses")

    def until(self, found: Callable[[], T], what: str) -> T:
        """Let the server's clock run until ``found`` gives something; return that."""

        def heard_and_found() -> T:
            if isinstance(
                self.server, ClockedFleet
            ):  # a heartbeat for each few seconds of that clock: else all seem offline
                for robot in self.robots:
                    with robot._mutex:
                        robot._tell_status()
            return found()

        return self.server.until(heard_and_found, what)

    def connect(self, robot: SimulatedRobot) -> None:
        robot.connect(self.server.url, self.tokens[robot.name], self.folder / robot.name)

    def create(self, unit: str, **more: Any) -> str:
        return self.client.create_experiment({**design(unit), **more})

    def joined(self, name: str) -> dict[str, Any]:
        def all_run() -> dict[str, Any] | None:
            found = self.client.experiment(name)
            return found if all(robot["state"] != "JOINING" for robot in found["robots"]) else None

        return self.until(all_run, "robots that take part")

    def play(self, name: str, each: int) -> dict[str, Any]:
        """Let every robot play so many episodes; return the experiment when they have been looked at."""
        before = self.counted(self.client.experiment(name))
        played = sum(len(robot.episodes(each)) for robot in self.robots)

        def looked_at() -> dict[str, Any] | None:
            found = self.client.experiment(name)
            return found if found["state"] != "RUNNING" or self.counted(found) >= before + played else None

        return self.until(looked_at, f"{played} outcomes")

    @staticmethod
    def counted(found: Mapping[str, Any]) -> int:
        return sum(arm["episodes"] for arm in found["arms"].values()) + found["waiting"] + sum(found["apart"].values())

    def to_the_end(self, name: str, each: int = 12, rounds: int = 100) -> dict[str, Any]:
        """Play until the experiment has ended and its robots are home."""
        self.joined(name)
        found: dict[str, Any] = {}
        for _ in range(rounds):
            found = self.play(name, each)
            if found["state"] != "RUNNING":
                break
            self.server.advance(DAY_S * each / 48.0)
        assert found["state"] != "RUNNING", found["message"]
        return self.until(lambda: self.home(name), "robots on their way back")

    def home(self, name: str) -> dict[str, Any] | None:
        found = self.client.experiment(name)
        return found if found["home"] else None

    def stored_outcomes(self) -> int:
        assert isinstance(self.server, ClockedFleet)
        rooms = self.server.rooms

        async def count() -> int:
            async with rooms.database.begin() as session:
                return await session.scalar(select(func.count()).select_from(OutcomeRow)) or 0

        return self.server.do(count())

    def replayed(self, name: str) -> Replay:
        path = self.folder / f"{name}.jsonl"
        path.write_text(self.client.experiment_log(name))
        return replay_file(path)


class KilledServer(FleetServer):
    """A server of its own process, on the machine's clock: it can be killed."""

    clock = SystemClock()

    @staticmethod
    def until(found: Callable[[], T], what: str) -> T:
        value: T = wait_for(found, what, 60.0)
        return value

    def advance(self, seconds: float) -> None:
        """Nothing here waits for days."""


@contextmanager
def fleet_on(server: ClockedFleet | KilledServer, folder: Path) -> Iterator[Fleet]:
    with server, server.client() as client:
        for seed, version in enumerate((A, B)):
            make_bundle(folder / version, version=version, seed=seed)
            client.publish(folder / version)
        fleet = Fleet(server, client, folder)
        try:
            yield fleet
        finally:
            for robot in fleet.robots:
                robot.disconnect()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(ClockedFleet(tmp_path / "fleet"), tmp_path) as fleet:
        yield fleet


def test_by_episode_a_better_b_wins_and_every_verdict_can_be_replayed(fleet: Fleet) -> None:
    fleet.add(4, {A: 0.6, B: 0.95}, episode_arms=True)
    name = fleet.create("episode", rate=0.6, difference=0.3)
    found = fleet.to_the_end(name)
    assert found["state"] == "WIN_B", found["reason"]
    assert found["difference"]["low"] <= 0.35 <= found["difference"]["high"]
    assert all(robot.active == A and robot.episodes(1)[0].arm == "" for robot in fleet.robots), (
        "no robot draws any more"
    )
    assert not any(robot.rollbacks for robot in fleet.robots)
    replay = fleet.replayed(name)
    assert replay.last is not None and replay.last["decision"] == "B_BETTER"
    assert replay.outcomes == sum(arm["episodes"] for arm in found["arms"].values()) + found["waiting"]


def test_by_robot_a_better_b_wins_and_stays_where_it_was_drawn(fleet: Fleet) -> None:
    fleet.add(8, {A: 0.4, B: 0.98})
    name = fleet.create("robot", rate=0.4, difference=0.5)
    found = fleet.to_the_end(name)
    assert found["state"] == "WIN_B", found["reason"]
    runs = {robot.name: robot.active for robot in fleet.robots}
    assert runs == {robot["robot"]: B if robot["arm"] == "B" else A for robot in found["robots"]}
    assert sorted(runs.values()) == [A] * 4 + [B] * 4
    assert (fleet.replayed(name).last or {})["decision"] == "B_BETTER"


def test_by_robot_harm_ends_it_early_and_sends_every_robot_back_to_a(fleet: Fleet) -> None:
    fleet.add(12, {A: 0.95, B: 0.2})
    name = fleet.create("robot", rate=0.9)
    found = fleet.to_the_end(name)
    assert found["state"] == "WIN_A", found["reason"]
    assert sum(arm["episodes"] for arm in found["arms"].values()) < found["plan"]["at_most"] / 2
    assert {robot.active for robot in fleet.robots} == {A}


def test_an_equal_b_does_not_win_and_the_test_ends_when_all_that_was_planned_is_in(fleet: Fleet) -> None:
    fleet.add(2, {A: 1.0, B: 1.0}, episode_arms=True)  # 0.7 would win in α of the runs: arms are drawn anew in each
    found = fleet.to_the_end(fleet.create("episode", rate=0.6, difference=0.3), each=60)
    assert found["state"] == "NO_DIFFERENCE"
    assert found["difference"]["low"] < 0.0 < found["difference"]["high"]


def test_it_ends_after_its_days_without_a_decision(fleet: Fleet) -> None:
    fleet.add(2, {}, episode_arms=True)
    name = fleet.create("episode", max_days=2.0)
    fleet.joined(name)
    fleet.play(name, 3)
    fleet.server.advance(2 * DAY_S)
    found = fleet.until(lambda: fleet.home(name), "the end")
    assert found["state"] == "INCONCLUSIVE" and found["reason"].startswith("2 days are over")


def test_outcomes_that_are_none_of_the_experiments_do_not_count(fleet: Fleet) -> None:
    fleet.add(2, {}, episode_arms=True)
    for robot in fleet.robots:
        robot.episodes(5)  # before it began
    name = fleet.create("episode")
    fleet.joined(name)
    robot = fleet.robots[0]
    drawn = robot.episodes(1)[0]
    version = {A: B, B: A}[drawn.version]
    wrong = [
        {"episode_id": "other-version", "version": version, "arm": drawn.arm},
        {"episode_id": "no-arm", "arm": ""},
        {"episode_id": "both", "mixed": True},
        {"episode_id": drawn.episode_id},  # once more
    ]
    for change in wrong:
        robot._tell(drawn.model_copy(update=change))
    own = [robot.episodes(1)[0].episode_id for _ in range(3)]
    robot._tell(
        drawn.model_copy(update={"episode_id": f"{own[0]}-unknown", "known": False, **arm_of(name, robot, own[0])})
    )

    def looked_at() -> dict[str, Any] | None:
        found = fleet.client.experiment(name)
        return found if found["apart"] == {"wrong_arm": 2, "mixed": 1} and Fleet.counted(found) == 8 else None

    fleet.until(looked_at, "outcomes that count and outcomes that do not")


def arm_of(name: str, robot: SimulatedRobot, episode: str) -> dict[str, str]:
    """Return arm and version that a robot draws for the unknown episode of that name."""
    drawn = arm(name, robot.name, f"{episode}-unknown", 0.5)
    return {"arm": "AB"[drawn], "version": (A, B)[drawn]}


def test_a_robot_that_is_away_is_caught_up_and_one_that_comes_to_the_group_joins(fleet: Fleet) -> None:
    fleet.add(2, {}, episode_arms=True)
    away = fleet.robots[0]
    away.disconnect()
    name = fleet.create("episode")
    fleet.until(lambda: "RUNNING" in states(fleet, name).values(), "the robot that is there")
    assert states(fleet, name)[away.name] == "JOINING"
    fleet.connect(away)
    fleet.add(1, {}, episode_arms=True)
    fleet.until(lambda: list(states(fleet, name).values()) == ["RUNNING"] * 3, "all three")
    away.disconnect()
    fleet.client.stop_experiment(name, "lunch")
    fleet.until(lambda: list(states(fleet, name).values()).count("LEFT") == 2, "two that are home")
    with pytest.raises(ConflictError, match="ROBOT_TAKEN"):
        fleet.create("episode")
    fleet.client.retire("pick_place", B)
    fleet.connect(away)
    found = fleet.until(lambda: fleet.home(name), "the third")
    assert (found["state"], found["reason"]) == ("STOPPED", "admin: lunch")
    assert away.episodes(1)[0].arm == ""


def test_b_does_not_win_by_robot_if_a_person_took_it_from_a_robot(fleet: Fleet) -> None:
    fleet.add(12, {A: 0.3, B: 0.99})
    name = fleet.create("robot", rate=0.3, difference=0.6)
    fleet.joined(name)
    fleet.server.advance(60.0)
    taken = next(robot for robot in fleet.robots if robot.active == B)
    fleet.client.rollback([taken.name], version=A)
    fleet.until(lambda: states(fleet, name)[taken.name] == "FAILED", "the word of it")
    found = fleet.to_the_end(name)
    assert found["state"] == "INCONCLUSIVE" and taken.name in found["reason"]
    assert [r["detail"] for r in found["robots"] if r["robot"] == taken.name] == [f"runs {A}"]


def test_a_robot_that_never_got_b_is_left_alone_at_the_end(fleet: Fleet) -> None:
    fleet.add(8, {})
    make_bundle(fleet.folder / "third", version="1.2.0", seed=9)
    fleet.client.publish(fleet.folder / "third")
    for robot in fleet.robots:
        robot.disconnect()
    fleet.server.advance(60.0)
    name = fleet.create("robot")
    fleet.client.stop_experiment(name)
    fleet.client.deploy("pick_place@1.2.0", [robot.name for robot in fleet.robots])
    for robot in fleet.robots:
        fleet.connect(robot)
    fleet.until(lambda: fleet.home(name), "the end")
    fleet.until(lambda: all(robot.active == "1.2.0" for robot in fleet.robots), "what a person ordered")
    assert not any(robot.rollbacks for robot in fleet.robots)


def test_it_ends_if_too_many_robots_do_not_keep_their_version(fleet: Fleet) -> None:
    fleet.add(8, {})
    for robot in fleet.robots:
        robot.ends[B] = "REJECTED", "ROBOT_TYPE_MISMATCH"
    name = fleet.create("robot")
    found = fleet.until(lambda: fleet.home(name), "the end")
    assert found["state"] == "INCONCLUSIVE"
    assert found["reason"].endswith("of 4 robots that were drawn for B did not keep the version (ROBOT_TYPE_MISMATCH)")


def states(fleet: Fleet, name: str) -> dict[str, str]:
    return {robot["robot"]: robot["state"] for robot in fleet.client.experiment(name)["robots"]}


def test_it_is_refused_with_a_code_where_it_cannot_be(fleet: Fleet) -> None:
    fleet.add(2, {})
    fleet.add(1, {}, episode_arms=True)
    client = fleet.client
    refused: list[tuple[type[FleetError], str, dict[str, Any]]] = [
        (InputError, "VERSIONS_EQUAL", {"b": f"pick_place@{A}"}),
        (InputError, "MODELS_DIFFER", {"b": "other@1.0.0"}),
        (MissingError, "MODEL_NOT_FOUND", {"b": "pick_place@9.9.9"}),
        (MissingError, "ROBOT_NOT_FOUND", {"robots": ["nobody"]}),
        (InputError, "NO_ROBOTS", {"group": ""}),
        (InputError, "NO_ROBOTS", {"tag": "none-has-it"}),
        (ConflictError, "EPISODE_ARMS_MISSING", {"unit": "episode"}),
        (ConflictError, "ROBOTS_TOO_FEW", {}),
        (InputError, "RATE_UNKNOWN", {"rate": None}),
        (
            InputError,
            "DIFFERENCE_TOO_SMALL",
            {"unit": "episode", "robots": ["arm_2"], "group": "", "difference": 0.002},
        ),
        (InputError, "INPUT_INVALID", {"unit": "gripper"}),
        (InputError, "INPUT_INVALID", {"difference": 0.0}),
        (InputError, "INPUT_INVALID", {"max_days": -1.0}),
        (InputError, "INPUT_INVALID", {"surprise": 1}),
    ]
    make_bundle(fleet.folder / "other", name="other", version="1.0.0")
    client.publish(fleet.folder / "other")
    for kind, code, change in refused:
        for ask in (client.plan_experiment, client.create_experiment):
            with pytest.raises(kind, match=code):
                ask({**design("robot"), **change})
    for act in (client.experiment, client.stop_experiment, client.experiment_log):
        with pytest.raises(MissingError, match="EXPERIMENT_NOT_FOUND"):
            act("e-nothing")
    with Client(fleet.server.url, client.make_key("watcher", "viewer")) as viewer:
        assert viewer.experiments() == []
        with pytest.raises(RoleError):
            viewer.create_experiment(design("robot"))
        with pytest.raises(RoleError):
            viewer.stop_experiment("e-nothing")


def test_the_plan_says_how_many_days_the_fleets_own_pace_takes(fleet: Fleet) -> None:
    fleet.add(2, {A: 0.7}, episode_arms=True)
    for robot in fleet.robots:
        robot.episodes(48)
    wait_for(lambda: fleet.stored_outcomes() == 2 * 48, "what they did on the server")
    fleet.server.advance(2 * DAY_S)
    ask = {**design("episode"), "rate": None, "per_day": None, "difference": 0.2}
    plan = fleet.client.plan_experiment(ask)
    assert plan["per_day"] == pytest.approx(24.0, rel=0.02) and plan["rate"] == pytest.approx(0.7, abs=0.15)
    assert plan["latest_days"] == pytest.approx(plan["at_most"] * 3 / 48, rel=0.02)
    longer = fleet.client.plan_experiment({**ask, "difference": 0.02})
    assert longer["sentences"][-1] == "A difference of this size will probably not be shown by then."
    with pytest.raises(ConflictError, match="take 8 or more"):
        fleet.client.plan_experiment({**ask, "unit": "robot"})


async def crashed(*_: object) -> None:
    raise RuntimeError("the server dies here")


def test_the_winner_is_promoted_into_one_rollout(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add(3, {A: 0.3, B: 0.98}, episode_arms=True)
    name = fleet.create("episode", rate=0.3, difference=0.6)
    with pytest.raises(ConflictError, match="NOT_WON"):
        fleet.client.promote_experiment(name)
    assert fleet.to_the_end(name)["state"] == "WIN_B"
    rollouts = fleet.server.rooms.rollouts  # type: ignore[union-attr]
    # Right after it was created. A client of its own: the server closes the connection on which it has failed.
    with fleet.server.client() as client, monkeypatch.context() as crash, pytest.raises(FleetError):
        crash.setattr(rollouts, "show", crashed)
        client.promote_experiment(name)
    rollout = fleet.client.promote_experiment(name)
    assert len(fleet.client.rollouts()) == 1
    assert (rollout["model"], rollout["version"], rollout["target"]) == ("pick_place", B, "group:pickers")
    assert fleet.client.promote_experiment(name)["id"] == rollout["id"]
    assert fleet.client.experiment(name)["rollout"] == rollout["id"]
    with pytest.raises(ConflictError, match="ROBOT_TAKEN"):
        fleet.create("episode")


def test_a_robot_of_an_experiment_gets_into_no_rollout(fleet: Fleet) -> None:
    fleet.add(2, {}, episode_arms=True)
    fleet.create("episode", robots=["arm_1"], group="")
    with pytest.raises(ConflictError, match="ROBOT_TAKEN"):
        fleet.client.create_rollout(f"pick_place@{B}", "group:pickers")
    with pytest.raises(ConflictError, match="VERSION_IN_USE"):
        fleet.client.retire("pick_place", A)


def test_a_server_that_is_killed_in_the_middle_comes_to_the_same_end_and_counts_each_episode_once(
    tmp_path: Path,
) -> None:
    server = KilledServer(tmp_path / "fleet")
    with fleet_on(server, tmp_path) as fleet:
        fleet.add(3, {A: 0.2, B: 0.98}, episode_arms=True)
        away, *there = fleet.robots
        away.disconnect()
        name = fleet.create("episode", rate=0.2, difference=0.7)
        wait_for(lambda: list(states(fleet, name).values()).count("RUNNING") == 2, "the two that are there", 60.0)
        before = sum(robot.played for robot in fleet.robots)
        for robot in there:
            robot.episodes(6)
        server.kill()  # while outcomes are taken in, and one robot has not joined yet
        for robot in there:
            robot.episodes(2)
        server.start()
        fleet.connect(away)
        wait_for(lambda: all(robot.online for robot in fleet.robots), "the lines", 60.0)
        found = fleet.to_the_end(name, each=6)
        assert found["state"] == "WIN_B", found["reason"]
        played = sum(robot.played for robot in fleet.robots) - before
        counted, last_round = fleet.counted(found), 3 * 6
        assert played - last_round <= counted <= played, "those of the last round may arrive after the end"
        assert fleet.replayed(name).outcomes == counted - found["apart"].get("late", 0)


def test_the_command_line_plans_begins_shows_stops_and_gives_the_log(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_FLEET_SERVER", fleet.server.url)
    monkeypatch.setenv("VLA_FLEET_KEY", fleet.key)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["vla-fleet", "ab", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err

    fleet.add(2, {}, episode_arms=True)
    ask = ["create", f"pick_place@{A}", f"pick_place@{B}", "--group", "pickers", "--rate", "0.7", "--per-day", "48"]
    ask += ["--difference", "0.2"]
    code, text = run(*ask, "--by", "robot", "--yes")
    assert code == 1 and "ROBOTS_TOO_FEW" in text
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, text = run(*ask, "--by", "episode")
    assert code == 1 and "To tell 70.0% from 90.0%" in text and "Begin? [y/N]" in text
    code, text = run(*ask, "--by", "episode", "--json")
    assert code == 0 and json.loads(text)["robots"] == 2 and run("list", "--json") == (0, "[]\n"), "only the plan"
    code, text = run(*ask, "--by", "episode", "--yes", "--json")
    name = json.loads(text)["id"]
    fleet.joined(name)
    fleet.play(name, 5)
    code, text = run("status", name)
    assert code == 0 and "RUNNING: not decided yet" in text and "robots: 2 RUNNING" in text
    assert json.loads(run("status", name, "--json")[1])["id"] == name
    assert run("promote", name)[0] == 1
    assert run("stop", name, "--reason", "enough") == (0, f"{name}: STOPPED\n")
    code, text = run("log", name)
    assert code == 0 and json.loads(text.splitlines()[0])["experiment"] == name
    assert name in run("list")[1] and run("status", "e-nothing")[0] == 1


def test_it_ends_if_the_outcomes_of_one_arm_get_lost(fleet: Fleet) -> None:
    fleet.add(2, {}, episode_arms=True)
    name = fleet.create("episode")
    fleet.joined(name)
    for robot in fleet.robots:
        tell = robot._tell
        robot._tell = lambda message, tell=tell: None if getattr(message, "arm", "") == "B" else tell(message)

    def over() -> dict[str, Any] | None:
        for robot in fleet.robots:  # they work on: the last episode of a robot waits for the one that follows
            robot.episodes(2)
        return fleet.home(name)

    found = fleet.until(over, "the end")
    assert found["state"] == "INCONCLUSIVE" and found["reason"].startswith("lopsided: ")
