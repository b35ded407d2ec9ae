# SPDX-License-Identifier: Apache-2.0
"""An episode that a robot uploads is on the server whole and once, or not at all; what arrived is never sent again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.episodes import make_episode
from support.fleet import TOP, FleetServer, enrolled
from support.fleet_app import FleetApp
from support.waits import wait_for

from vla_fleet.client import Client
from vla_fleet.errors import MissingError
from vla_learning.episodes.reading import read_episode


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0, max_episodes_per_robot=4) as app:
        yield app


@pytest.fixture
def client(app: FleetApp) -> Iterator[Client]:
    with app.client() as client:
        yield client


class Robot:
    """What a robot's uploader sends."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = f"{url}/v1/robot/episodes", {"Authorization": f"Bearer {token}"}

    def standing(self, sha256: str) -> dict[str, Any]:
        return dict(httpx.get(f"{self._url}/{sha256}", headers=self._headers, timeout=40.0).raise_for_status().json())

    def put(self, sha256: str, data: bytes, offset: int, total: int) -> httpx.Response:
        query = {"offset": offset, "total_bytes": total}
        return httpx.put(f"{self._url}/{sha256}", params=query, headers=self._headers, content=data, timeout=30.0)

    def upload(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        answer = self.put(sha256, data, 0, len(data)).raise_for_status().json()
        assert answer == {"received_bytes": len(data), "complete": True}
        return sha256


@pytest.fixture
def arm(app: FleetApp, client: Client) -> Robot:
    return Robot(app.url, enrolled(client, "arm"))


def episode(folder: Path, number: int = 0, **options: Any) -> bytes:
    make_episode(folder / f"{number}.mcap", number, **options)
    return (folder / f"{number}.mcap").read_bytes()


def files(app: FleetApp) -> set[str]:
    return {path.stem for path in (app.rooms.settings.data / "episodes").glob("*.mcap")}


def test_an_episode_arrives_whole_and_people_find_it(app: FleetApp, client: Client, arm: Robot, tmp_path: Path) -> None:
    data = episode(tmp_path, 3, steps=12, corrected=4, success=False, robot="somebody else")
    sha256 = arm.upload(data)
    (row,) = client.episodes()
    assert row["sha256"] == sha256 and row["steps"] == 12 and row["corrections"] == 4 and row["success"] is False
    assert row["robot"] == "arm", "the token says who it is, not the file"
    assert row["instructions"] == ["pick the red block"] and row["interface"]
    assert client.episode(sha256[:10]) == row
    client.download_episode(sha256, tmp_path / "copy.mcap")
    assert (tmp_path / "copy.mcap").read_bytes() == data
    assert arm.upload(data) == sha256 and len(client.episodes()) == 1, "sending it again changes nothing"
    with pytest.raises(MissingError, match="EPISODE_NOT_FOUND"):
        client.episode("0" * 12)


def test_an_upload_goes_on_where_it_was_interrupted(client: Client, arm: Robot, tmp_path: Path) -> None:
    data = episode(tmp_path)
    sha256, half = hashlib.sha256(data).hexdigest(), len(data) // 2
    assert arm.standing(sha256) == {"received_bytes": 0, "complete": False}
    assert arm.put(sha256, data[:half], 0, len(data)).json() == {"received_bytes": half, "complete": False}
    for wrong in (0, half - 1, half + 1):
        refused = arm.put(sha256, data[wrong:], wrong, len(data))
        assert refused.status_code == 409 and refused.json()["error_code"] == "UPLOAD_OFFSET"
        assert refused.json()["received_bytes"] == half
    assert arm.standing(sha256) == {"received_bytes": half, "complete": False}
    assert arm.put(sha256, data[half:], half, len(data)).json()["complete"]
    assert arm.standing(sha256) == {"received_bytes": len(data), "complete": True}
    assert len(client.episodes()) == 1


def test_of_two_that_send_the_same_file_at_once_no_byte_is_mixed(
    app: FleetApp, client: Client, arm: Robot, tmp_path: Path
) -> None:
    data = episode(tmp_path, steps=400)
    sha256 = hashlib.sha256(data).hexdigest()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: arm.put(sha256, data, 0, len(data)), range(4)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    standing = arm.standing(sha256)
    if not standing["complete"]:
        at = standing["received_bytes"]
        assert arm.put(sha256, data[at:], at, len(data)).json()["complete"]
    assert len(client.episodes()) == 1 and files(app) == {sha256}


def test_bytes_that_are_no_episode_are_refused_and_leave_nothing(
    app: FleetApp, client: Client, arm: Robot, tmp_path: Path
) -> None:
    whole = episode(tmp_path)
    for data in (b"not MCAP", whole[:-30], whole[:2000]):
        sha256 = hashlib.sha256(data).hexdigest()
        refused = arm.put(sha256, data, 0, len(data))
        assert refused.status_code == 422 and refused.json()["error_code"] == "EPISODE_INVALID"
        assert arm.standing(sha256) == {"received_bytes": 0, "complete": False}
    assert client.episodes() == [] and not files(app)


def test_bytes_that_were_damaged_on_the_way_are_sent_again(client: Client, arm: Robot, tmp_path: Path) -> None:
    data = episode(tmp_path)
    sha256 = hashlib.sha256(data).hexdigest()
    refused = arm.put(sha256, data[:-1] + b"\0", 0, len(data))
    assert refused.status_code == 409 and refused.json()["error_code"] == "UPLOAD_DIGEST"
    assert refused.json()["received_bytes"] == 0
    assert arm.upload(data) == sha256


def test_more_than_was_promised_or_than_an_episode_has_is_refused(arm: Robot, tmp_path: Path) -> None:
    data = episode(tmp_path)
    sha256 = hashlib.sha256(data).hexdigest()
    assert arm.put(sha256, data, 0, len(data) - 1).json()["error_code"] == "INPUT_INVALID"
    huge = arm.put(sha256, b"", 0, 2**40)
    assert huge.status_code == 413 and huge.json()["error_code"] == "BODY_TOO_LARGE"


def test_a_full_disk_refuses_the_upload_and_loses_none(
    app: FleetApp, client: Client, arm: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = episode(tmp_path)
    sha256 = hashlib.sha256(data).hexdigest()
    arm.put(sha256, data[:100], 0, len(data))
    with monkeypatch.context() as full:
        full.setattr("vla_fleet.uploads.files.MIN_FREE_BYTES", 1 << 60)
        refused = arm.put(sha256, data[100:], 100, len(data))
    assert refused.status_code == 507 and refused.json()["error_code"] == "DISK_FULL"
    assert arm.put(sha256, data[100:], 100, len(data)).json()["complete"]


def test_failures_and_corrections_are_kept_longest(app: FleetApp, client: Client, arm: Robot, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"corrected": 2}, {"success": False}, {"success": True}, {"success": None}, {"success": True}, {"success": True},
        {"success": False}, {"corrected": 2}, {"success": True},
    ]  # fmt: skip
    kept: list[list[int]] = []
    for number, kind in enumerate(kinds):
        arm.upload(episode(tmp_path, number, **kind))
        kept.append(sorted(int(row["episode_id"][2:]) for row in client.episodes()))
    assert kept[3:] == [[0, 1, 2, 3], [0, 1, 3, 4], [0, 1, 3, 5], [0, 1, 3, 6], [0, 1, 6, 7], [0, 6, 7, 8]]
    assert files(app) == {row["sha256"] for row in client.episodes()}


def test_episodes_are_found_by_robot_version_outcome_and_correction(
    app: FleetApp, client: Client, arm: Robot, tmp_path: Path
) -> None:
    leg = Robot(app.url, enrolled(client, "leg"))
    arm.upload(episode(tmp_path, 0))
    arm.upload(episode(tmp_path, 1, version="1.1.0", success=False))
    leg.upload(episode(tmp_path, 2, policy="place", success=None))
    leg.upload(episode(tmp_path, 3, corrected=1))

    def found(**wanted: Any) -> list[str]:
        return [row["episode_id"] for row in client.episodes(**wanted)]

    assert found() == ["e-3", "e-2", "e-1", "e-0"]
    assert found(robot="arm") == ["e-1", "e-0"]
    assert found(policy="place") == ["e-2"]
    assert found(policy="pick", version="1.1.0") == ["e-1"]
    assert found(outcome="success") == ["e-3", "e-0"] and found(outcome="unknown") == ["e-2"]
    assert found(corrected=True) == ["e-3"]
    assert found(limit=2) == ["e-3", "e-2"] and found(limit=2, before=client.episodes()[1]["number"]) == ["e-1", "e-0"]


def test_a_robot_that_never_ends_its_uploads_fills_no_disk(app: FleetApp, arm: Robot) -> None:
    for number in range(20):
        arm.put(f"{number:064x}", b"x" * 1000, 0, 5000)
    assert len(list((app.rooms.settings.data / "episodes" / "incoming" / "arm").iterdir())) <= 4


SEND = """
import sys, time, httpx
url, token, path = sys.argv[1:]
data, headers = open(path, "rb").read(), {"Authorization": f"Bearer {token}"}
def a_part(begin):
    for at in range(begin, begin + 40960, 4096):
        yield data[at:at + 4096]
    time.sleep(3600)
standing = httpx.get(url, headers=headers, timeout=40.0).json()
while not standing.get("complete"):
    begin = standing["received_bytes"]
    query = {"offset": begin, "total_bytes": len(data)}
    standing = httpx.put(url, params=query, headers=headers, content=a_part(begin), timeout=40.0).json()
"""


def test_what_arrived_before_a_kill_is_not_sent_again(tmp_path: Path) -> None:
    data = episode(tmp_path, steps=600)
    sha256 = hashlib.sha256(data).hexdigest()
    part = tmp_path / "fleet" / "episodes" / "incoming" / "arm" / sha256
    with FleetServer(tmp_path / "fleet") as server, server.client() as client:
        token = enrolled(client, "arm")
        url = f"{server.url}/v1/robot/episodes/{sha256}"
        command = [sys.executable, "-c", SEND, url, token, str(tmp_path / "0.mcap")]
        arrived = 0
        for victim in ("robot", "server"):
            with subprocess.Popen(command, cwd=TOP, stderr=subprocess.DEVNULL) as robot:
                wait_for(lambda: part.exists() and part.stat().st_size > arrived + 16384, "an upload under way")  # noqa: B023
                if victim == "server":
                    server.kill()
                robot.kill()
                robot.wait(30)
            if victim == "server":
                server.start()
            before, arrived = arrived, Robot(server.url, token).standing(sha256)["received_bytes"]
            assert before + 16384 < arrived < len(data)
        assert Robot(server.url, token).put(sha256, data[arrived:], arrived, len(data)).json()["complete"]
        assert [row["sha256"] for row in client.episodes()] == [sha256]


MOMENTS = {"before the name": "name", "before the row": "flush_folder", "before the part goes": "drop_part"}


def test_a_server_that_is_killed_while_an_episode_becomes_one_ends_with_one(tmp_path: Path) -> None:
    """The process dies at each of three moments; the next start clears up, and the robot asks again."""
    uploads = {moment: episode(tmp_path, number) for number, moment in enumerate(MOMENTS)}
    digests = {moment: hashlib.sha256(data).hexdigest() for moment, data in uploads.items()}
    token = ""
    for moment, name in MOMENTS.items():
        place = "files" if name == "flush_folder" else "files.UploadFiles"
        die = (
            "import os; from vla_fleet.cli.main import main; from vla_fleet.uploads import files;"
            f"{place}.{name} = lambda *a: os.kill(os.getpid(), 9); main()"
        )
        with FleetServer(tmp_path / "fleet", command=(sys.executable, "-c", die, "serve")) as server:
            if not token:
                with server.client() as client:
                    token = enrolled(client, "arm")
            with pytest.raises(httpx.HTTPError):
                Robot(server.url, token).upload(uploads[moment])
            server.kill()
    with FleetApp(tmp_path / "fleet") as app, app.client() as client:
        arm = Robot(app.url, token)
        for moment, sha256 in digests.items():
            standing, size = arm.standing(sha256), len(uploads[moment])
            assert standing["received_bytes"] == size, "no byte is sent twice"
            assert standing["complete"] == (moment == "before the part goes")
            assert arm.put(sha256, b"", size, size).json()["complete"]
            assert read_episode(tmp_path / "fleet" / "episodes" / f"{sha256}.mcap").steps == 12
        assert {row["sha256"] for row in client.episodes()} == files(app) == set(digests.values())
        assert not list((tmp_path / "fleet" / "episodes" / "incoming" / "arm").iterdir())
