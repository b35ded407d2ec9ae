# SPDX-License-Identifier: Apache-2.0
"""A version published with deltas reaches robots that hold an older one in a fraction of its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_app import FleetApp
from support.ota import Robot

from vla_checkpoint import Manifest, sha256_file, verify_bundle
from vla_checkpoint.delta import make_delta, parse_offers
from vla_fleet import protocol
from vla_fleet.cli import models
from vla_fleet.client import Client
from vla_fleet.errors import FleetError
from vla_fleet.registry.garbage import GRACE_S
from vla_sim.checkpoint_server import CheckpointServer

WEIGHTS = "model.safetensors"
SHAPE = (1000, 320)  # 1.28 MB: a delta is worth the request


def weights(seed: int = 0) -> dict[str, Any]:
    base = np.random.default_rng(7).normal(size=SHAPE)
    return {
        "w": (base * 0.03 + np.random.default_rng(seed).laplace(size=SHAPE) * (1e-6 if seed else 0.0)).astype(
            np.float32
        )
    }


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app:
        yield app


@pytest.fixture
def client(app: FleetApp) -> Iterator[Client]:
    with app.client() as client:
        yield client


@pytest.fixture
def robot(tmp_path: Path, app: FleetApp) -> Iterator[Robot]:
    """It holds 1.0.0, and may fetch from the fleet's server; 1.1.0 is a bundle that nobody has published."""
    (tmp_path / "elsewhere").mkdir()
    with CheckpointServer(tmp_path / "elsewhere") as elsewhere:
        robot = Robot(tmp_path, elsewhere, {"allowed_sources": (app.url,)})
        robot.adopt("1.0.0", tensors=weights())
        robot.publish("1.1.0", tensors=weights(1))
        yield robot
        robot.stop()


def url_for(app: FleetApp, manifest: Manifest) -> str:
    """Return where a robot that was ordered to install a version finds it."""
    url = app.rooms.manifest_url(manifest.name, manifest.version)
    order = protocol.ModelUpdate(
        name=manifest.name, version=manifest.version, manifest_url=url, manifest_sha256=manifest.digest
    )
    through = app.rooms.passes.through(order, "arm")
    assert isinstance(through, protocol.ModelUpdate)
    return through.manifest_url


def offers(client: Client, version: str) -> list[Any]:
    return parse_offers(client._request("GET", f"/files/pick_place/{version}/deltas.json").content, "deltas.json")


def test_a_robot_fetches_the_delta_that_was_published_with_the_version(
    app: FleetApp, client: Client, robot: Robot
) -> None:
    client.enrol(client.make_code("arm"))
    client.publish(robot.folder / "bundle-1.0.0")
    bundle = str(robot.folder / "bundle-1.1.0")
    run = ["publish", bundle, "--delta-from", "pick_place@1.0.0", "--server", app.url, "--key", app.key]
    models.app(run, standalone_mode=False)
    manifest = robot.manifests["1.1.0"]
    robot.start()
    outcome = robot.install("1.1.0", manifest_url=url_for(app, manifest))
    verify_bundle(robot.store_dir / "current", expected_digest=manifest.digest)
    (offer,) = offers(client, "1.1.0")
    whole = manifest.file(WEIGHTS)
    assert whole is not None and offer.target == whole.sha256
    assert offer.size < outcome.bytes_downloaded < 0.6 * whole.size


def test_a_delta_that_makes_no_file_of_the_version_is_not_offered(client: Client, robot: Robot) -> None:
    folders = [robot.folder / f"bundle-{version}" for version in ("1.0.0", "1.1.0")]
    for folder in folders:
        client.publish(folder)
    good, nonsense = robot.folder / "good", folders[0] / "config.json"
    make_delta([folders[0] / WEIGHTS], folders[1] / WEIGHTS, good)
    uploaded = {path: sha256_file(path) for path in (good, nonsense)}
    client._upload(good, uploaded[good], lambda done: None)

    def refused(version: str, sha256: str) -> str:
        with pytest.raises(FleetError) as caught:
            client._post(f"/v1/models/pick_place/versions/{version}/deltas", {"sha256": sha256})
        return caught.value.code

    assert refused("1.0.0", uploaded[good]) == "DELTA_RESULT"
    assert refused("1.1.0", uploaded[nonsense]) == "DELTA_FORMAT"
    assert refused("1.1.0", "0" * 64) == "BLOB_MISSING"
    assert refused("9.9.9", uploaded[good]) == "MODEL_NOT_FOUND"
    assert offers(client, "1.0.0") == offers(client, "1.1.0") == []


def test_a_delta_stays_while_both_versions_do_and_goes_with_either(app: FleetApp, client: Client, robot: Robot) -> None:
    client.publish(robot.folder / "bundle-1.0.0", alias="champion")
    client.publish(robot.folder / "bundle-1.1.0", delta_from=["pick_place@champion"], alias="champion")
    (offer,) = offers(client, "1.1.0")
    app.clock.ahead_s = GRACE_S + 60
    assert client.collect_garbage()["blobs"] == 0
    client.retire("pick_place", "1.0.0")
    client.collect_garbage()
    assert not (app.rooms.blobs.root / offer.sha256).exists()
    assert offers(client, "1.1.0") == []
