# SPDX-License-Identifier: Apache-2.0
"""Who may do what: roles on every route, tokens that rotate and end, files by key, token or pass, limits, no secrets in logs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.fleet_app import FleetApp
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vla_fleet.client import Client
from vla_fleet.errors import ConflictError, FleetError, RoleError, SignInError
from vla_fleet.server.passes import VALID_S

ROLES = ("viewer", "operator", "publisher", "admin")
EVERYBODY, ALL = ("nobody", "robot", *ROLES), ROLES
ALLOWED = {
    "GET /healthz": EVERYBODY,
    "GET /readyz": EVERYBODY,
    "POST /v1/enrol": EVERYBODY,  # the code is the secret
    "GET /files/{ticket}/{name}/{version}/manifest.json": (),  # the pass is the secret, and this is none
    "GET /files/{ticket}/blobs/sha256/{sha256}": (),
    "GET /files/{ticket}/{name}/{version}/deltas.json": (),
    "GET /files/{ticket}/trust/{file}": (),
    "GET /files/{name}/{version}/manifest.json": ("robot", *ALL),
    "GET /files/{name}/{version}/deltas.json": ("robot", *ALL),
    "GET /files/trust/{file}": ("robot", *ALL),
    "GET /files/blobs/sha256/{sha256}": ("robot", *ALL),
    "GET /v1/robot/{kind}/{sha256}": ("robot",),
    "PUT /v1/robot/{kind}/{sha256}": ("robot",),
    "GET /v1/adapters": ALL,
    "GET /v1/adapters/{sha256}/file": ALL,
    "GET /v1/trust": ALL,
    "PUT /v1/trust/targets": ("publisher", "admin"),
    "GET /v1/episodes": ALL,
    "GET /v1/episodes/{episode}": ALL,
    "GET /v1/episodes/{episode}/file": ALL,
    "GET /v1/datasets": ALL,
    "POST /v1/datasets": ("publisher", "admin"),
    "GET /metrics": ALL,
    "GET /v1/commands": ALL,
    "GET /v1/events": ALL,
    "GET /v1/log": ALL,
    "GET /v1/models": ALL,
    "GET /v1/models/{name}/aliases": ALL,
    "GET /v1/models/{name}/lineage": ALL,
    "GET /v1/robots": ALL,
    "GET /v1/robots/{name}": ALL,
    "GET /v1/robots/{name}/history": ALL,
    "POST /v1/deployments": ("operator", "admin"),
    "POST /v1/rollbacks": ("operator", "admin"),
    "GET /v1/rollouts": ALL,
    "GET /v1/rollouts/{rollout}": ALL,
    "GET /v1/rollouts/{rollout}/log": ALL,
    "POST /v1/rollouts/forecast": ALL,
    "POST /v1/rollouts": ("operator", "admin"),
    "POST /v1/rollouts/{rollout}/pause": ("operator", "admin"),
    "POST /v1/rollouts/{rollout}/resume": ("operator", "admin"),
    "POST /v1/rollouts/{rollout}/approve": ("operator", "admin"),
    "POST /v1/rollouts/{rollout}/abort": ("operator", "admin"),
    "GET /v1/experiments": ALL,
    "GET /v1/experiments/{id}": ALL,
    "GET /v1/experiments/{id}/log": ALL,
    "POST /v1/experiments/plan": ALL,
    "POST /v1/experiments": ("operator", "admin"),
    "POST /v1/experiments/{id}/stop": ("operator", "admin"),
    "POST /v1/experiments/{id}/promote": ("operator", "admin"),
    "HEAD /v1/blobs/{sha256}": ("publisher", "admin"),
    "PUT /v1/blobs/{sha256}": ("publisher", "admin"),
    "POST /v1/models/{name}/versions": ("publisher", "admin"),
    "POST /v1/models/{name}/versions/{version}/deltas": ("publisher", "admin"),
    "DELETE /v1/models/{name}/versions/{version}": ("publisher", "admin"),
    "PUT /v1/models/{name}/aliases/{alias}": ("publisher", "admin"),
    "POST /v1/garbage-collections": ("admin",),
    "POST /v1/enrolment-codes": ("admin",),
    "POST /v1/token-rotations": ("admin",),
    "DELETE /v1/robots/{name}/token": ("admin",),
    "GET /v1/keys": ("admin",),
    "POST /v1/keys": ("admin",),
    "DELETE /v1/keys/{name}": ("admin",),
}
"""Who gets past the door of each route. A route that is not here fails the test."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetApp]:
    with FleetApp(tmp_path_factory.mktemp("fleet"), heartbeat_s=60.0) as app:
        yield app


@pytest.fixture(scope="module")
def client(app: FleetApp) -> Iterator[Client]:
    with app.client() as client:
        yield client


@pytest.fixture(scope="module")
def pick(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bundles") / "pick"
    make_bundle(folder, name="pick", version="1.0.0")
    return client.publish(folder)


@contextmanager
def line(app: FleetApp | FleetServer, token: str) -> Iterator[ClientConnection]:
    url = f"{app.url.replace('http', 'ws', 1)}/v1/robots/connect"
    headers = {"Authorization": f"Bearer {token}"}
    with connect(url, additional_headers=headers, open_timeout=40, close_timeout=2) as opened:
        opened.send(json.dumps({"type": "hello", "protocols": [1], "outbox_id": "box"}))
        yield opened


def heard(opened: ClientConnection, kind: str) -> dict[str, Any]:
    """Return the next message of that type."""
    while True:
        message: dict[str, Any] = json.loads(opened.recv(40))
        if message["type"] == kind:
            return message


def closed(opened: ClientConnection) -> tuple[int, str]:
    """Wait for the end of a line; return its number and reason."""
    with pytest.raises(ConnectionClosed) as end:
        while True:
            opened.recv(40)
    assert end.value.rcvd is not None
    return end.value.rcvd.code, end.value.rcvd.reason


def test_every_route_lets_in_whom_it_should_and_nobody_else(app: FleetApp, client: Client) -> None:
    document = httpx.get(f"{app.url}/openapi.json", timeout=40.0).json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes == set(ALLOWED), "every route says here who may use it"
    secrets = {"nobody": "", "robot": enrolled(client, "doorman")}
    secrets |= {role: client.make_key(f"door-{role}", role) for role in ROLES}
    wrong, http = [], httpx.Client(base_url=app.url, timeout=40.0)
    for route, allowed in ALLOWED.items():
        method, path = route.split(" ")
        # of the right shape, so that it is the door that refuses; nothing is there, so that nothing happens
        path = path.replace("{kind}", "episodes").replace("{sha256}", "0" * 64).replace("{version}", "9.9.9")
        path = re.sub(r"\{\w+\}", "nothing", path)
        for who, secret in secrets.items():
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            status = http.request(method, path, headers=headers).status_code
            refused = status in (401, 403) and route != "POST /v1/enrol"
            if refused == (who in allowed):
                wrong.append(f"{route}: {who} got {status}")
    http.close()
    assert not wrong, "\n".join(wrong)


def test_a_token_rotates_without_a_moment_in_which_the_robot_has_none(app: FleetApp, client: Client) -> None:
    old = enrolled(client, "turner")
    with line(app, old) as opened:
        assert heard(opened, "welcome")["token"] == ""
        assert client.rotate_tokens(["turner"]) == ["turner"]
        assert closed(opened) == (4002, "TOKEN_ROTATES")
    with line(app, old) as opened:  # the robot loses the new one before it has kept it
        lost = heard(opened, "welcome")["token"]
    with line(app, old) as opened:
        new = heard(opened, "welcome")["token"]
        assert client.robot("turner")["rotating"] and new not in ("", old, lost)
    with line(app, new) as opened:
        assert heard(opened, "welcome")["token"] == "" and not client.robot("turner")["rotating"]
    for ended in (old, lost):
        with pytest.raises(InvalidStatus), line(app, ended):
            pass


def test_a_robot_that_is_revoked_loses_its_line_at_once_and_its_files(
    app: FleetApp, client: Client, pick: dict[str, Any]
) -> None:
    token = enrolled(client, "exile")
    with line(app, token) as opened:
        heard(opened, "received")
        client.deploy("pick", ["exile"])
        url = heard(opened, "command")["order"]["manifest_url"]
        assert httpx.get(url, timeout=40.0).status_code == 200
        client.revoke_token("exile")
        assert closed(opened) == (1008, "TOKEN_INVALID")
    assert httpx.get(url, timeout=40.0).json()["error_code"] == "PASS_INVALID"
    assert client.robot("exile")["revoked"]
    with pytest.raises(InvalidStatus), line(app, token):
        pass
    with line(app, enrolled(client, "exile")) as opened:
        heard(opened, "welcome")
        assert httpx.get(url, timeout=40.0).status_code == 200, "let in again"


def test_a_second_line_of_a_robot_ends_the_first(app: FleetApp, client: Client) -> None:
    token = enrolled(client, "twin")
    with line(app, token) as first:
        heard(first, "received")
        with line(app, token) as second:
            heard(second, "received")
            assert closed(first) == (4001, "LINE_REPLACED: this robot has connected again")
            second.ping().wait(40)


def test_an_order_leads_to_its_files_for_its_robot_for_a_week_and_the_server_keeps_no_pass(
    app: FleetApp, client: Client, pick: dict[str, Any]
) -> None:
    with line(app, enrolled(client, "fetcher")) as opened:
        command = client.deploy("pick@1.0.0", ["fetcher"])[0]
        url = heard(opened, "command")["order"]["manifest_url"]
    manifest = httpx.get(url, timeout=40.0)
    assert manifest.status_code == 200
    blob = httpx.URL(url).join(f"../../blobs/sha256/{manifest.json()['files'][0]['sha256']}")
    assert httpx.get(blob, timeout=40.0).status_code == 200
    ticket = url.split("/files/")[1].split("/")[0]
    assert ticket not in json.dumps(client.commands([command["id"]])) and ticket.startswith("fetcher~")
    robot, end, mac = ticket.split("~")
    for forged in (
        f"{robot}~{int(end) + 9}~{mac}",
        f"other~{end}~{mac}",
        f"{robot}~{end}~{'0' * 64}",
        "x",
        "~~",
        f"{robot}~{end}",
    ):
        assert httpx.get(url.replace(ticket, forged), timeout=40.0).status_code == 403, forged
    app.clock.ahead_s = VALID_S + 60
    try:
        assert httpx.get(url, timeout=40.0).json()["error_code"] == "PASS_INVALID"
    finally:
        app.clock.ahead_s = 0.0


def test_an_operator_may_open_the_files(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", name="pick", version="1.0.0")
    with FleetApp(tmp_path / "fleet", open_files=True) as app, app.client() as client:
        client.publish(tmp_path / "b")
        assert httpx.get(f"{app.url}/files/pick/1.0.0/manifest.json", timeout=40.0).status_code == 200


def test_a_revoked_key_ends_and_the_last_admin_stays(app: FleetApp, client: Client) -> None:
    key = client.make_key("guest", "viewer")
    with app.client(key) as guest:
        guest.models()
        client.revoke_key("guest")
        with pytest.raises(SignInError, match="KEY_INVALID"):
            guest.models()
    made = client.keys()
    guest_key = next(k for k in made if k["name"] == "guest")
    assert guest_key["revoked_s"] and guest_key["created_by"] == "admin" and key not in json.dumps(made)
    with pytest.raises(ConflictError, match="KEY_EXISTS"):
        client.make_key("guest", "admin")
    for k in made:
        if k["role"] == "admin" and k["name"] != "admin" and not k["revoked_s"]:
            client.revoke_key(k["name"])
    with pytest.raises(ConflictError, match="LAST_ADMIN"):
        client.revoke_key("admin")


def test_one_code_lets_one_robot_in_however_many_try_at_once(app: FleetApp, client: Client) -> None:
    code, answers = client.make_code("contested"), []

    def attempt() -> None:
        answers.append(httpx.post(f"{app.url}/v1/enrol", json={"code": code}, timeout=40.0).status_code)

    threads = [threading.Thread(target=attempt) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [201, 401, 401, 401, 401]


def test_too_many_requests_are_refused_with_the_time_to_wait(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet", key_requests_s=0.1) as app, app.client() as client:
        app.clock.stands_at_s = 2e9
        guest = {"Authorization": f"Bearer {client.make_key('guest', 'viewer')}"}
        code = client.make_code("arm")
        wrong = [httpx.post(f"{app.url}/v1/enrol", json={"code": "wrong"}, timeout=40.0) for _ in range(11)]
        assert [answer.status_code for answer in wrong] == [401] * 10 + [429]
        busy = httpx.post(f"{app.url}/v1/enrol", json={"code": code}, timeout=40.0)
        assert (busy.status_code, busy.json()["error_code"]) == (429, "RATE_LIMITED")
        app.clock.ahead_s = 60.0
        client.enrol(code)
        app.rooms.key_requests._spent["guest"] = (1.0, app.clock.now())
        assert httpx.get(f"{app.url}/v1/models", headers=guest, timeout=40.0).status_code == 200
        busy = httpx.get(f"{app.url}/v1/models", headers=guest, timeout=40.0)
        assert (busy.status_code, busy.json()["error_code"], busy.headers["Retry-After"]) == (429, "RATE_LIMITED", "10")
        client.models()  # another key has its own limit
        app.clock.ahead_s = 71.0
        assert httpx.get(f"{app.url}/v1/models", headers=guest, timeout=40.0).status_code == 200


def test_a_robot_that_says_too_much_is_read_later_and_loses_nothing(tmp_path: Path) -> None:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0, robot_messages_s=50.0) as app, app.client() as client:
        app.rooms.robot_messages._burst = 5
        event = {"type": "event", "time_s": 1.0, "from_state": "", "to_state": "X"}
        with line(app, enrolled(client, "talker")) as opened:
            for seq in range(1, 31):
                opened.send(json.dumps({**event, "seq": seq}))
            while heard(opened, "received")["seq"] < 30:
                pass
        assert len(client.events("talker")) == 30


def test_what_is_too_large_is_refused_before_it_is_read(app: FleetApp, client: Client) -> None:
    key = {"Authorization": f"Bearer {app.key}"}
    body = b'{"manifest": "' + b"x" * (9 << 20) + b'"}'
    refused = httpx.post(f"{app.url}/v1/models/pick/versions", content=body, headers=key, timeout=40.0)
    assert (refused.status_code, refused.json()["error_code"]) == (413, "BODY_TOO_LARGE")
    chunks = httpx.post(
        f"{app.url}/v1/models/pick/versions", content=(b"x" * (1 << 20) for _ in range(9)), headers=key, timeout=40.0
    )
    assert chunks.status_code == 413


def test_a_run_leaves_no_secret_in_the_log_or_the_database(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", name="pick", version="1.0.0")
    with FleetServer(tmp_path / "fleet", heartbeat_s=20.0) as server, server.client() as client:
        code, key = client.make_code("arm"), client.make_key("guest", "viewer")
        old = client.enrol(code)[1]
        client.publish(tmp_path / "b")
        client.rotate_tokens(["arm"])
        with line(server, old) as opened:
            new = heard(opened, "welcome")["token"]
        with line(server, new) as opened:
            client.deploy("pick", ["arm"])
            url = heard(opened, "command")["order"]["manifest_url"]
        assert httpx.get(url, timeout=40.0).status_code == 200
        client.revoke_token("arm")
        with pytest.raises(FleetError):
            client.enrol(code)
        with Client(server.url, key + "x") as stranger, pytest.raises(FleetError):
            stranger.models()
        with pytest.raises(InvalidStatus), line(server, old):
            pass
        with server.client(key) as guest, pytest.raises(RoleError):
            guest.make_code("other")
        ticket = url.split("/files/")[1].split("/")[0].rpartition("~")[2]
        assert client.events("arm", 1) == []
        server.stop()
        kept = b"".join(path.read_bytes() for path in (tmp_path / "fleet").glob("fleet.db*"))
        for secret in (code, key, old, new, ticket):
            assert secret not in server.log and secret.encode() not in kept
        lines = [json.loads(text) for text in server.log.splitlines() if text.startswith("{")]
        files = {line["route"] for line in lines if line["event"] == "request"}
        assert "/files/{ticket}/{name}/{version}/manifest.json" in files, "requests are logged by route"
        for secret_file in ("admin.key", "files.key"):
            assert (tmp_path / "fleet" / secret_file).stat().st_mode & 0o077 == 0


def test_metrics_say_how_the_fleet_stands_and_what_was_refused(
    app: FleetApp, client: Client, pick: dict[str, Any]
) -> None:
    token = enrolled(client, "measured")
    client.deploy("pick", ["measured"])
    with line(app, token) as opened:
        status = {"type": "status", "time_s": 1.0, "state": "IDLE", "active_version": "7.7.7"}
        opened.send(json.dumps(status))
        opened.send("nonsense")
        assert closed(opened)[0] == 1007
    text = httpx.get(f"{app.url}/metrics", headers={"Authorization": f"Bearer {app.key}"}, timeout=40.0).text
    assert 'vla_fleet_robots{state="IDLE",version="7.7.7"} 1.0' in text
    assert re.search(r"^vla_fleet_robots_connected [1-9]", text, re.MULTILINE)
    assert re.search(r'^vla_fleet_commands_open\{type="MODEL_UPDATE"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^vla_fleet_messages_total\{type="status"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^vla_fleet_lines_refused_total\{code="MESSAGE_INVALID"\} [1-9]', text, re.MULTILINE)
    assert 'route="/v1/robots/{name}"' in text or 'route="/v1/deployments"' in text
    assert (
        httpx.get(f"{app.url}/healthz", timeout=40.0).status_code
        == httpx.get(f"{app.url}/readyz", timeout=40.0).status_code
        == 200
    )
