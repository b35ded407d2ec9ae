# SPDX-License-Identifier: Apache-2.0
"""Two servers of one fleet on PostgreSQL and NATS: what is ordered at one reaches robots at the other, whatever is killed."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.replicas import Replicas, answer, finished
from support.rollouts import MODEL, OLD
from support.rollouts import NEW as NEW_VERSION
from support.servers import Nats, Postgres
from support.waits import wait_for

from vla_evidence.log.replay import replay_file
from vla_fleet.cli.main import main
from vla_fleet.client import Client
from vla_fleet.errors import FleetError

NAMES = ("arm_0", "arm_1")
EPISODES = 80
OLD_MODEL = f"pick_place@{OLD}"
STAGES = [{"name": "canary", "share": 0.5, "duration_s": 1.0, "margin": 0.2}, {"name": "full", "share": 1.0}]


def follow(client: Client, rollout: str, *states: str) -> dict[str, Any]:
    """Wait until a rollout is in one of these states."""
    deadline = time.monotonic() + 90.0
    found: dict[str, Any] = {}
    while time.monotonic() < deadline:
        with suppress(FleetError):
            found = client.rollout(rollout)
            if found["state"] in states:
                return found
        time.sleep(0.3)
    raise AssertionError(f"not {states}: {found}")


def test_a_rollout_goes_on_at_the_other_server_when_the_one_that_steers_it_is_killed(
    tmp_path: Path, postgres: Postgres, nats: Nats
) -> None:
    with Replicas(tmp_path, "--database", postgres.url("killed"), "--bus", nats.url) as fleet:
        with fleet.client(fleet.a) as at_a:
            fleet.publish(at_a)
            for name, server in zip(NAMES, fleet.servers, strict=True):
                fleet.add(at_a, name, server, old=0.0, new=1.0)
            orders = finished(at_a, [order["id"] for order in at_a.deploy(OLD_MODEL, NAMES)])
            assert [order["state"] for order in orders] == ["DONE", "DONE"], "also at the server that was not asked"
            wait_for(lambda: all(r["status"].get("committed_version") for r in at_a.robots()), "the statuses")
        dead = fleet.leader()
        alive = fleet.b if dead is fleet.a else fleet.a
        with fleet.client(alive) as client:
            rollout = client.create_rollout(MODEL, stages=STAGES, judge="simple")["id"]
            follow(client, rollout, "JUDGING")
            for robot in fleet.robots.values():
                robot.episodes(EPISODES // 2)
            dead.kill()
            for robot in fleet.robots.values():  # one of them has no line now: its outbox keeps what it does
                robot.episodes(EPISODES // 2)
            for name in NAMES:
                fleet.move(name, alive)
            found = follow(client, rollout, "DONE", "ROLLED_BACK")
            log = answer(lambda: client.rollout_log(rollout))
    assert found["state"] == "DONE"
    actions = [line["action"].removeprefix("rollout.") for line in found["history"] if "asking" not in line["action"]]
    assert actions == ["create", "judging", "installing", "done"], "each once"
    for robot in fleet.robots.values():
        assert robot.lineage == [OLD, NEW_VERSION]
        assert list(robot.updates.values()).count(NEW_VERSION) == 2, "installed once, activated once"
    (tmp_path / "log.jsonl").write_bytes(log)
    assert replay_file(tmp_path / "log.jsonl").outcomes == found["outcomes"]["counted"], "none lost or taken in twice"


def test_orders_reach_robots_at_the_other_server_while_nats_is_down_and_after_it(
    tmp_path: Path, postgres: Postgres
) -> None:
    with (
        Nats() as own,
        Replicas(tmp_path, "--database", postgres.url("no_bus"), "--bus", own.url) as fleet,
        fleet.client(fleet.a) as client,
    ):
        fleet.publish(client)
        robot = fleet.add(client, "arm_0", fleet.b)
        for version, happens in ((OLD, own.kill), (NEW_VERSION, own.start)):
            happens()
            ids = [order["id"] for order in client.deploy(f"pick_place@{version}", ["arm_0"])]
            assert [order["state"] for order in finished(client, ids)] == ["DONE"]
        assert robot.lineage == [OLD, NEW_VERSION]


def test_what_robots_do_while_the_database_is_down_is_stored_once_when_it_is_back(tmp_path: Path, nats: Nats) -> None:
    with (
        Postgres() as own,
        Replicas(tmp_path, "--database", own.url("fleet"), "--bus", nats.url) as fleet,
        fleet.client(fleet.a) as client,
    ):
        fleet.publish(client)
        for name, server in zip(NAMES, fleet.servers, strict=True):
            fleet.add(client, name, server)
        finished(client, [order["id"] for order in client.deploy(OLD_MODEL, NAMES)])
        own.kill()
        for robot in fleet.robots.values():
            robot.episodes(20)
        with pytest.raises(FleetError, match="DATABASE_UNREACHABLE"):
            client.robots()
        own.start()
        answer(client.robots, "the database")
        for name, server in zip(NAMES, reversed(fleet.servers), strict=True):  # sooner than a robot would by itself
            fleet.move(name, server)
        lines = [robot._bridge for robot in fleet.robots.values()]
        wait_for(lambda: all(line is not None and line.outbox_size == 0 for line in lines), "the outboxes")
        rows = own.query("fleet", "SELECT robot, count(*), count(DISTINCT episode_id) FROM outcomes GROUP BY robot")
        assert sorted(map(tuple, rows)) == [("arm_0", 20, 20), ("arm_1", 20, 20)]
        ids = [order["id"] for order in client.deploy(MODEL, NAMES)]
        assert [order["state"] for order in finished(client, ids)] == ["DONE", "DONE"]


@pytest.mark.parametrize(
    ("option", "url", "code"),
    [
        ("--database", "postgresql://nobody@127.0.0.1:9/fleet", "DATABASE_UNREACHABLE"),
        ("--database", "mysql://127.0.0.1/fleet", "DATABASE_URL"),
        ("--bus", "nats://127.0.0.1:9", "BUS_UNREACHABLE"),
        ("--blobs", "ftp://files", "BLOBS_URL"),
        ("--blobs", "s3://fleet", "BLOBS_UNREACHABLE"),
    ],
)
def test_a_server_that_finds_no_other_says_so_in_one_line_and_does_not_start(
    tmp_path: Path,
    option: str,
    url: str,
    code: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["vla-fleet", "serve", "--data", str(tmp_path), "--port", "0", option, url])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.startswith(f"vla-fleet: {code}: ") and said.count("\n") == 1, said
