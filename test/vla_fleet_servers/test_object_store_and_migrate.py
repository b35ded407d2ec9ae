# SPDX-License-Identifier: Apache-2.0
"""Files in an object store, which moto's server stands in for, and the way there from a server's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.adapters import make_adapter, make_base
from support.episodes import make_episode
from support.fleet import FleetServer
from support.replicas import Replicas, finished
from support.rollouts import MODEL, NEW, OLD
from support.servers import Moto, Nats, Postgres
from support.waits import wait_for

from vla_adaptation.upload import pack
from vla_checkpoint import Manifest
from vla_fleet.cli.main import main
from vla_fleet.client import Client

pytestmark = pytest.mark.timeout(
    300
)  # several servers start one after the other, and a busy machine takes long for each


def episode(folder: Path) -> bytes:
    make_episode(folder / "1.mcap", 1)
    return (folder / "1.mcap").read_bytes()


def adapter(folder: Path) -> bytes:
    make_adapter(folder / "adapter", make_base(folder / "base"))
    pack(folder / "adapter", folder / "adapter.tar")
    return (folder / "adapter.tar").read_bytes()


def upload(
    url: str, token: str, data: bytes, offset: int = 0, end: int | None = None, kind: str = "episodes"
) -> dict[str, Any]:
    headers, sha256 = {"Authorization": f"Bearer {token}"}, hashlib.sha256(data).hexdigest()
    given = {"offset": offset, "total_bytes": len(data)}
    target = f"{url}/v1/robot/{kind}/{sha256}"
    found: dict[str, Any] = httpx.put(target, params=given, content=data[offset:end], headers=headers).json()
    return found


def test_files_that_one_server_took_in_the_other_one_gives_from_any_byte_on(
    tmp_path: Path, postgres: Postgres, nats: Nats, moto: Moto
) -> None:
    options = ("--database", postgres.url("objects"), "--bus", nats.url, "--blobs", moto.url)
    with Replicas(tmp_path, *options, **moto.environment) as fleet, fleet.client(fleet.a) as client:
        fleet.publish(client)
        robot = fleet.add(client, "arm_0", fleet.b)
        finished(client, [order["id"] for order in client.deploy(f"pick_place@{OLD}", ["arm_0"])])
        assert robot.lineage == [OLD]
        manifest = Manifest.parse((tmp_path / OLD / "manifest.json").read_bytes())
        for entry in manifest.files:
            whole, url = (tmp_path / OLD / entry.path).read_bytes(), f"{fleet.b.url}/files/blobs/sha256/{entry.sha256}"
            assert get(url, fleet.key) == (200, whole)
            assert get(url, fleet.key, "bytes=3-") == (206, whole[3:])
            assert get(url, fleet.key, "bytes=1-2") == (206, whole[1:3])
            assert get(url, fleet.key, "bytes=-2") == (206, whole[-2:])
            assert get(url, fleet.key, f"bytes={len(whole)}-")[0] == 416
        assert get(f"{fleet.b.url}/files/blobs/sha256/{'0' * 64}", fleet.key)[0] == 404

        data, token = episode(tmp_path), fleet.tokens["arm_0"]
        half, digest = len(data) // 2, hashlib.sha256(data).hexdigest()
        assert upload(fleet.a.url, token, data, 0, half) == {"received_bytes": half, "complete": False}
        elsewhere = upload(fleet.b.url, token, data, half)
        assert (elsewhere["error_code"], elsewhere["received_bytes"]) == ("UPLOAD_OFFSET", 0), "it begins again there"
        assert upload(fleet.b.url, token, data)["complete"]
        assert upload(fleet.a.url, token, data)["complete"], "also where its first half is"
        assert get(f"{fleet.a.url}/v1/episodes/{digest}/file", fleet.key) == (200, data)

        data = adapter(tmp_path)
        assert upload(fleet.b.url, token, data, kind="adapters")["complete"]
        assert upload(fleet.a.url, token, data, kind="adapters")["complete"], "it is there already"
        assert get(f"{fleet.a.url}/v1/adapters/{hashlib.sha256(data).hexdigest()}/file", fleet.key) == (200, data)

        client.retire("pick_place", NEW)
        assert client.collect_garbage(dry_run=True)["blobs"] == 0, "nothing is a day old"


def get(url: str, key: str, part: str = "") -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} | ({"Range": part} if part else {})
    found = httpx.get(url, headers=headers, timeout=30)
    return found.status_code, found.content


def test_a_server_goes_from_its_folder_to_postgresql_and_an_object_store_with_all_that_it_knows(
    tmp_path: Path,
    postgres: Postgres,
    moto: Moto,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    own = ("--database", postgres.url("migrated"), "--blobs", f"{moto.url}/migrated")

    def migrate() -> str:
        monkeypatch.setattr("sys.argv", ["vla-fleet", "migrate", "--data", str(tmp_path / "a"), *own])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert end.value.code in (0, 1)
        return captured.out + captured.err

    data, learned = episode(tmp_path), adapter(tmp_path)
    with Replicas(tmp_path) as fleet, fleet.client(fleet.a) as client:
        fleet.b.stop()
        fleet.publish(client)
        robot = fleet.add(client, "arm_0", fleet.a)
        finished(client, [order["id"] for order in client.deploy(f"pick_place@{OLD}", ["arm_0"])])
        robot.episodes(5)
        assert upload(fleet.a.url, fleet.tokens["arm_0"], data)["complete"]
        assert upload(fleet.a.url, fleet.tokens["arm_0"], learned, kind="adapters")["complete"]
        client.set_alias("pick_place", "champion", OLD)
        wait_for(lambda: robot._bridge is not None and robot._bridge.outbox_size == 0, "the outbox")
        wait_for(lambda: client.robots()[0]["status"].get("committed_version") == OLD, "the status")
        assert "DATA_IN_USE" in migrate()
        before, key, token = known(client), fleet.key, fleet.tokens["arm_0"]
        robot.disconnect()
        fleet.a.stop()

        said = migrate()
        assert "copied" in said and "files" in said, said
        assert "DATABASE_NOT_EMPTY" in migrate(), "nothing is mixed with what is there"

        with FleetServer(tmp_path / "new", options=own) as server, server.client(key) as there:
            assert known(there) == before
            assert get(f"{server.url}/v1/episodes/{hashlib.sha256(data).hexdigest()}/file", key) == (200, data)
            assert get(f"{server.url}/v1/adapters/{hashlib.sha256(learned).hexdigest()}/file", key) == (200, learned)
            assert (tmp_path / "a" / "files.key").read_text() != (tmp_path / "new" / "files.key").read_text()
            robot.connect(server.url, token, tmp_path / "arm_0")
            ids = [order["id"] for order in there.deploy(MODEL, ["arm_0"])]
            assert [order["state"] for order in finished(there, ids)] == ["DONE"], "new rows get numbers behind the old"
            assert robot.lineage == [OLD, NEW]


def known(client: Client) -> list[Any]:
    """Return what a server knows that must not change on the way."""
    looks: list[Callable[[], Any]] = [client.models, client.events, client.episodes, client.adapters, client.log]
    return [look() for look in looks]
