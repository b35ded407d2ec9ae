# SPDX-License-Identifier: Apache-2.0
"""A site's robots share one copy of each blob that crosses the line, and a mirror that fails costs them nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import requests
from support.fleet import FleetServer, enrolled
from support.fleet_app import ManualClock
from support.waits import wait_for

from vla_fleet.mirror.app import create_app
from vla_fleet.mirror.origin import GRANT_S
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import parse_url
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem
from vla_sim.bundle import SHIPPED_BUNDLE
from vla_sim.checkpoint_server import Behaviour, CheckpointServer

DATA = os.urandom(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
PATH = f"files/blobs/sha256/{SHA256}"
LIMIT_S = 60.0


class Mirror:
    """``vla-fleet mirror`` as a process."""

    def __init__(self, origin: str, data: Path, *options: str) -> None:
        command = [sys.executable, "-c", "from vla_fleet.cli.main import main; main()", "mirror"]
        own = ["--origin", origin, "--data", str(data), "--host", "127.0.0.1", "--port", "0"]
        self._process = subprocess.Popen([*command, *own, *options], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r" at (http\S+)", self._process.stdout.readline())
        assert found is not None
        self.url = found[1]

    def get(self, path: str = PATH, **headers: str) -> requests.Response:
        return requests.get(f"{self.url}/{path}", headers=headers, timeout=LIMIT_S)

    def status(self) -> dict[str, int]:
        return dict(requests.get(f"{self.url}/status", timeout=LIMIT_S).json())

    def end(self, number: int = signal.SIGKILL) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Site:
    """An origin, and the mirrors in front of it."""

    def __init__(self, folder: Path, origin: CheckpointServer) -> None:
        self.folder, self.origin, self.mirrors = folder, origin, list[Mirror]()
        self.add(DATA)

    def add(self, data: bytes) -> str:
        blobs = self.origin.root / "files/blobs/sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        sha256 = hashlib.sha256(data).hexdigest()
        (blobs / sha256).write_bytes(data)
        return f"files/blobs/sha256/{sha256}"

    def mirror(self, *options: str) -> Mirror:
        self.mirrors.append(Mirror(self.origin.base, self.folder / "mirror", *options))
        return self.mirrors[-1]

    def robot(self, name: str, mirror: str) -> Robot:
        return Robot(self.folder / name, self.origin.base, mirror)


class Robot:
    """A manager's fetcher on an empty store."""

    def __init__(self, folder: Path, origin: str, mirror: str) -> None:
        filesystem = Filesystem()
        self.blobs = BlobStore(folder / "blobs/sha256", folder / "partial", filesystem)
        filesystem.make_dir(self.blobs.blob_dir)
        filesystem.make_dir(self.blobs.partial_dir)
        self.received, self._origin, self.offset = Received(), origin, 0
        config = OtaConfig(store_dir="/unused", allowed_sources=(origin,), mirror_url=mirror, backoff_s=0.01)
        self._fetcher = Fetcher(config, self.blobs)

    def fetch(self) -> bytes:
        urls = [parse_url(f"{self._origin}/{PATH}")]
        self._fetcher.blob(urls, SHA256, len(DATA), self.received, self._note, lambda: False)
        return self.blobs.blob(SHA256).read_bytes()

    def _note(self, offset: int) -> None:
        self.offset = offset


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with CheckpointServer(tmp_path / "origin") as origin:
        site = Site(tmp_path, origin)
        yield site
        for mirror in site.mirrors:
            mirror.end()


def test_robots_that_ask_at_once_cost_the_origin_one_copy(site: Site) -> None:
    mirror = site.mirror()
    site.origin.behave(PATH, Behaviour(rate_bytes_s=3e6))
    robots = [site.robot(f"robot-{number}", mirror.url) for number in range(8)]
    with ThreadPoolExecutor(len(robots)) as at_once:
        assert list(at_once.map(Robot.fetch, robots)) == [DATA] * len(robots)
    assert mirror.status()["fetched_bytes"] == len(DATA)
    assert [robot.received.count for robot in robots] == [len(DATA)] * len(robots)
    assert site.robot("later", mirror.url).fetch() == DATA
    assert mirror.status()["fetched_bytes"] == len(DATA) == mirror.status()["bytes"]


def test_a_robot_goes_on_at_the_origin_behind_the_bytes_of_a_mirror_that_died(site: Site) -> None:
    mirror = site.mirror()
    robot = site.robot("robot", mirror.url)
    slow = Behaviour(etag=f'"{SHA256}"', rate_bytes_s=3e6)
    site.origin.behave(PATH, slow, times=2)  # the mirror asks for the length, then for the bytes
    site.origin.behave(PATH, Behaviour(etag=f'"{SHA256}"'))
    fetched: list[bytes] = []
    thread = threading.Thread(target=lambda: fetched.append(robot.fetch()))
    thread.start()
    wait_for(lambda: robot.offset > 0, "the first bytes")
    mirror.end()
    thread.join(LIMIT_S)
    assert fetched == [DATA] and robot.received.count == len(DATA)


@pytest.mark.parametrize(
    ("wrong", "times"),
    [
        (Behaviour(status=500), 2),  # a robot asks a mirror twice
        (Behaviour(status=404), 1),
        (Behaviour(body=bytes(len(DATA))), 2),  # the mirror asks for the length, then for the bytes
    ],
    ids=["the origin failed", "the origin did not have it yet", "the origin sent other bytes"],
)
def test_a_mirror_that_cannot_give_a_blob_costs_a_robot_nothing(site: Site, wrong: Behaviour, times: int) -> None:
    mirror = site.mirror()
    site.origin.behave(PATH, wrong, times=times)
    assert site.robot("robot", mirror.url).fetch() == DATA
    assert mirror.status()["blobs"] == 0


def test_a_mirror_goes_on_behind_what_it_had_when_it_was_killed(site: Site) -> None:
    mirror = site.mirror()
    site.origin.behave(PATH, Behaviour(stall_after=1_000_000))
    with requests.get(f"{mirror.url}/{PATH}", stream=True, timeout=LIMIT_S) as reply:
        arrived = len(reply.raw.read(900_000))
    mirror.end()
    site.origin.be_good()
    mirror = site.mirror()
    assert mirror.get().content == DATA
    assert mirror.status()["fetched_bytes"] <= len(DATA) - arrived


def test_any_part_is_given_while_the_blob_still_arrives(site: Site) -> None:
    mirror = site.mirror()
    site.origin.behave(PATH, Behaviour(rate_bytes_s=2e6))
    for header, part in (("bytes=1000000-", DATA[1_000_000:]), ("bytes=5-9", DATA[5:10])):
        reply = mirror.get(Range=header)
        assert reply.status_code == 206 and reply.content == part
    assert mirror.get(Range=f"bytes={len(DATA)}-").status_code == 416


def test_the_least_used_blobs_make_room_and_what_cannot_fit_is_refused(site: Site) -> None:
    mirror = site.mirror("--max-gb", "0.007")
    first, second = site.add(os.urandom(3_000_000)), site.add(os.urandom(3_000_000))
    for path, held in ((first, 3_000_000), (PATH, 6_000_000), (first, 6_000_000), (second, 6_000_000)):
        assert mirror.get(path).status_code == 200
        wait_for(lambda held=held: mirror.status()["bytes"] == held, "the blob to be kept")
    fetched = mirror.status()["fetched_bytes"]
    assert mirror.get(first).status_code == mirror.get(second).status_code == 200
    assert mirror.status()["fetched_bytes"] == fetched
    refused = mirror.get(site.add(os.urandom(8_000_000)))
    assert refused.status_code == 507 and refused.json()["error_code"] == "MIRROR_FULL"


def test_only_whom_the_server_lets_read_may_read_at_the_mirror(tmp_path: Path) -> None:
    with FleetServer(tmp_path / "server") as server, server.client() as client:
        client.publish(SHIPPED_BUNDLE, version="1.0.0")
        sha256 = next(iter((server.data / "blobs/sha256").iterdir())).name
        path = f"files/blobs/sha256/{sha256}"
        token = enrolled(client, "arm-1")
        mirror = Mirror(server.url, tmp_path / "mirror")
        try:
            assert mirror.get(path).json()["error_code"] == "MIRROR_REFUSED"
            body = mirror.get(path, Authorization=f"Bearer {token}").content
            assert hashlib.sha256(body).hexdigest() == sha256
            assert mirror.get(path).json()["error_code"] == "MIRROR_REFUSED"  # though it is here
            server.kill()
            assert mirror.get(path, Authorization=f"Bearer {token}").content == body
            assert mirror.get(path).json()["error_code"] == "MIRROR_ORIGIN"
            assert mirror.get("v1/robots").json()["error_code"] == "NOT_FOUND"
        finally:
            mirror.end()


def test_a_link_to_another_host_is_followed_without_the_robots_token(site: Site, tmp_path: Path) -> None:
    with CheckpointServer(site.origin.root) as store:
        site.origin.behave(PATH, Behaviour(redirect=f"{store.base}/{PATH}?signature=1"))
        assert site.mirror().get(Authorization="Bearer vr_secret").content == DATA
        assert store.requests and all("authorization" not in headers for _, headers in store.requests)
    assert all(headers["authorization"] == "Bearer vr_secret" for _, headers in site.origin.requests)


def test_permission_ends_with_the_servers_but_not_with_the_line_to_it(site: Site) -> None:
    clock = ManualClock()

    async def scenario() -> list[int]:
        app = create_app(site.origin.base, site.folder / "mirror", 10**9, clock)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://m") as robot,
        ):

            async def status() -> int:
                await clock.advance(GRANT_S)
                return (await robot.get(PATH)).status_code

            statuses = [await status()]
            site.origin.behave(PATH, Behaviour(status=500))
            statuses.append(await status())
            site.origin.be_good()
            site.origin.behave(PATH, Behaviour(status=403))
            statuses.append(await status())
            site.origin.be_good()
            site.origin.behave(PATH, Behaviour(status=500))
            return [*statuses, await status()]

    assert asyncio.run(scenario()) == [200, 200, 403, 502]
