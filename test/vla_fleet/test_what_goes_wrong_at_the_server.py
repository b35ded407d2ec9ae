# SPDX-License-Identifier: Apache-2.0
"""What people and machines do to a server: two at once, a full disk, a folder in use, thousands of robots, a deaf robot."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from support.fleet import FleetServer, enrolled
from support.fleet_app import FleetApp
from support.waits import wait_for
from websockets.sync.client import connect

from vla_fleet.cli.main import main
from vla_fleet.client import Client
from vla_fleet.errors import ConflictError, FleetError, FullError, MissingError
from vla_fleet.server.keys import Role
from vla_fleet.server.rooms import Rooms, Settings
from vla_fleet.storage.tables import RobotRow


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app:
        yield app


def at_once(*works: Callable[[], Any]) -> list[FleetError]:
    """Do several things at the same time; return what went wrong."""
    gate, errors = threading.Barrier(len(works)), list[FleetError]()

    def run(work: Callable[[], Any]) -> None:
        gate.wait(40)
        try:
            work()
        except FleetError as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def test_admins_who_end_each_others_keys_at_once_leave_one(app: FleetApp) -> None:
    keys, names = app.rooms.keys, ["admin"]

    async def end_all() -> list[BaseException | None]:
        return await asyncio.gather(*(keys.revoke(name, "test") for name in names), return_exceptions=True)

    for i in range(5):
        names += [app.do(named(app, f"ada-{i}")), app.do(named(app, f"bob-{i}"))]
        errors = [e for e in app.do(end_all()) if e is not None]
        assert [getattr(e, "code", e) for e in errors] == ["LAST_ADMIN"]
        names = [key.name for key in app.do(keys.all()) if key.revoked_s is None]
        assert len(names) == 1


async def named(app: FleetApp, name: str) -> str:
    await app.rooms.keys.make(name, Role.ADMIN, "test")
    return name


def test_of_two_who_take_one_name_for_a_key_one_gets_it(app: FleetApp) -> None:
    with app.client() as client:
        errors = at_once(*(lambda: client.make_key("ada", "viewer") for _ in range(8)))
        assert {(type(e), e.code) for e in errors} == {(ConflictError, "KEY_EXISTS")} and len(errors) == 7


def test_a_robot_that_enrols_twice_at_once_gets_tokens_of_which_one_counts(app: FleetApp) -> None:
    with app.client() as client:
        codes = [client.make_code("arm") for _ in range(6)]
        assert not at_once(*(lambda code=code: client.enrol(code) for code in codes))
        assert [robot["name"] for robot in client.robots()] == ["arm"]


def test_orders_and_lists_of_thousands_of_robots_are_whole(app: FleetApp) -> None:
    names = [f"arm-{i:04}" for i in range(2500)]

    async def fill() -> None:
        async with app.rooms.database.begin() as session:
            session.add_all(
                RobotRow(name=name, token_hash=name, group="all", tags=[], enrolled_s=1.0, status={}) for name in names
            )

    app.do(fill())
    with app.client() as client:
        assert [robot["name"] for robot in client.robots()] == names
        commands = client.rollback(everyone=True, version="1.0.0")
        assert [c["robot"] for c in commands] == names
        followed = next(client.follow([c["id"] for c in commands], 0.0))
        assert [c["id"] for c in followed] == [c["id"] for c in commands]
        again = client.rollback(names[:1200], version="1.0.0")
        assert [c["id"] for c in again] == [c["id"] for c in commands[:1200]], "ordered already"


def test_an_upload_that_finds_no_room_is_refused_and_leaves_nothing(app: FleetApp, monkeypatch: Any) -> None:
    data = b"x" * 100_000
    name = hashlib.sha256(data).hexdigest()
    opened = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if mode == "wb" and path.parent.name == "incoming":
            return opened(Path("/dev/full"), mode, *more, **options)
        return opened(path, mode, *more, **options)

    with app.client() as client, monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(FullError, match="DISK_FULL"):
            client._request("PUT", f"/v1/blobs/{name}", content=data)
    assert not list(app.rooms.blobs.root.iterdir())
    with app.client() as client:
        assert client._request("PUT", f"/v1/blobs/{name}", content=data).json() == {"size_bytes": len(data)}


def test_a_robot_that_does_not_read_keeps_no_other_waiting(app: FleetApp) -> None:
    with app.client() as client:
        url = f"{app.url.replace('http', 'ws', 1)}/v1/robots/connect"
        deaf = {"Authorization": f"Bearer {enrolled(client, 'deaf')}"}
        hello = json.dumps({"type": "hello", "protocols": [1], "outbox_id": "box"})
        event = {"type": "event", "time_s": 1.0, "from_state": "A", "to_state": "B"}
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(app.url.rpartition(":")[2])))
        with connect(url, additional_headers=deaf, sock=raw, max_queue=1, open_timeout=40, close_timeout=0.2) as line:
            line.send(hello)
            for seq in range(1, 800):  # each is confirmed, and no confirmation is read
                line.send(json.dumps({**event, "seq": seq}))
            client.rollback(["deaf"], version="1.0.0")
            other = {"Authorization": f"Bearer {enrolled(client, 'other')}"}
            with connect(url, additional_headers=other, open_timeout=40) as healthy:
                healthy.send(hello)
                order = client.rollback(["other"], version="1.0.0")[0]["id"]
                while json.loads(healthy.recv(40)).get("id") != order:
                    pass


def test_a_server_that_cannot_start_says_why_in_one_line_and_harms_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FleetServer(tmp_path / "fleet") as server:
        port = server.url.rpartition(":")[2]
        aside = tmp_path / "fleet" / "blobs" / "incoming" / "upload"
        aside.write_text("half")
        for code, data, options in (
            ("DATA_IN_USE", tmp_path / "fleet", ["--port", "0"]),
            ("ADDRESS_UNUSABLE", tmp_path / "other", ["--port", port]),
            ("CERTIFICATE_INVALID", tmp_path / "other", ["--port", "0", "--certificate", "/nowhere"]),
            ("DATA_UNUSABLE", Path("/dev/null/data"), ["--port", "0"]),
        ):
            monkeypatch.setattr("sys.argv", ["vla-fleet", "serve", "--data", str(data), *options])
            with pytest.raises(SystemExit) as end:
                main()
            said = capsys.readouterr().err
            assert end.value.code == 1 and said.startswith(f"vla-fleet: {code}: ") and said.count("\n") == 1, said
        assert aside.exists(), "the upload of the server that runs"


def test_a_key_of_passes_that_was_lost_in_a_crash_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "files.key").touch()
    Rooms(Settings(data=tmp_path, public_url="http://x"))
    assert len((tmp_path / "files.key").read_text().strip()) == 64


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b""])
def test_a_proxy_that_answers_instead_of_the_server_is_an_error_with_a_code(body: bytes) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as portal:
        thread = threading.Thread(target=portal.serve_forever)
        thread.start()
        with (
            Client(f"http://127.0.0.1:{portal.server_port}") as client,
            pytest.raises(FleetError, match="SERVER_ERROR"),
        ):
            client.robots()
        portal.shutdown()
        thread.join(10)


def test_a_name_stays_one_part_of_the_address_whatever_is_in_it(app: FleetApp) -> None:
    with app.client() as client:
        client.make_key("bob", "viewer")
        for name in ("../keys/bob#", "bob?", "a/b", "..", "%2e%2e"):
            with pytest.raises(FleetError) as refused:
                client.revoke_token(name)
            assert refused.value.code in ("INPUT_INVALID", "NOT_FOUND", "METHOD_NOT_ALLOWED"), refused.value
            with pytest.raises((MissingError, FleetError)):
                client.robot(name)
        assert client.keys()[-1]["revoked_s"] is None


def test_rollouts_and_experiments_go_on_after_the_database_was_locked(app: FleetApp, monkeypatch: Any) -> None:
    begin, locked = app.rooms.database.begin, threading.Event()
    refused: list[str] = []
    looked: list[str] = []

    def begin_or_fail() -> Any:
        name = asyncio.current_task().get_coro().__qualname__  # type: ignore[union-attr]
        if not locked.is_set():
            looked.append(name)
            return begin()
        refused.append(name)
        raise OperationalError("SELECT", {}, Exception("database is locked"))

    loops = {"Rollouts.run", "ABTestManager.run"}
    monkeypatch.setattr(app.rooms.database, "begin", begin_or_fail)
    locked.set()
    wait_for(lambda: loops <= set(refused), "a look at the locked database")
    locked.clear()
    looked.clear()
    wait_for(lambda: loops <= set(looked), "a look after it")
    assert all(not task.done() for task in app.rooms._tasks)
