# SPDX-License-Identifier: Apache-2.0
"""A robot with a trust root accepts what the keys behind it say now, and nothing else, whatever a server serves.

The attacks are those of TUF (theupdateframework.io/security): real keys, real HTTP, the client that the manager has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.refusals import refused
from support.trust import Client, SignedRegistry, expired, stranger

from vla_checkpoint.repository import keys
from vla_checkpoint.repository.metadata import utc_now
from vla_ota_manager.errors import ConfigError
from vla_sim.checkpoint_server import Behaviour, CheckpointServer


class World:
    """A signed registry behind a server, with versions that are only manifests, and robots beside it."""

    def __init__(self, folder: Path, server: CheckpointServer) -> None:
        self.folder, self.server = folder, server
        self.registry = SignedRegistry(server.root, folder / "keys")
        self.publish("1.0.0")

    def publish(self, version: str) -> None:
        self.add(version)
        self.registry.sign()

    def add(self, version: str) -> None:
        from support.bundles import make_bundle

        make_bundle(self.server.root / "pick" / version, name="pick", version=version)

    def robot(self, **settings: Any) -> Client:
        return Client(self.folder / "store", self.server.base, self.registry.trust_root, **settings)


@pytest.fixture
def world(tmp_path: Path, server: CheckpointServer) -> Iterator[World]:
    yield World(tmp_path, server)


def test_what_is_signed_is_found_and_what_is_not_is_not(world: World) -> None:
    robot = world.robot()
    world.add("1.1.0")
    manifest = (world.server.root / "pick/1.0.0/manifest.json").read_bytes()
    robot.find().verify_length_and_hashes(manifest)
    assert robot.find("pick/1.1.0/manifest.json") is None
    world.registry.sign()
    assert robot.find("pick/1.1.0/manifest.json") is not None
    assert [robot.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1, 2, 2, 2]


def test_what_did_not_change_is_not_fetched_again(world: World) -> None:
    robot = world.robot()
    robot.find()
    before = len(world.server.requests)
    robot.find()
    assert [path for path, _ in world.server.requests[before:]] == ["/trust/2.root.json", "/trust/timestamp.json"]


def test_a_version_that_was_taken_back_is_no_longer_found(world: World) -> None:
    robot = world.robot()
    robot.find()
    (world.server.root / "pick/1.0.0/manifest.json").unlink()
    world.registry.sign()
    assert robot.find() is None


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_freeze__what_has_expired_counts_no_longer(world: World, role: str) -> None:
    robot, registry = world.robot(), world.registry
    if role == "root":
        registry.sign()
        registry.tamper("1.root.json", lambda root: (expired(root), setattr(root, "version", 2)), to="2.root.json")
    else:
        registry.tamper(registry.name_of(role), expired)
        registry.follow(role)
    with refused("TRUST_EXPIRED") as caught:
        robot.find()
    assert "clock" in str(caught.value) and "signed again" in str(caught.value)


def test_freeze__what_is_signed_again_in_time_counts(world: World) -> None:
    registry, robot = world.registry, world.robot()
    for path in registry.trust.glob("*s*.json"):
        path.unlink()
    registry.sign(age=timedelta(days=8))
    with refused("TRUST_EXPIRED"):
        robot.find()
    registry.sign()
    assert robot.find() is not None
    assert robot.version("timestamp") == 2 and robot.version("targets") == 1


def test_rollback_of_the_timestamp(world: World) -> None:
    robot, before = world.robot(), world.registry.files()
    world.publish("1.1.0")
    robot.find()
    world.registry.put_back(before)
    with refused("TRUST_ROLLBACK"):
        robot.find()
    assert robot.version("timestamp") == 2
    world.registry.sign()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_rollback_of_snapshot_or_targets_under_a_new_timestamp(world: World, role: str) -> None:
    registry, robot = world.registry, world.robot()
    world.publish("1.1.0")
    robot.find()
    newest = registry.name_of(role)
    (registry.trust / newest).unlink()  # with a stolen online key: what is older is named again
    assert registry.name_of(role) == f"1.{role}.json"
    registry.follow(role)
    with refused("TRUST_ROLLBACK"):
        robot.find()
    assert robot.version("targets") == 2


def test_mix_and_match__files_that_do_not_belong_together_are_refused(world: World) -> None:
    registry, robot = world.registry, world.robot()
    registry.tamper("1.snapshot.json", lambda snapshot: setattr(snapshot, "expires", utc_now().replace(microsecond=0)))
    with refused("TRUST_METADATA"):
        robot.find()
    assert robot.version("snapshot") == 0


def test_mix_and_match__targets_of_another_snapshot_are_refused(world: World) -> None:
    registry, robot, before = world.registry, world.robot(), world.registry.files()
    world.publish("1.1.0")
    (registry.trust / "2.targets.json").write_bytes(before["1.targets.json"])
    with refused("TRUST_METADATA"):
        robot.find()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_arbitrary_software__what_strangers_sign_is_refused(world: World, role: str) -> None:
    registry, robot = world.registry, world.robot()
    registry.tamper(registry.name_of(role), lambda signed: None, [stranger()])
    registry.follow(role)
    with refused("TRUST_SIGNATURE"):
        robot.find()


def test_a_signature_that_does_not_fit_is_none(world: World) -> None:
    name = world.registry.trust / "timestamp.json"
    name.write_bytes(name.read_bytes().replace(b'"version":1}', b'"version":7}'))
    with refused("TRUST_SIGNATURE"):
        world.robot().find()


def test_a_threshold_that_is_not_met_is_refused_and_one_key_twice_counts_once(world: World) -> None:
    registry = SignedRegistry(world.server.root, world.folder / "three", root_keys=3, threshold=2)
    registry.sign()
    robot = Client(world.folder / "other", world.server.base, registry.trust_root)
    robot.find()
    signers = keys.load_signers(registry.keys)
    for lone in (["root"], ["root", "root"], ["root", "online"]):
        registry.tamper(
            "1.root.json", lambda root: setattr(root, "version", 2), [signers[name] for name in lone], to="2.root.json"
        )
        with refused("TRUST_SIGNATURE"):
            robot.find()
    both = [signers["root"], signers["root-3"]]
    registry.tamper("1.root.json", lambda root: setattr(root, "version", 2), both, to="2.root.json")
    assert robot.find() is not None and robot.version("root") == 2


@pytest.mark.parametrize("name", ["online", "targets", "root"])
def test_rotation__a_key_is_replaced_and_the_old_one_counts_no_longer(world: World, name: str) -> None:
    registry, robot = world.registry, world.robot()
    robot.find()
    old = keys.load_signers(registry.keys)[name]
    keys.rotate(registry.keys, utc_now(), name)
    world.publish("1.1.0")
    assert robot.find("pick/1.1.0/manifest.json") is not None and robot.version("root") == 2
    role = {"online": "timestamp", "targets": "targets", "root": "root"}[name]
    if role == "root":
        registry.tamper("2.root.json", lambda root: setattr(root, "version", 3), [old], to="3.root.json")
    else:
        registry.tamper(
            registry.name_of(role), lambda signed: setattr(signed, "version", 9), [old], to=f"9.{role}.json"
        )
        if role == "timestamp":
            (registry.trust / "9.timestamp.json").replace(registry.trust / "timestamp.json")
        registry.follow(role)
    with refused("TRUST_SIGNATURE"):
        robot.find()
    assert robot.version("root") == 2


def test_rotation__a_robot_that_was_away_follows_the_whole_chain(world: World) -> None:
    registry, robot = world.registry, world.robot()
    for name in ("online", "root", "root", "targets", ""):
        keys.rotate(registry.keys, utc_now(), name)
    world.publish("1.1.0")
    assert robot.find("pick/1.1.0/manifest.json") is not None and robot.version("root") == 6


def test_rotation__a_root_that_leaves_out_a_version_is_refused(world: World) -> None:
    registry, robot = world.registry, world.robot()
    registry.tamper("1.root.json", lambda root: setattr(root, "version", 3), to="2.root.json")
    with refused("TRUST_ROLLBACK"):
        robot.find()
    assert robot.version("root") == 1


def test_rotation__a_root_of_strangers_is_refused_though_they_have_signed_everything(world: World) -> None:
    robot = world.robot()
    robot.find()
    theirs = SignedRegistry(world.server.root, world.folder / "theirs")
    keys.rotate(theirs.keys, utc_now())
    for path in theirs.trust.iterdir():
        path.unlink()
    theirs.sign()
    with refused("TRUST_SIGNATURE"):
        robot.find()
    assert robot.version("root") == 1


@pytest.mark.parametrize(
    "behaviour",
    [Behaviour(body=b"x" * 600_000), Behaviour(body=b" " * 3_000_000, chunked=True)],
    ids=["announced", "not"],
)
@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_endless_data_are_cut_off_and_nothing_of_them_is_kept(world: World, name: str, behaviour: Behaviour) -> None:
    robot = world.robot()
    (world.registry.trust / name).touch()
    world.server.behave(name, behaviour)
    with refused("TRUST_METADATA"):
        robot.find()
    most = {"2.root.json": 512_000, "timestamp.json": 16_384}.get(name, 2_000)
    assert world.server.served[f"/trust/{name}"] <= 3_000_000
    kept = (world.folder / "store/trust.json").stat().st_size
    assert kept < 10_000 and robot.received.count < most + 8_000 + (128 << 10), "read on by a chunk at most"


def test_slow_retrieval_ends(world: World) -> None:
    robot = world.robot(stall_window_s=0.3, stall_min_bytes=100_000, read_timeout_s=30.0)
    world.server.behave("timestamp.json", Behaviour(body=b" " * 16_000, rate_bytes_s=20_000.0))
    with refused("STALLED"):
        robot.find()


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_a_missing_file_is_no_permission(world: World, name: str) -> None:
    (world.registry.trust / name).unlink()
    with refused("TRUST_METADATA") as caught:
        world.robot().find()
    assert name in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 5000, b"null", b'{"signed": {}, "signatures": []}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
def test_what_is_no_metadata_is_refused(world: World, name: str, data: bytes) -> None:
    (world.registry.trust / name).write_bytes(data)
    with refused("TRUST_METADATA"):
        world.robot().find()


def test_a_clock_that_is_behind_is_named(world: World) -> None:
    robot = world.robot()
    robot.clock = lambda: time.time() - 400 * 86400
    with refused("TRUST_CLOCK") as caught:
        robot.find()
    assert "set the clock" in str(caught.value)
    robot.clock = time.time
    assert robot.find() is not None


def test_metadata_of_others_without_our_field_need_no_clock(world: World) -> None:
    world.registry.tamper("timestamp.json", lambda signed: signed.unrecognized_fields.clear())
    robot = world.robot()
    robot.clock = lambda: 0.0
    assert robot.find() is not None


def test_what_was_kept_and_is_damaged_begins_anew_with_the_trust_root(world: World) -> None:
    robot = world.robot()
    robot.find()
    names = ("../../x.json", "", "root_history/", "x/y/z.json", "timestamp.json/x.json", "n" * 300 + ".json")
    strange = [json.dumps({name: "1", "timestamp.json": "null"}).encode() for name in names]
    for data in (b"", b"{", b"[" * 100_000, b'{"timestamp.json": 1}', b'{"timestamp.json": "\\ud800"}', *strange):
        (world.folder / "store/trust.json").write_bytes(data)
        assert robot.find() is not None
    assert not list(world.folder.glob("**/x.json"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, _cut, lambda path: path.write_bytes(path.read_bytes().replace(b"root", b"toor")),
     lambda path: path.write_bytes(path.with_name("timestamp.json").read_bytes())],
    ids=["missing", "cut", "changed", "another role"],
)  # fmt: skip
def test_a_trust_root_that_cannot_be_used_is_refused_at_the_start(world: World, spoil: Callable[[Path], Any]) -> None:
    root = world.registry.trust_root
    root.with_name("timestamp.json").write_bytes((world.registry.trust / "timestamp.json").read_bytes())
    spoil(root)
    with pytest.raises(ConfigError, match="trust_root"):
        world.robot()
