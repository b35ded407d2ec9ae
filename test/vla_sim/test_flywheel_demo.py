# SPDX-License-Identifier: Apache-2.0
"""What the demonstration of the flywheel claims is checked: each claim can fail. The whole is ``make demo-flywheel``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla_evidence.canary.config import CanaryConfig, Stage
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.verdict import Decision
from vla_sim.fleet.flywheel.chapters import _NEEDED, MARGIN, MIN_EPISODES
from vla_sim.fleet.flywheel.checks import problems
from vla_sim.fleet.flywheel.report import success

Json = dict[str, Any]
ROBOTS = ["arm_1", "arm_2"]


def episode(number: int, at_s: float, *, new: bool, alone: bool, digest: str = "base") -> Json:
    return {
        "sha256": f"{number:064x}",
        "robot": ROBOTS[number % 2],
        "digest": digest,
        "at_s": at_s,
        "new": new,
        "alone": alone,
        "corrections": 0 if alone else 20,
    }


def good_report() -> Json:
    """The new task comes at 10 s; at 40 s every robot has what was learned."""
    early = [episode(n, 1.0 + n, new=False, alone=True) for n in range(4)]
    before = [episode(10 + n, 11.0 + n / 2, new=n % 4 < 2, alone=n % 4 >= 2) for n in range(40)]
    after = [episode(100 + n, 41.0 + n, new=n % 4 < 2, alone=True, digest="learned") for n in range(40)]
    times = {"new_colour": 10.0, "published": 32.0, "canary": 35.0, "swapped": 40.0}
    episodes = [*early, *before, *after]
    entries = [{"sha256": e["sha256"], "part": "replay", "corrections": 0} for e in early]
    entries += [{"sha256": e["sha256"], "part": "new", "corrections": e["corrections"]} for e in before]
    checks = [{"name": f"{part} tasks in the simulator", "part": part, "passed": True} for part in ("old", "new")]
    return {
        "problems": [],
        "new_task": "yellow",
        "robots": {name: {"committed_version": "1.1.0", "active_version": "1.1.0"} for name in ROBOTS},
        "expected_robots": ROBOTS,
        "times_s": times,
        "success": success(episodes, times, "learned"),
        "correction": {"corrected": 20, "kept_policy_actions": 20, "pictures": 90},
        "data_set": {"sha256": "d", "recorded": [{"lineage_sha256": "d"}], "lineage": {"episodes": entries}},
        "run": {
            "id": "run",
            "dataset": {"digest": "files"},
            "base": {"version": "1.0.0"},
            "gate": {"passed": True, "checks": checks, "lines": ["the gate lets it pass"]},
            "published": {"version": "1.1.0", "digest": "learned"},
        },
        "versions": {
            "1.1.0": {
                "digest": "learned",
                "parent": "reach_block@1.0.0",
                "lineage": {"data_set": "sha256:files", "training_run": "run"},
            }
        },
        "rollout": {"state": "DONE", "version": "1.1.0", "history": [{"action": "rollout.done", "who": "vla-fleet"}]},
        "stages_seen": ["canary", "full"],
        "episodes": episodes,
    }


def learned_nothing(report: Json) -> None:
    for of in report["episodes"]:
        of["alone"] = not of["new"]
    report["success"] = success(report["episodes"], report["times_s"], "learned")


def uncorrected(report: Json) -> None:
    for of in report["episodes"]:
        of["corrections"] = 0


def replayed_new_task(report: Json) -> None:
    report["data_set"]["lineage"]["episodes"][0]["sha256"] = report["episodes"][4]["sha256"]


CHANGES: list[tuple[Callable[[Json], Any], str]] = [
    (lambda r: r["problems"].append("chapter 4: it broke"), "it broke"),
    (uncorrected, "arm_1 has sent no corrected episode"),
    (lambda r: r["correction"].clear(), "could be read back"),
    (lambda r: r["correction"].update(kept_policy_actions=0), "what the policy wanted"),
    (lambda r: r["data_set"].clear(), "no data set"),
    (lambda r: r["data_set"]["recorded"].clear(), "no record of the data set"),
    (lambda r: r["data_set"]["lineage"]["episodes"][5].update(sha256="f" * 64), "1 episodes of the data set"),
    (lambda r: [e.update(part="new") for e in r["data_set"]["lineage"]["episodes"]], "no old episode"),
    (replayed_new_task, "for an old task"),
    (lambda r: [e.update(corrections=0) for e in r["data_set"]["lineage"]["episodes"]], "no correction"),
    (lambda r: r["run"].pop("gate"), "has not spoken"),
    (lambda r: r["run"]["gate"].update(passed=False), "the gate did not pass"),
    (lambda r: r["run"]["gate"]["checks"][0].update(passed=None), "the gate did not pass"),
    (lambda r: r["run"].pop("published"), "nothing was published"),
    (lambda r: r["versions"]["1.1.0"].update(digest="other"), "does not have the version"),
    (lambda r: r["versions"]["1.1.0"]["lineage"].update(data_set="sha256:other"), "which data set"),
    (lambda r: r["versions"]["1.1.0"].update(parent="reach_block@0.9.0"), "comes from reach_block@0.9.0"),
    (lambda r: r.update(rollout={}), "not begun"),
    (lambda r: r["rollout"].update(state="ROLLED_BACK"), "ROLLED_BACK"),
    (lambda r: r.update(stages_seen=["full"]), "not through canary"),
    (lambda r: r["rollout"]["history"].append({"action": "rollout.approve", "who": "ada"}), "by ada"),
    (lambda r: r["rollout"].update(version="1.0.0"), "not of what was learned"),
    (lambda r: r["robots"]["arm_2"].update(active_version="1.0.0"), "arm_2 has committed 1.1.0 and runs 1.0.0"),
    (lambda r: r["episodes"][-1].update(digest="base"), "1 of 40 episodes after the rollout"),
    (learned_nothing, "the yellow block: success has not risen"),
    (lambda r: r["success"].pop("after"), "no episode before or after"),
]


@pytest.mark.parametrize(("change", "what"), CHANGES, ids=[what for _, what in CHANGES])
def test_what_did_not_happen_is_a_problem(change: Callable[[Json], Any], what: str) -> None:
    assert problems(good_report()) == []
    report = copy.deepcopy(good_report())
    change(report)
    found = problems(report)
    assert any(what in problem for problem in found), found


def test_success_is_what_each_version_does_alone_since_the_new_colour_came() -> None:
    report = good_report()
    canary = [episode(200, 36.0, new=True, alone=False), episode(201, 36.0, new=True, alone=True, digest="learned")]
    loading = [episode(300, 33.0, new=False, alone=True)]
    found = success([*report["episodes"], *canary, *loading], report["times_s"], "learned")
    assert (found["before"]["new"]["successes"], found["before"]["new"]["episodes"]) == (0, 21)
    assert (found["before"]["old"]["successes"], found["before"]["all"]["episodes"]) == (20, 41)
    assert (found["after"]["new"]["episodes"], found["after"]["all"]["successes"]) == (21, 41)
    assert found["before"]["new"]["high"] < 0.2 < 0.8 < found["after"]["new"]["low"]


def passes(rates: tuple[float, float], rng: np.random.Generator) -> bool:
    """Whether the canary of the demonstration passes, if its versions succeed so often."""
    stages = (Stage("canary", 1.0, 0.5, 60.0, MARGIN), Stage("full", 1.0, 1.0, 0.0, None))
    judge = CanaryJudge(CanaryConfig(stages=stages, min_episodes=MIN_EPISODES))
    judge.begin_stage(0, 0.0, ["arm"])
    for look in range(2):
        judge.verdict(60.0 * look)
        versions = rng.random(_NEEDED) < 0.5
        judge.add_many(versions, rng.random(_NEEDED) < np.where(versions, *rates[::-1]))
        if (decision := judge.verdict(60.0 * (look + 1)).decision) is not Decision.HOLD:
            return decision is Decision.ADVANCE
    return False


def test_the_canary_passes_what_was_learned_and_stops_what_is_worse() -> None:
    """Half of the tasks are new ones. Before, none of them is done; after, they are done worse than the gate measures."""
    rng = np.random.default_rng(0)
    assert all(passes((0.48, 0.88), rng) for _ in range(500))
    assert sum(passes((0.48, 0.48 - MARGIN), rng) for _ in range(60)) <= 0.1 * 60
