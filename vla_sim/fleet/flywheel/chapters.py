# SPDX-License-Identifier: Apache-2.0
"""The story. Each chapter waits for what has to happen; what must be true of it all is checked at the end (``checks.py``)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence

from vla_fleet.client import Json
from vla_learning.simulate.newcomer import NEW_COLOUR, OLD_COLOURS
from vla_sim.bundle import NAME
from vla_sim.demo.processes import DemoError
from vla_sim.fleet.flywheel.stage import ROBOTS, FlywheelStage
from vla_sim.fleet.play.stage import Chapter

_FIRST_S, _WORK_S, _TOOL_S, _ROLLOUT_S = 300.0, 600.0, 900.0, 900.0
"""How long a chapter waits at most: minutes longer than on an idle machine [s]."""
_LOOK_S = 1.0
EARLIER, CORRECTED, AFTER = 24, 16, 30
"""Episodes before the new colour came; corrected ones to learn from; of the whole fleet with what was learned."""
NEW_TASKS = (*OLD_COLOURS, *[NEW_COLOUR] * len(OLD_COLOURS))
"""Half of the tasks ask for the new colour."""
MIN_EPISODES, MARGIN = 20, 0.10
_NEEDED = 60
"""Episodes of the canary's time, each drawn by a fair coin; the judge may prolong it once. What it does with so few of so
different versions is simulated in ``test_flywheel_demo.py``."""
_TRAINING = ("--set", "steps=400", "--set", "batch=32", "--set", "warm_up_steps=10")
_GATE = ("--gate", "episodes_old=150", "--gate", "margin_old=0.1", "--gate", "episodes_new=80")


def first_policy(stage: FlywheelStage) -> None:
    """Everybody gets the first policy."""
    stage.publish(stage.base, alias="champion")
    stage.tasks.ask_for(OLD_COLOURS)
    commands = stage.client.deploy(f"{NAME}@champion", everyone=True)
    loaded = ("SHADOW", "SWAPPING", "TRIAL", "COMMITTED")
    stage.watch.wait(
        lambda seen: all(seen[name]["status"].get("state") in loaded for name in ROBOTS), "policies in memory", _FIRST_S
    )
    stage.tasks.work(True)
    stage.follow(commands, _FIRST_S)
    stage.wait_committed("1.0.0", ROBOTS, _FIRST_S)


def they_work(stage: FlywheelStage) -> None:
    """Robots record what they do, and send it."""
    _wait(stage, lambda seen: sum(e["success"] is True for e in seen) >= EARLIER, f"{EARLIER} successes on the server")
    robots = {episode["robot"] for episode in stage.episodes()}
    stage.watch.say("server", f"has {len(stage.episodes())} episodes of {len(robots)} robots: they are kept for replay")


def new_colour(stage: FlywheelStage) -> None:
    """A colour comes that the policy was never told of; an operator finishes what it cannot do."""
    stage.tasks.ask_for(NEW_TASKS)
    stage.times["new_colour"] = time.time()
    text = f"from now on half of the tasks ask for the {NEW_COLOUR} block, a word that the policy never learned"
    stage.watch.say("demo", text, "bold yellow", mark=f"{NEW_COLOUR} comes")
    stage.watch.say("operator", "takes over what is not done after 3.5 s, finishes it, and gives back", "yellow")
    _wait(
        stage,
        lambda seen: sum(e["corrections"] > 0 for e in _asked(seen)) >= CORRECTED,
        f"{CORRECTED} corrected episodes of the new colour on the server",
    )
    asked = _asked(stage.episodes())
    alone = [episode for episode in asked if episode["success"] and not episode["corrections"]]
    stage.watch.say("server", f"{NEW_COLOUR}: the policy has done {len(alone)} of {len(asked)} episodes alone", "red")


def learn(stage: FlywheelStage) -> None:
    """Data set, training, gate, publication: two commands. The robots sleep: they share this machine with the training."""
    stage.tasks.work(False)
    since = datetime.datetime.fromtimestamp(stage.times["new_colour"], datetime.UTC).isoformat()
    stage.vla_fleet(
        "dataset", "build", "--policy", NAME, "--out", stage.data_set, "--since", since,
        "--episodes", stage.folder / "episodes", timeout_s=_TOOL_S,
    )  # fmt: skip
    stage.tasks.sleep(True)  # their last tasks have ended meanwhile
    stage.watch.say("demo", "the robots sleep: here they share a machine with the training", "dim")
    stage.times["trains"] = time.time()
    stage.vla_fleet(
        "train", stage.data_set, "--base", f"{NAME}@champion", "--runs", stage.folder / "runs",
        *_TRAINING, *_GATE, "--publish", "--alias", "candidate", timeout_s=_TOOL_S,
    )  # fmt: skip
    stage.times["published"] = time.time()
    stage.watch.say("trainer", f"has published {stage.learned}: the gate let it pass", "bold green")


def canary(stage: FlywheelStage) -> None:
    """Half of the episodes are drawn for the new version; the judge decides, nobody else."""
    stages = [
        {"name": "canary", "share": 0.5, "duration_s": _canary_s(stage), "margin": MARGIN},
        {"name": "full", "share": 1.0},
    ]
    text = f"half of the episodes for {stages[0]['duration_s']:.0f} s, which is {_NEEDED} episodes at the fleet's pace"
    stage.watch.say("operator", f"wants a canary: {text}", "magenta")
    # A robot lets no version act that wants something else than the active one (SHADOW_DIVERGED). At the new colour it must want
    # something else, for the active one is at a loss there; so robots compare the two at what both know.
    stage.tasks.ask_for(OLD_COLOURS)
    stage.tasks.sleep(False)
    stage.tasks.work(True)
    stage.watch.say(
        "demo", "robots are asked for the old colours while they load it beside the version that acts", "dim"
    )
    stage.rollout = stage.begin_rollout(stage.learned, "all", stages, min_episodes=MIN_EPISODES)
    stage.rollout.wait({"JUDGING"}, _ROLLOUT_S)
    stage.tasks.ask_for(NEW_TASKS)
    stage.times["canary"] = time.time()
    stage.watch.say("demo", "the canary begins", "magenta", mark="the canary begins")
    stage.rollout.wait_stage("full", _ROLLOUT_S)
    stage.watch.wait(
        lambda seen: all(_has(seen[name]["status"], stage.learned) for name in ROBOTS),
        f"{stage.learned} on every robot",
        _ROLLOUT_S,
    )
    stage.times["swapped"] = time.time()
    stage.watch.say("demo", f"every robot runs {stage.learned}", "bold green", mark="every robot runs it")


def afterwards(stage: FlywheelStage) -> None:
    """The same tasks, the learned version, and an operator who has little to do; each robot ends its own trial meanwhile."""
    swapped = stage.times["swapped"]
    _wait(
        stage,
        lambda seen: sum(episode["started_s"] >= swapped for episode in seen) >= AFTER,
        f"{AFTER} more episodes on the server",
    )
    assert stage.rollout is not None
    stage.rollout.wait({"DONE"}, _ROLLOUT_S)
    stage.rollout.check("DONE", stage.learned, ROBOTS)


def _has(status: Json, version: str) -> bool:
    """Whether a robot runs this version in every episode: on trial or committed. In the canary it may act too, but is neither."""
    swapped = status.get("state") in ("TRIAL", "COMMITTED") and status.get("active_version") == version
    return swapped and version in (status.get("trial_version"), status.get("committed_version"))


def _asked(seen: Sequence[Json]) -> list[Json]:
    return [episode for episode in seen if NEW_COLOUR in episode["instructions"][0]]


def _canary_s(stage: FlywheelStage) -> float:
    """Return how long a stage needs at the pace at which the fleet works [s]."""
    begun = stage.times["new_colour"]
    done = [episode["started_s"] for episode in stage.episodes() if episode["started_s"] >= begun]
    return round(_NEEDED * float(max(done) - begun) / len(done), 1)


def _wait(stage: FlywheelStage, enough: Callable[[list[Json]], bool], what: str) -> None:
    deadline = time.monotonic() + _WORK_S
    while not enough(stage.episodes()):
        if ended := stage.processes.ended():
            raise DemoError(f"waited for {what}: {'; '.join(ended)}")
        if time.monotonic() > deadline:
            raise DemoError(f"waited {_WORK_S:g} s in vain for {what}; the server has {len(stage.episodes())} episodes")
        time.sleep(_LOOK_S)


CHAPTERS = (
    Chapter("Three robots get a policy that knows three colours", "first\npolicy", first_policy),
    Chapter("They work; what they do comes to the server as episodes", "they\nwork", they_work),
    Chapter(f"A new colour: {NEW_COLOUR}. Robots fail, an operator corrects", "a new colour,\ncorrected", new_colour),
    Chapter("Data set, training, gate, publication", "learning", learn),
    Chapter("The canary: each episode is drawn, and the judge decides", "canary", canary),
    Chapter("The fleet can do it", "after", afterwards),
)
