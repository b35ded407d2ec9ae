# SPDX-License-Identifier: Apache-2.0
"""Robots for the page to show: a rollout and an experiment of robots on real lines, and a crowd from the database."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert

from support.bundles import make_bundle
from support.episodes import make_episode
from support.rollouts import HOUR_S, MODEL, NEW, OLD, RolloutFleet
from vla_evidence.assignment import uniform
from vla_fleet import protocol
from vla_fleet.storage.tables import EventRow, RobotRow

SITES = ("hall-1", "hall-2", "hall-3", "yard")


def crowd(fleet: RolloutFleet, number: int, *, moved: float = 0.35) -> None:
    """Put robots into the database as if they had reported; a share of them has moved to the new version lately."""
    now_s = fleet.clock.now()
    rows: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for index in range(number):
        name, luck = f"unit_{index:05}", uniform("crowd", "page", index)
        version = NEW if luck < moved else OLD
        away = uniform("away", "page", index) < 0.02
        status = protocol.Status(
            time_s=now_s, state="FETCHING" if 0.35 < luck < 0.36 else "IDLE", name="pick_place", committed_version=version,
            active_version=version, versions=[OLD, NEW], holding=0.5 < luck < 0.501,
            hold_reason="NO_OBSERVATION" if 0.5 < luck < 0.501 else "",
        )  # fmt: skip
        last_s = now_s - 600.0 - 86400.0 * uniform("seen", "page", index) if away else now_s
        rows.append(
            {
                "name": name, "token_hash": name, "group": SITES[index % len(SITES)], "tags": [], "enrolled_s": now_s,
                "last_seen_s": last_s, "software": "0.1.0", "status": status.model_dump(mode="json", exclude={"type"}),
            }
        )  # fmt: skip
        events.append(_acts(name, OLD, now_s - 5 * 86400.0))
        if version == NEW:
            events.append(_acts(name, NEW, now_s - HOUR_S * (1.0 + 20.0 * (luck / moved) ** 0.5)))

    async def write() -> None:
        async with fleet.rooms.database.begin() as session:
            await session.execute(insert(RobotRow), rows)
            await session.execute(insert(EventRow), events)

    fleet.do(write())


def _acts(robot: str, version: str, time_s: float) -> dict[str, Any]:
    return {
        "robot": robot, "time_s": time_s, "received_s": time_s, "update_id": "", "from_state": "", "to_state": protocol.ACTIVE,
        "version": version, "digest": "", "cause": "UPDATE", "error_code": "", "message": "",
    }  # fmt: skip


def rollout(fleet: RolloutFleet, group: str, steps: int) -> str:
    """Begin a rollout to a group and let its first stage be judged for a while; return its id."""
    found = fleet.client.create_rollout(model=MODEL, target=f"group:{group}", reason="more light")
    fleet.until(found["id"], "JUDGING")
    for _ in range(steps):
        fleet.pass_time(0.5 * HOUR_S)
        fleet.episodes(5)
        fleet.step()
    return str(found["id"])


def learnt(fleet: RolloutFleet, robot: str, folder: Path) -> None:
    """Upload an episode as a robot; keep that a data set was built of it, and publish a version that was trained."""
    make_episode(folder / "episode.mcap", 1, steps=12, corrected=3, success=False, version=OLD)
    data = (folder / "episode.mcap").read_bytes()
    url = f"{fleet.url}/v1/robot/episodes/{hashlib.sha256(data).hexdigest()}?offset=0&total_bytes={len(data)}"
    httpx.put(
        url, headers={"Authorization": f"Bearer {fleet.tokens[robot]}"}, content=data, timeout=40.0
    ).raise_for_status()
    built = {"policy": "pick_place", "lineage_sha256": "ab" * 32, "seed": 7, "new_rule": "all", "last_episode": 1}
    fleet.client._post("/v1/datasets", {**built, "episodes": 1, "frames": 12, "corrections": 3})
    checks = [{"name": "old tasks", "passed": True, "text": "78 of 80 before, 79 of 80 after"}]
    make_bundle(folder / "trained", name="reach_block", version="1.1.0")
    fleet.client.publish(folder / "trained", lineage={"training_run": "weekly-3", "gate": {"checks": checks}})


def experiment(fleet: RolloutFleet, group: str, steps: int) -> str:
    """Begin an experiment in a group and let it run for a while; return its id."""
    design = {"a": f"pick_place@{OLD}", "b": MODEL, "unit": "episode", "group": group}
    name = fleet.client.create_experiment({**design, "difference": 0.1, "rate": 0.75, "per_day": 48.0})
    for _ in range(steps):
        fleet.pass_time(0.5 * HOUR_S)
        fleet.do(fleet.rooms.experiments.step())
        fleet.heard()
        fleet.episodes(2)
        fleet.do(fleet.rooms.experiments.step())
    return name
