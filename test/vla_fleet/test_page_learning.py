# SPDX-License-Identifier: Apache-2.0
"""The page shows what robots recorded and what was made of it, and gives episodes to people who have signed in."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.bundles import make_bundle
from support.episodes import make_episode
from support.fleet import enrolled
from support.fleet_app import FleetApp

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app:
        yield app


@pytest.fixture
def viewer(app: FleetApp) -> Iterator[httpx.Client]:
    with app.client() as client, httpx.Client(base_url=app.url, headers={"Origin": app.url}, timeout=40.0) as browser:
        browser.post("/sign-in", data={"key": client.make_key("ada", "viewer")})
        yield browser


def shown(viewer: httpx.Client, path: str = "/learning") -> str:
    """Return what a page shows, without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", viewer.get(path).raise_for_status().text)).split())


def upload(app: FleetApp, token: str, path: Path, number: int, **episode: Any) -> bytes:
    make_episode(path, number, **episode)
    data = path.read_bytes()
    url = f"{app.url}/v1/robot/episodes/{hashlib.sha256(data).hexdigest()}?offset=0&total_bytes={len(data)}"
    httpx.put(url, headers={"Authorization": f"Bearer {token}"}, content=data, timeout=40.0).raise_for_status()
    return data


def test_episodes_are_found_by_outcome_and_corrections_and_can_be_downloaded(
    app: FleetApp, viewer: httpx.Client, tmp_path: Path
) -> None:
    with app.client() as client:
        token = enrolled(client, "arm_1")
    assert "No such episode was uploaded yet." in shown(viewer)
    upload(app, token, tmp_path / "1.mcap", 1, success=True)
    failed = upload(app, token, tmp_path / "2.mcap", 2, success=False, steps=12, corrected=3, instruction=EVIL)
    assert "arm_1" in shown(viewer) and shown(viewer).count("Download") == 0
    assert viewer.get("/learning").text.count('class="badge') == 2
    for query in ("outcome=failure", "corrected=yes", "outcome=failure&robot=arm_1"):
        text = viewer.get(f"/learning?{query}").text
        assert "25.0%" in text and text.count('class="badge') == 1 and EVIL not in text
    assert "No such episode" in shown(viewer, "/learning?robot=arm_2")
    link = re.search(r'href="(/learning/episodes/\w+)"', viewer.get("/learning?outcome=failure").text)
    assert link is not None and viewer.get(link[1]).content == failed
    assert httpx.get(f"{app.url}{link[1]}", timeout=40.0).status_code == 303, "only for people who have signed in"


def test_data_sets_and_what_the_gate_found_of_trained_versions_are_shown(
    app: FleetApp, viewer: httpx.Client, tmp_path: Path
) -> None:
    check = {
        "name": "old tasks",
        "part": "old",
        "passed": True,
        "text": f"78 of 80 before, 79 of 80 after {EVIL}",
        "figures": {},
    }
    data_set = {
        "policy": "pick_place", "chosen_from": "", "lineage_sha256": "ab" * 32, "seed": 7, "new_rule": "since data set 3",
        "last_episode": 9, "episodes": 1234, "frames": 56789, "corrections": 321,
    }  # fmt: skip
    odd: list[Any] = [{"checks": [check]}, {"checks": 3}, "fine", {"checks": [None, {}]}]
    with app.client() as client:
        client._post("/v1/datasets", data_set)
        for number, gate in enumerate(odd):
            make_bundle(tmp_path / str(number), version=f"1.{number}.0")
            client.publish(tmp_path / str(number), lineage={"training_run": f"run-{number}", "gate": gate})
        make_bundle(tmp_path / "by hand", version="1.9.0")
        client.publish(tmp_path / "by hand")
    text = shown(viewer)
    assert "1,234" in text and "56,789" in text and "since data set 3" in text and "ab" * 6 in text
    assert "passed: old tasks: 78 of 80 before" in text and EVIL in text and EVIL not in viewer.get("/learning").text
    assert all(f"run-{number}" in text for number in range(len(odd))) and "pick_place 1.9.0" not in text
    assert "gate passed: old tasks: 78 of 80 before" in shown(viewer, "/models/pick_place")
