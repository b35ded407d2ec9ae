# SPDX-License-Identifier: Apache-2.0
"""What must be true of the report: every claim of the demonstration, from the artefacts that the fleet has left."""

from __future__ import annotations

from collections.abc import Iterator

from vla_fleet.client import Json
from vla_sim.bundle import NAME

_SIMULATED = "in the simulator"


def problems(report: Json) -> list[str]:
    """Return what is not as it should be; empty: all of it happened."""
    return [
        *report["problems"],
        *_episodes(report),
        *_data_set(report),
        *_training(report),
        *_rollout(report),
        *_success(report),
    ]


def _episodes(report: Json) -> Iterator[str]:
    for robot in report["expected_robots"]:
        own = [episode for episode in report["episodes"] if episode["robot"] == robot]
        if not any(episode["corrections"] and episode["new"] for episode in own):
            yield f"{robot} has sent no corrected episode of the {report['new_task']} block"
        if not any(episode["alone"] for episode in own):
            yield f"{robot} has sent no episode that it did alone"
    file = report["correction"]
    if not file:
        yield "no corrected episode could be read back from the server"
    elif not (file["corrected"] and file["kept_policy_actions"] and file["pictures"]):
        yield f"a corrected episode lacks the operator's steps, what the policy wanted, or pictures: {file}"


def _data_set(report: Json) -> Iterator[str]:
    data = report["data_set"]
    if not data:
        yield "no data set was built"
        return
    if data["sha256"] not in {row["lineage_sha256"] for row in data["recorded"]}:
        yield "the server keeps no record of the data set that was built"
    known = {episode["sha256"]: episode for episode in report["episodes"]}
    entries = data["lineage"]["episodes"]
    strange = [entry["sha256"] for entry in entries if entry["sha256"] not in known]
    if strange:
        yield f"{len(strange)} episodes of the data set are not on the server"
    parts = {part: [entry for entry in entries if entry["part"] == part] for part in ("replay", "new")}
    if not parts["replay"]:
        yield "the data set has no old episode against forgetting"
    if any(known[e["sha256"]]["new"] for e in parts["replay"] if e["sha256"] in known):
        yield f"the data set takes the {report['new_task']} block for an old task"
    if not any(entry["corrections"] for entry in parts["new"]):
        yield "the data set has no correction"


def _training(report: Json) -> Iterator[str]:
    run, versions = report["run"], report["versions"]
    if "gate" not in run:
        yield "the gate has not spoken"
        return
    judged = {
        check["part"] for check in run["gate"]["checks"] if check["passed"] is True and _SIMULATED in check["name"]
    }
    if not run["gate"]["passed"] or judged != {"old", "new"}:
        yield f"the gate did not pass old and new tasks in the simulator: {'; '.join(run['gate']['lines'])}"
    if "published" not in run:
        yield "nothing was published"
        return
    version = versions.get(run["published"]["version"])
    if version is None or version["digest"] != run["published"]["digest"]:
        yield "the server does not have the version that was published"
        return
    lineage = version["lineage"]
    if lineage["data_set"] != f"sha256:{run['dataset']['digest']}" or lineage["training_run"] != run["id"]:
        yield "the published version does not say which data set and run it comes from"
    if version["parent"] != f"{NAME}@{run['base']['version']}":
        yield f"the published version comes from {version['parent']}, not from what robots ran"


def _rollout(report: Json) -> Iterator[str]:
    rollout, learned = report["rollout"], report["run"].get("published", {})
    if rollout.get("state") != "DONE":
        yield f"the rollout is {rollout.get('state', 'not begun')}, not DONE"
        return
    if report["stages_seen"] != ["canary", "full"]:
        yield f"the rollout went through {report['stages_seen']}, not through canary and full"
    people = [line for line in rollout["history"] if line["action"].endswith((".approve", ".abort", ".pause"))]
    if people:
        yield f"a person decided about the rollout: {people[0]['action']} by {people[0]['who']}"
    if rollout["version"] != learned.get("version"):
        yield f"the rollout was of {rollout['version']}, not of what was learned"
    for robot, status in report["robots"].items():
        if {status["committed_version"], status["active_version"]} != {learned.get("version")}:
            yield f"{robot} has committed {status['committed_version']} and runs {status['active_version']}"
    swapped = report["times_s"]["swapped"]
    after = [episode for episode in report["episodes"] if episode["at_s"] >= swapped]
    other = [episode for episode in after if episode["digest"] != learned.get("digest")]
    if other or not after:
        yield f"{len(other)} of {len(after)} episodes after the rollout ran another version"


def _success(report: Json) -> Iterator[str]:
    for part, name in (("new", f"the {report['new_task']} block"), ("all", "all tasks")):
        before, after = (report["success"].get(when, {}).get(part) for when in ("before", "after"))
        if before is None or after is None:
            yield f"{name}: there is no episode before or after"
        elif after["low"] <= before["high"]:
            yield f"{name}: success has not risen beyond doubt: {told(before)} before, {told(after)} after"


def told(rate: Json) -> str:
    """Return a rate for people."""
    counts = f"{rate['successes']} of {rate['episodes']}"
    return f"{counts} = {rate['rate']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"
