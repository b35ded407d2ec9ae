# SPDX-License-Identifier: Apache-2.0
"""``report.json``: what the artefacts say, read back from the server and from the files; ``checks.py`` judges it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from vla_evidence.sequential.intervals import clopper_pearson_interval
from vla_fleet.client import Json
from vla_learning.episodes.reading import read_episode
from vla_learning.simulate.newcomer import NEW_COLOUR
from vla_sim.bundle import NAME
from vla_sim.fleet.flywheel.stage import ROBOTS, FlywheelStage

CONFIDENCE = 0.95
LINEAGE = "meta/vla_ota.json"


def make_report(stage: FlywheelStage) -> Json:
    """Return the report; times [s] since the demonstration began. What did not happen is missing."""
    began_s = stage.watch.began_s
    times = {what: round(at_s - began_s, 2) for what, at_s in stage.times.items()}
    episodes = [_episode(episode, began_s) for episode in stage.episodes()]
    return {
        "problems": stage.problems,
        "new_task": NEW_COLOUR,
        "robots": {robot["name"]: _robot(robot) for robot in stage.client.robots()},
        "expected_robots": list(ROBOTS),
        "times_s": times,
        "success": success(episodes, times),
        "correction": _correction(stage, episodes),
        "data_set": _data_set(stage),
        "run": stage.run,
        "versions": {version["version"]: version for version in stage.client.lineage(NAME)},
        "rollout": stage.client.rollout(stage.rollout.id) if stage.rollout else {},
        "stages_seen": stage.rollout.stages_seen if stage.rollout else [],
        "chapters": [{"at_s": round(m.at_s - began_s, 2), "what": m.text} for m in stage.watch.chapters],
        "marks": [{"at_s": round(m.at_s - began_s, 2), "what": m.text} for m in stage.watch.marks],
        "episodes": episodes,
    }


def success(episodes: Iterable[Json], times: Json) -> Json:
    """Return successes without an operator: before, since the new task came, and after, since every robot has what was learned.

    ``{"before" | "after": {"new" | "old" | "all": {"successes", "episodes", "rate", "low", "high"}}}``, with the interval of
    Clopper and Pearson at 95 %. A part that has no episode is missing.
    """
    never = float("inf")
    spans = {
        "before": (times.get("new_colour", never), times.get("canary", never)),
        "after": (times.get("swapped", never), never),
    }
    found: Json = {}
    for name, (begin, end) in spans.items():
        own = [episode for episode in episodes if begin <= episode["at_s"] < end]
        parts = {"new": [e for e in own if e["new"]], "old": [e for e in own if not e["new"]], "all": own}
        found[name] = {part: _rate(of) for part, of in parts.items() if of}
    return found


def _rate(episodes: list[Json]) -> Json:
    successes = sum(episode["alone"] for episode in episodes)
    low, high = clopper_pearson_interval(successes, len(episodes), CONFIDENCE)
    rate = successes / len(episodes)
    return {"successes": successes, "episodes": len(episodes), "rate": rate, "low": float(low), "high": float(high)}


def _episode(row: Json, began_s: float) -> Json:
    return {
        "sha256": row["sha256"],
        "robot": row["robot"],
        "version": row["version"],
        "digest": row["digest"],
        "instruction": row["instructions"][0],
        "at_s": round(row["started_s"] - began_s, 2),
        "new": NEW_COLOUR in row["instructions"][0],
        "alone": bool(row["success"]) and not row["corrections"],
        "corrections": row["corrections"],
    }


def _robot(robot: Json) -> Json:
    return {key: robot["status"].get(key, "") for key in ("committed_version", "active_version")}


def _correction(stage: FlywheelStage, episodes: list[Json]) -> Json:
    """Fetch the file of one corrected episode and say what is in it."""
    row = next((episode for episode in episodes if episode["corrections"] and episode["new"]), None)
    if row is None:
        return {}
    path = stage.folder / "correction.mcap"
    stage.client.download_episode(row["sha256"], path)
    episode = read_episode(path)
    by_policy = episode.policy_actions[episode.intervention]
    return {
        "sha256": row["sha256"],
        "steps": episode.steps,
        "corrected": int(episode.intervention.sum()),
        "kept_policy_actions": int((by_policy == by_policy).all(axis=1).sum()),  # a missing one is NaN
        "pictures": int(max(len(array) for name, array in episode.features.items() if "images" in name)),
    }


def _data_set(stage: FlywheelStage) -> Json:
    path = stage.data_set / LINEAGE
    if not path.exists():
        return {}
    data = path.read_bytes()
    recorded: list[dict[str, Any]] = stage.client.data_sets(NAME)
    return {"sha256": hashlib.sha256(data).hexdigest(), "recorded": recorded, "lineage": json.loads(data)}
