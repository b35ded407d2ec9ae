# SPDX-License-Identifier: Apache-2.0
"""The robot's side of the line: TLS, versions of the protocol, silence, new tokens, and what acts on the robot."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from support.bridge import Robot, stub
from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.fleet_app import FleetApp
from support.waits import wait_for
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

from vla_fleet import protocol
from vla_fleet.client import Client
from vla_fleet.errors import MissingError
from vla_fleet.secret_file import write_secret
from vla_fleet_bridge.config import BridgeSettings, token
from vla_fleet_bridge.engine import retry_after_s


def test_a_robot_enrols_and_talks_over_tls_with_a_certificate_that_it_was_given_and_no_other(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=tmp_path, check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    certificate = str(tmp_path / "cert.pem")
    options = ["--certificate", certificate, "--certificate-key", str(tmp_path / "key.pem")]
    with FleetServer(tmp_path / "fleet", options=options) as server:
        context = ssl.create_default_context(cafile=certificate)
        client = Client(server.url, server.key, httpx.HTTPTransport(verify=context))
        url = server.url.replace("http", "ws", 1)
        assert url.startswith("wss://")
        settings = BridgeSettings(
            server=url, enrolment_code=client.make_code("arm"), state_dir=str(tmp_path / "arm"), ca_file=certificate
        )
        secret = token(settings)
        with Robot(url, secret, tmp_path / "a") as stranger:
            wait_for(lambda: "certificate" in stranger.engine.line.message.lower(), "the refusal")
            assert not stranger.engine.line.connected
        with Robot(url, secret, tmp_path / "b", ca_file=certificate) as robot:
            wait_for(lambda: robot.engine.line.connected, "the line")
            wait_for(lambda: client.robot("arm")["online"], "the robot at the server")
        client.close()


def test_robot_and_server_refuse_a_protocol_that_they_do_not_share(tmp_path: Path) -> None:
    def future_server(line: ServerConnection) -> None:
        offered = json.loads(line.recv())["protocols"]
        assert offered == [protocol.PROTOCOL]
        welcome = {"type": "welcome", "protocol": 99, "robot": "arm", "heartbeat_s": 1.0}
        line.send(json.dumps(welcome))
        line.recv(40)

    def strict_server(line: ServerConnection) -> None:
        line.recv()
        line.close(1008, "PROTOCOL_UNKNOWN: this server speaks 2")

    for talk in (future_server, strict_server):
        with stub(talk) as url, Robot(url, "vr_x", tmp_path / talk.__name__) as robot:
            wait_for(lambda robot=robot: "PROTOCOL_UNKNOWN" in robot.engine.line.message, "the refusal")
            assert not robot.engine.line.connected


class Cable:
    """Carries bytes between a robot and a server, until it is cut: then nothing arrives, and nobody hears of an end."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._gate = socket.create_server(("127.0.0.1", 0))
        self._gate.settimeout(0.1)
        self.url = f"ws://127.0.0.1:{self._gate.getsockname()[1]}"
        self.cut, self._stop = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Cable:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with self._gate:
            while not self._stop.is_set():
                with suppress(TimeoutError):
                    near, _ = self._gate.accept()
                    self._threads.append(threading.Thread(target=self._carry, args=(near,)))
                    self._threads[-1].start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._port)) as far:
            other = {near: far, far: near}
            while not self._stop.is_set():
                for source in select.select([near, far], [], [], 0.1)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if not self.cut.is_set():
                        other[source].sendall(data)


def test_a_line_that_falls_silent_is_noticed_on_both_sides_and_comes_back(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet", heartbeat_s=1.0) as app, app.client() as client, Cable(app.url) as cable:
        robot = Robot(cable.url, enrolled(client, "arm"), tmp_path / "arm")
        with robot:
            wait_for(lambda: robot.engine.line.connected, "the line")
            cable.cut.set()
            wait_for(lambda: not robot.engine.line.connected, "the loss of the line")
            wait_for(lambda: not client.robot("arm")["online"], "the server's notice of it")
            cable.cut.clear()
            wait_for(lambda: robot.engine.line.connected, "the line again")


def test_a_robot_that_says_nothing_is_offline_and_its_line_is_closed(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet", heartbeat_s=0.2) as app, app.client() as client:
        url = f"{app.url.replace('http', 'ws', 1)}/v1/robots/connect"
        with connect(url, additional_headers={"Authorization": f"Bearer {enrolled(client, 'arm')}"}) as line:
            line.send(json.dumps({"type": "hello", "protocols": [2, 1], "outbox_id": "box"}))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    line.recv(40)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4000 and closed.value.rcvd.reason.startswith("HEARTBEAT_LOST")
        wait_for(lambda: not client.robot("arm")["online"], "offline")


def test_the_waits_between_attempts_grow_to_a_minute_and_differ_between_robots() -> None:
    for failures in range(1, 100):
        waits = {retry_after_s(failures) for _ in range(20)}
        longest = min(2.0 ** (failures - 1), 60.0)
        assert all(longest / 2 <= wait <= longest for wait in waits) and len(waits) > 10


def test_a_robot_trades_its_token_for_a_new_one_and_keeps_it_over_a_restart(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet") as app, app.client() as client:
        folder = tmp_path / "arm"
        settings = BridgeSettings(
            server=app.url.replace("http", "ws", 1), enrolment_code=client.make_code("arm"), state_dir=str(folder)
        )
        old = token(settings)

        def keep(new: str) -> None:
            write_secret(settings.token_file, new)

        with Robot(app.url, old, folder, keep_token=keep) as robot:
            wait_for(lambda: robot.engine.line.connected, "the line")
            client.rotate_tokens(["arm"])
            wait_for(lambda: not client.robot("arm")["rotating"], "the new token")
            wait_for(lambda: client.robot("arm")["online"], "the line with it")
        new = token(settings)
        assert new != old and (folder / "token").stat().st_mode & 0o077 == 0
        with Robot(app.url, old, folder) as thief:
            wait_for(lambda: "TOKEN_INVALID" in thief.engine.line.message, "the refusal of the old one")
        with Robot(app.url, new, folder) as robot:
            wait_for(lambda: robot.engine.line.connected, "the line")


def test_a_robot_that_cannot_keep_a_new_token_goes_on_with_the_old_one(tmp_path: Path) -> None:
    def full(new: str) -> None:
        raise OSError(28, "No space left on device")

    with FleetApp(tmp_path / "fleet") as app, app.client() as client:
        secret = enrolled(client, "arm")
        for keep, version in ((full, "1.0.0"), (None, "1.1.0")):  # None: a robot that does not know of rotation
            with Robot(app.url, secret, tmp_path / "arm", keep_token=keep) as robot:
                client.rotate_tokens(["arm"])
                robot.acts(1.0, version)
                wait_for(lambda v=version: client.robot("arm")["status"].get("active_version") == v, "the status")
                wait_for(lambda robot=robot: robot.engine.line.connected, "the line with the old token")
                assert client.robot("arm")["rotating"]


def test_what_ran_and_who_decided_it_is_known_of_a_robot_that_was_away_for_hours(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app, app.client() as client:
        make_bundle(tmp_path / "b", name="pick", version="1.1.0")
        client.publish(tmp_path / "b")
        ada = app.client(client.make_key("ada", "operator"))
        secret = enrolled(client, "arm")
        with Robot(app.url, secret, tmp_path / "arm") as robot:
            robot.acts(1000.0, "1.0.0")
            order = ada.deploy("pick@1.1.0", ["arm"])[0]["id"]
            wait_for(lambda: robot.offers, "the offer")
            wait_for(lambda: not robot.engine.outbox_size, "the server to have stored what ran")
        away = Robot("ws://127.0.0.1:9", secret, tmp_path / "arm")
        with away:
            away.acts(1500.0, "1.0.0", state="SWAPPING", update_id=order)
            away.acts(2000.0, "1.1.0", state="TRIAL", update_id=order)
            event = protocol.Event(
                time_s=3000.0, update_id=order, from_state="TRIAL", to_state="ROLLED_BACK", version="1.1.0",
                error_code="SCORES_WORSE",
            )  # fmt: skip
            away.engine.on_event(event)
            away.acts(3000.0, "1.0.0", state="ROLLED_BACK", update_id=order)
            away.acts(3600.0, "", state="IDLE", update_id=order)
            away.acts(3700.0, "", state="IDLE", update_id=order)
            away.acts(3800.0, "1.0.0", state="IDLE", update_id=order)
            wait_for(lambda: away.engine.outbox_size >= 5, "the outbox")
        assert len(client.history("arm")) == 1, "nothing is known yet"
        with Robot(app.url, secret, tmp_path / "arm") as robot:
            robot.acts(9000.0, "1.0.0", state="IDLE", update_id=order)
            wait_for(lambda: client.history("arm")[0]["known_until_s"] == 9000.0, "the record")
            runs = [
                (r["begin_s"], r["end_s"], r["version"], r["cause"], r["ordered_by"]) for r in client.history("arm")
            ]
            assert runs == [
                (3800.0, None, "1.0.0", "", "ada"),
                (3600.0, 3800.0, "", "", "ada"),
                (3000.0, 3600.0, "1.0.0", "ROLLBACK", ""),
                (2000.0, 3000.0, "1.1.0", "UPDATE", "ada"),
                (1000.0, 2000.0, "1.0.0", "FOUND", ""),
            ]
            trial = client.history("arm", 2999.0)
            assert [(r["version"], r["command_id"], r["error_code"], r["ended_by"]) for r in trial] == [
                ("1.1.0", order, "SCORES_WORSE", "")
            ]
            assert client.history("arm", 999.0) == []

            def back(version: str) -> None:
                robot.acts(9500.0, version, state="COMMITTED", update_id=order)

            robot.rolled_back = back
            robot.acts(9200.0, "1.1.0", state="COMMITTED", update_id=order, previous_version="1.0.0")
            undo = ada.rollback(["arm"], reason="drops the cup")[0]["id"]
            newest = wait_for(lambda: [r for r in client.history("arm") if r["command_id"] == undo], "the way back")
            assert (newest[0]["version"], newest[0]["cause"], newest[0]["ordered_by"]) == ("1.0.0", "ROLLBACK", "ada")
        with Robot(app.url, secret, tmp_path / "arm") as robot:
            robot.acts(9600.0, "1.0.0", state="COMMITTED", update_id=order)
            wait_for(lambda: client.history("arm")[0]["known_until_s"] == 9600.0, "the status")
            assert client.history("arm")[0]["begin_s"] == 9500.0, "a restart of the bridge is no change"
        ada.close()
        with pytest.raises(MissingError):
            client.history("nobody")


def url_of_order(robot: Robot) -> str:
    """Where the manifest of the robot's open order lies."""

    async def look() -> str:
        order = robot.engine._outbox.open_orders()[0].command.order
        assert isinstance(order, protocol.ModelUpdate)
        return order.manifest_url

    return asyncio.run_coroutine_threadsafe(look(), robot.engine._loop).result(40)


def test_an_open_order_is_offered_with_the_newest_pass(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app, app.client() as client:
        make_bundle(tmp_path / "b", name="pick", version="1.0.0")
        client.publish(tmp_path / "b")
        secret = enrolled(client, "arm")
        client.deploy("pick", ["arm"])
        with Robot(app.url, secret, tmp_path / "arm") as robot:  # no manager is heard: the order waits
            wait_for(lambda: robot.engine.last_command_id, "the order")
            first = url_of_order(robot)
        app.clock.ahead_s = 8 * 86400.0
        with Robot(app.url, secret, tmp_path / "arm") as robot:
            wait_for(lambda: url_of_order(robot) != first, "the order with a new pass")
            robot.acts(1.0, "0.9.0", state="IDLE")
            url = wait_for(lambda: robot.offers, "the offer")[-1][1].manifest_url
            assert httpx.get(url, timeout=40.0).status_code == 200
