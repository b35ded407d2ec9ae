# SPDX-License-Identifier: Apache-2.0
"""The story. Each chapter does something to the fleet and checks what has come of it."""

from __future__ import annotations

import time

from vla_sim.bundle import NAME
from vla_sim.fleet.demo.stage import ARMS, EVERYBODY, SIMULATED, Chapter, Stage
from vla_sim.fleet.demo.versions import BETTER, FIRST

_ALL_S, _UPDATE_S = 60.0, 60.0
AWAY = "sim_5"
"""The robot that goes offline."""


def first_version(stage: Stage) -> None:
    """Everybody gets the first version, at once."""
    stage.publish(FIRST)
    stage.follow(stage.client.deploy(f"{NAME}@{FIRST}", everyone=True), _ALL_S)
    stage.wait_committed(FIRST, EVERYBODY, _UPDATE_S)
    stage.watch.wait(lambda _: set(stage.arms.moving()) == set(ARMS), "motion of every arm", _UPDATE_S)


def better_version(stage: Stage) -> None:
    """An update; in the middle of it a robot is offline and the server is killed."""
    stage.publish(BETTER)
    stage.simulated[AWAY].disconnect()
    commands = stage.client.deploy(f"{NAME}@{BETTER}", everyone=True)
    stage.watch.wait(lambda seen: any(seen[arm]["status"].get("trial_version") for arm in ARMS), "a trial", _UPDATE_S)
    kill_server(stage)
    stage.wait_committed(BETTER, set(EVERYBODY) - {AWAY}, _UPDATE_S)
    stage.connect(AWAY)
    stage.follow(commands, _UPDATE_S)


def kill_server(stage: Stage) -> None:
    """Kill the server and start it again."""
    stage.watch.say("demo", "SIGKILL to the server", "bold yellow", mark="server\nkilled")
    stage.server.kill()
    time.sleep(2.0)
    stage.server.start()
    stage.watch.say("demo", "the server is back", "yellow")


def remote_rollback(stage: Stage) -> None:
    """An operator takes every robot back."""
    stage.watch.say("operator", f"rolls every robot back to {FIRST}", "bold yellow", mark="rollback\nof all")
    took_s = stage.follow(stage.client.rollback(everyone=True, version=FIRST, reason="drops the cup"), _ALL_S)
    stage.facts["remote_rollback_s"] = took_s
    stage.watch.say("server", f"the last robot acts with {FIRST} again {took_s:.1f} s after the order", "green")
    stage.wait_committed(FIRST, EVERYBODY, _UPDATE_S)


CHAPTERS = (
    Chapter(f"Eight robots get their first version: {FIRST}", first_version),
    Chapter(f"A better version: {BETTER}", better_version),
    Chapter(f"An operator takes every robot back to {FIRST}", remote_rollback),
)
_ = SIMULATED
