# SPDX-License-Identifier: Apache-2.0
"""The story. Each chapter does something to the fleet and checks what has come of it."""

from __future__ import annotations

import time
from typing import Any

from vla_sim.bundle import NAME
from vla_sim.fleet.demo.experiments import run_experiment
from vla_sim.fleet.demo.stage import ARMS, EVERYBODY, SIMULATED, FleetStage
from vla_sim.fleet.demo.versions import BETTER, CANDIDATE, FIRST, WORSE
from vla_sim.fleet.play.stage import Chapter

_ALL_S, _UPDATE_S, _ROLLOUT_S = 120.0, 150.0, 150.0
_DOWN_S = 2.0
AWAY = "sim_5"
"""The robot that goes offline."""
STAGES: list[dict[str, Any]] = [
    {"name": "canary", "share": 0.25, "duration_s": 1200.0, "margin": 0.10},
    {"name": "wide", "share": 0.50, "duration_s": 1200.0, "margin": 0.05},
    {"name": "full", "share": 1.0},
]
"""Shares are of episodes: each of these robots holds both versions and draws. Twenty minutes take ten seconds here."""
_STAGES_BEFORE_FULL = 3
"""Of a rollout that asks for no stages of its own."""
AT_ONCE = [{"name": "full", "share": 1.0}]


def first_version(stage: FleetStage) -> None:
    """Everybody gets the first version, at once; then one robot goes away."""
    stage.publish(stage.bundles[FIRST])
    commands = stage.client.deploy(f"{NAME}@{FIRST}", everyone=True)
    stage.follow([command for command in commands if command["robot"] in SIMULATED], _ALL_S)
    stage.watch.say(AWAY, "goes where there is no network", "bold yellow", mark=f"{AWAY} is away")
    stage.simulated[AWAY].disconnect()
    stage.follow(commands, _ALL_S)
    stage.wait_committed(FIRST, EVERYBODY, _UPDATE_S)
    stage.watch.wait(lambda _: set(stage.arms.moving()) == set(ARMS), "motion of every arm", _UPDATE_S)


def better_version(stage: FleetStage) -> None:
    """Canary, wide, full; one robot is away, and the server is killed in the first stage."""
    stage.publish(stage.bundles[BETTER])
    stage.watch.wait(lambda seen: not seen[AWAY]["online"], f"{AWAY} to be missed", _UPDATE_S)
    rollout = stage.begin_rollout(BETTER, "group:simulated", STAGES)
    rollout.wait({"JUDGING"}, _ROLLOUT_S)
    kill_server(stage)
    rollout.wait_stage("full", _ROLLOUT_S)
    stage.wait_committed(BETTER, set(SIMULATED) - {AWAY}, _UPDATE_S)
    stage.check(stage.committed()[AWAY] == FIRST, f"{AWAY} has {BETTER} though it was away")
    stage.watch.say(AWAY, "comes back after the stages that it missed", "bold yellow", mark=f"{AWAY} is back")
    stage.connect(AWAY)
    rollout.wait({"DONE"}, _ROLLOUT_S)
    rollout.check("DONE", BETTER, SIMULATED)
    stage.check(len(rollout.stages_seen) == len(STAGES), f"the rollout went through {rollout.stages_seen} alone")


def arms_follow(stage: FleetStage) -> None:
    """The version has proved itself: the real arms get it, and each lets it prove itself there as well."""
    rollout = stage.begin_rollout(BETTER, "group:arms", AT_ONCE)
    rollout.wait({"DONE"}, _UPDATE_S)
    rollout.check("DONE", BETTER, ARMS)
    stage.check(set(stage.arms.moving().values()) == {BETTER}, f"not every arm moves with {BETTER}")


def worse_version(stage: FleetStage) -> None:
    """No robot finds it bad by itself; the evidence of all does, and every robot stays with what it had."""
    stage.publish(stage.bundles[WORSE])
    rollout = stage.begin_rollout(WORSE, "group:simulated", STAGES)
    found = rollout.wait({"ROLLED_BACK"}, _ROLLOUT_S)
    rollout.check("ROLLED_BACK", BETTER, EVERYBODY)
    stage.check(rollout.stages_seen == ["canary"], f"{WORSE} came further than the canary: {rollout.stages_seen}")
    stage.facts["worse_version"] = {"verdict": found["verdict"].get("message", ""), "outcomes": found["outcomes"]}


def experiment(stage: FleetStage) -> None:
    """Which of two is better? Each episode is drawn; the winner goes to everybody."""
    stage.publish(stage.bundles[CANDIDATE])
    design = {
        "a": f"{NAME}@{BETTER}",
        "b": f"{NAME}@{CANDIDATE}",
        "unit": "episode",
        "group": "simulated",
        "difference": 0.1,
        "power": 0.99,  # with the usual 80 % one demonstration of five would show nothing
    }
    found = run_experiment(stage, design, _ROLLOUT_S)
    stage.check(found["state"] == "WIN_B", f"the A/B test ended as {found['state']}")
    stage.facts["experiment"] = {key: found[key] for key in ("id", "state", "reason", "arms", "difference", "plan")}
    rollout = stage.follow_rollout(stage.client.promote_experiment(found["id"]))
    for _ in range(_STAGES_BEFORE_FULL):
        rollout.wait({"JUDGING"}, _ROLLOUT_S)
        rollout.approve(f"the A/B test {found['id']} has shown it")
    rollout.wait({"DONE"}, _ROLLOUT_S)
    rollout.check("DONE", CANDIDATE, SIMULATED)
    arms = stage.begin_rollout(CANDIDATE, "group:arms", AT_ONCE)
    arms.wait({"DONE"}, _UPDATE_S)
    arms.check("DONE", CANDIDATE, EVERYBODY)


def remote_rollback(stage: FleetStage) -> None:
    """An operator takes every robot back to the version before."""
    stage.watch.say("operator", "rolls every robot back", "bold yellow")
    took_s = stage.follow(stage.client.rollback(everyone=True, reason="drops the cup"), _ALL_S)
    stage.facts["remote_rollback_s"] = round(took_s, 2)
    stage.watch.say("server", f"the last robot is back {took_s:.1f} s after the order", "green")
    stage.wait_committed(BETTER, EVERYBODY, _UPDATE_S)
    stage.check(set(stage.arms.moving().values()) == {BETTER}, f"not every arm moves with {BETTER}")


def kill_server(stage: FleetStage) -> None:
    """Kill the server and start it again."""
    stage.watch.say("demo", "SIGKILL to the server", "bold yellow", mark="server killed")
    stage.server.kill()
    time.sleep(_DOWN_S)
    stage.server.start()
    stage.watch.say("demo", "the server is back", "yellow")


CHAPTERS = (
    Chapter(f"Eight robots get their first version: {FIRST}", f"{FIRST}\nto all", first_version),
    Chapter(
        f"A better version, {BETTER}, in stages; the server is killed, a robot is away",
        f"{BETTER}: canary,\nwide, full",
        better_version,
    ),
    Chapter(f"The real arms follow: {BETTER}", "the arms\nfollow", arms_follow),
    Chapter(f"A worse version, {WORSE}: found on evidence, taken back", f"{WORSE}\nis worse", worse_version),
    Chapter(
        f"An A/B test, {BETTER} against {CANDIDATE}, and its winner to everybody",
        f"A/B: {CANDIDATE} wins\nand goes to all",
        experiment,
    ),
    Chapter(f"An operator takes every robot back to {BETTER}", "rollback\nof all", remote_rollback),
)
