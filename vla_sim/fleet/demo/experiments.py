# SPDX-License-Identifier: Apache-2.0
"""An A/B test as the demonstration follows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vla_fleet.client import Json
from vla_sim.demo.processes import DemoError

if TYPE_CHECKING:
    from vla_sim.fleet.play.stage import Stage

_PERIOD_S, _SAY_EVERY_S = 0.5, 3.0


def run_experiment(stage: Stage, design: dict[str, Any], timeout_s: float) -> Json:
    """Begin an A/B test and wait until it has ended and its robots are back; return it. Raises DemoError if it does not."""
    name = stage.client.create_experiment(design)
    stage.watch.under_test[name] = design["b"].rpartition("@")[2]
    plan = stage.client.experiment(name)["plan"]
    stage.watch.say("operator", f"begins experiment {name}: {design['a']} against {design['b']}", "bold blue")
    for sentence in plan["sentences"]:
        stage.watch.say("plan", sentence, "cyan")
    deadline, said_s = time.monotonic() + timeout_s, 0.0
    while True:
        found = stage.client.experiment(name)
        ended = found["state"] != "RUNNING"
        if ended or time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            stage.watch.say(name, _counts(found), "blue")
        if ended and found["home"]:
            stage.watch.say(name, f"{found['state']}: {found['reason']}", "bold blue", mark=f"A/B: {found['state']}")
            return found
        if time.monotonic() > deadline:
            raise DemoError(f"experiment {name} is {found['state']} after {timeout_s:g} s: {found['message']}")
        time.sleep(_PERIOD_S)


def _counts(found: Json) -> str:
    return ", ".join(
        f"{arm} {of['version']} {of['successes']} of {of['episodes']}" for arm, of in sorted(found["arms"].items())
    )
