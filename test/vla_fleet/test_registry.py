# SPDX-License-Identifier: Apache-2.0
"""The registry: a version is published whole or not at all, never changes, and is served as a robot fetches it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.bundles import flip_last_byte, make_bundle
from support.fleet import FleetServer

from vla_checkpoint import CheckpointError, load_manifest
from vla_fleet.client import Client
from vla_fleet.errors import ConflictError, FleetError, InputError, MissingError, RoleError, SignInError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    with FleetServer(tmp_path_factory.mktemp("fleet")) as server:
        yield server


@pytest.fixture
def client(server: FleetServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


def test_what_is_published_is_served_byte_by_byte_with_resume(
    server: FleetServer, client: Client, tmp_path: Path
) -> None:
    manifest = make_bundle(tmp_path / "b", name="served", version="1.0.0")
    client.publish(tmp_path / "b", alias="champion")
    base, key = f"{server.url}/files", {"Authorization": f"Bearer {server.key}"}
    text = httpx.get(f"{base}/served/1.0.0/manifest.json", headers=key, timeout=40.0).content
    assert hashlib.sha256(text).hexdigest() == manifest.digest
    for entry in manifest.files:
        whole = httpx.get(f"{base}/blobs/sha256/{entry.sha256}", headers=key, timeout=40.0)
        assert hashlib.sha256(whole.content).hexdigest() == entry.sha256
        end = {"Range": f"bytes={entry.size - 3}-", "If-Range": whole.headers["etag"], **key}
        rest = httpx.get(f"{base}/blobs/sha256/{entry.sha256}", headers=end, timeout=40.0)
        assert rest.status_code == 206 and rest.content == whole.content[-3:]
    assert client.models("served")[0]["aliases"] == ["champion"]


def test_a_version_never_changes_and_the_same_one_again_is_fine(client: Client, tmp_path: Path) -> None:
    make_bundle(tmp_path / "a", name="fixed", version="1.0.0", seed=1)
    make_bundle(tmp_path / "b", name="fixed", version="1.0.0", seed=2)
    first = client.publish(tmp_path / "a")
    assert client.publish(tmp_path / "a") == first
    with pytest.raises(ConflictError, match="VERSION_EXISTS"):
        client.publish(tmp_path / "b")
    assert [v["digest"] for v in client.models("fixed")] == [first["digest"]]


def test_a_version_that_moves_less_than_its_change_is_refused_and_auto_moves_enough(
    client: Client, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "a", name="moves", version="1.0.0", seed=1)
    make_bundle(tmp_path / "b", name="moves", version="1.0.1", seed=2)
    client.publish(tmp_path / "a")
    with pytest.raises(InputError, match="VERSION_BUMP_TOO_SMALL"):
        client.publish(tmp_path / "b")
    assert client.publish(tmp_path / "b", bump="auto")["version"] == "1.1.0"


def test_auto_moves_enough_where_manifests_alone_do_not_show_it(client: Client, tmp_path: Path) -> None:
    make_bundle(tmp_path / "a", name="deeper", version="1.0.0", tensors={"w": np.zeros((2, 2), np.float32)})
    make_bundle(tmp_path / "b", name="deeper", version="1.0.0", tensors={"w": np.zeros((2, 3), np.float32)})
    client.publish(tmp_path / "a")
    assert client.publish(tmp_path / "b", bump="auto")["version"] == "2.0.0", (
        "the shape of a tensor is the architecture"
    )


def test_a_version_says_where_it_comes_from_and_a_fine_tune_is_a_patch(client: Client, tmp_path: Path) -> None:
    make_bundle(tmp_path / "a", name="family", version="1.0.0", seed=1, lineage={"data_set": "first"})
    make_bundle(tmp_path / "b", name="family", version="1.0.0", seed=2)
    base = client.publish(tmp_path / "a", alias="champion")
    about = {"method": "fine_tune", "data_set": "corrections", "git_commit": "abc", "metrics": {"success": 0.9}}
    child = client.publish(tmp_path / "b", bump="auto", parent="family@champion", lineage=about)
    assert child["version"] == "1.0.1"
    newest, oldest = client.lineage("family")
    assert newest["parent"] == "family@1.0.0" and newest["lineage"] == {**about, "parent": base["digest"]}
    assert oldest["parent"] == "" and oldest["lineage"] == {"data_set": "first"}
    with pytest.raises(MissingError, match="MODEL_NOT_FOUND"):
        client.publish(tmp_path / "b", bump="auto", parent="family@9.9.9")


def test_who_moved_an_alias_from_where_to_where_and_why_is_on_record(client: Client, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        make_bundle(tmp_path / version, name="named", version=version, seed=len(version))
        client.publish(tmp_path / version)
    client.set_alias("named", "champion", "1.0.0", "the first")
    client.set_alias("named", "champion", "1.1.0", "won the test")
    client.set_alias("named", "other", "1.1.0")
    moves = client.alias_moves("named", "champion")
    assert [(m["who"], m["before"], m["version"], m["reason"]) for m in moves] == [
        ("admin", "1.0.0", "1.1.0", "won the test"),
        ("admin", "", "1.0.0", "the first"),
    ]
    assert len(client.alias_moves("named")) == 3


def test_a_retired_version_is_neither_ordered_nor_named_and_comes_back_when_it_is_published_again(
    client: Client, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "a", name="old", version="1.0.0", seed=1)
    make_bundle(tmp_path / "b", name="old", version="1.0.0", seed=2)
    client.publish(tmp_path / "a", alias="champion")
    with pytest.raises(ConflictError, match="VERSION_IN_USE"):
        client.retire("old", "1.0.0")
    client.set_alias("old", "champion", client.publish(tmp_path / "b", version="1.1.0")["version"])
    assert client.retire("old", "1.0.0")["retired_s"]
    with pytest.raises(MissingError, match="MODEL_NOT_FOUND"):
        client.set_alias("old", "champion", "1.0.0")
    with pytest.raises(MissingError, match="MODEL_NOT_FOUND"):
        client.deploy("old@1.0.0", everyone=True)
    with pytest.raises(ConflictError, match="VERSION_EXISTS"):
        client.publish(tmp_path / "b", version="1.0.0")
    assert client.publish(tmp_path / "a")["retired_s"] is None
    assert [line["action"] for line in client.log() if line["subject"] == "old 1.0.0"] == [
        "publish_again",
        "retire",
        "publish",
    ]


def test_what_is_broken_is_refused_before_and_after_the_upload_and_nothing_is_seen_of_it(
    server: FleetServer, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    manifest = make_bundle(folder, name="broken", version="1.0.0", seed=77)
    body = {"manifest": manifest.canonical().decode()}
    with pytest.raises(MissingError, match="BLOB_MISSING"):
        client._post("/v1/models/broken/versions", body)
    weights = folder / "model.safetensors"
    good = load_manifest(folder).file("model.safetensors")
    assert good is not None
    flip_last_byte(weights)
    with pytest.raises(CheckpointError, match="DIGEST_FILE"):
        client.publish(folder)
    with pytest.raises(ConflictError, match="BLOB_DIGEST"):
        client._upload(weights, good.sha256, lambda done: None)
    with pytest.raises(InputError, match="MANIFEST"):
        client._post("/v1/models/broken/versions", {"manifest": "{}"})
    with pytest.raises(InputError, match="NAME_MISMATCH"):
        client._post("/v1/models/other/versions", body)
    assert client.models("broken") == []
    assert not list((server.data / "blobs" / "incoming").iterdir())


def test_each_role_may_do_its_own_and_no_more(server: FleetServer, client: Client, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", name="roles", version="1.0.0")
    keys = {role: client.make_key(f"a-{role}", role) for role in ("viewer", "operator", "publisher")}
    for role, key in keys.items():
        with server.client(key) as other:
            assert isinstance(other.models(), list)
            if role == "publisher":
                other.publish(tmp_path / "b")
            else:
                with pytest.raises(RoleError, match="ROLE_REQUIRED"):
                    other.set_alias("roles", "champion", "1.0.0")
            expected = MissingError if role == "operator" else RoleError
            with pytest.raises(expected):
                other.deploy("roles@1.0.0", ["nobody"])
            with pytest.raises(RoleError):
                other.make_code("arm")
    for key in ("", "vf_wrong"):
        with server.client(key) as stranger, pytest.raises(SignInError):
            stranger.models()
    database = (server.data / "fleet.db").read_bytes()
    assert not any(key.encode() in database for key in keys.values()), "keys are stored hashed"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/deployments", {"model": "x@1.0.0"}),
        ("POST", "/v1/deployments", {}),
        ("POST", "/v1/rollbacks", {}),
        ("POST", "/v1/enrolment-codes", {"robot": "../etc"}),
        ("POST", "/v1/enrolment-codes", {"robot": "arm", "valid_s": -1}),
        ("POST", "/v1/keys", {"name": "k", "role": "king"}),
        ("PUT", "/v1/models/x/aliases/UPPER", {"version": "1.0.0"}),
        ("PUT", "/v1/blobs/zz", {}),
        ("GET", "/v1/robots/nobody", None),
        ("GET", "/v1/commands?id=nothing", None),
        ("GET", "/v1/events?limit=0", None),
        ("GET", "/files/x/1.0.0/manifest.json", None),
        ("GET", "/files/blobs/sha256/" + "0" * 64, None),
    ],
)
def test_bad_requests_are_refused_with_a_code_and_a_reason(
    server: FleetServer, method: str, path: str, body: object
) -> None:
    headers = {"Authorization": f"Bearer {server.key}"}
    content = None if body is None else json.dumps(body)
    answer = httpx.request(method, server.url + path, headers=headers, content=content, timeout=40.0)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error_code"] and answer.json()["message"]


def test_a_server_that_is_not_there_is_an_error_with_a_code() -> None:
    with Client("http://127.0.0.1:9", "key") as nowhere, pytest.raises(FleetError, match="SERVER_UNREACHABLE"):
        nowhere.models()
