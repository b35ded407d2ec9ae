# SPDX-License-Identifier: Apache-2.0
"""A robot makes a version of a delta against what it holds; whatever is wrong with the delta, it gets the version whole."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.engine_runs import EngineRuns, Job
from support.ota import Robot

from vla_checkpoint import sha256_bytes, verify_bundle
from vla_checkpoint.cli import main
from vla_checkpoint.delta import OFFERS_NAME, Offer, parse_offers
from vla_sim.checkpoint_server import CheckpointServer

SHAPE = (1000, 320)  # 1.28 MB: a delta is worth the request


def weights(seed: int, step: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    base = (rng.normal(size=SHAPE) * 0.03).astype(np.float32)
    moved = np.random.default_rng(seed).laplace(size=SHAPE).astype(np.float32) * np.float32(step)
    return {"w": base + moved}


def offered(robot: Robot) -> Path:
    """Publish 1.0.0, which the robot holds, and 1.1.0 with a delta; return the page that offers it."""
    robot.adopt("1.0.0", tensors=weights(0))
    robot.publish("1.1.0", tensors=weights(1, 1e-6))
    folders = [str(robot.folder / f"bundle-{version}") for version in ("1.0.0", "1.1.0")]
    assert main(["delta", "offer", *folders, str(robot.registry)]) == 0
    return robot.registry / "pick_place/1.1.0" / OFFERS_NAME


def the_offer(page: Path) -> Offer:
    (offer,) = parse_offers(page.read_bytes(), page)
    return offer


def whole(robot: Robot, server: CheckpointServer) -> int:
    """Return how many bytes of the whole file were sent."""
    return server.served[f"/blobs/sha256/{robot.manifests['1.1.0'].file('model.safetensors').sha256}"]


def test_a_version_is_made_of_the_delta_that_its_registry_offers(robot: Robot, server: CheckpointServer) -> None:
    offer = the_offer(offered(robot))
    robot.start()
    outcome = robot.install("1.1.0")
    assert robot.current_version() == "1.1.0"
    verify_bundle(robot.store_dir / "current", expected_digest=robot.manifests["1.1.0"].digest)
    assert whole(robot, server) == 0 and server.served[f"/blobs/sha256/{offer.sha256}"] == offer.size
    assert outcome.bytes_downloaded == sum(server.served.values()) < 800_000
    robot.until(lambda: not robot.left_over())


def rewrite(page: Path, change: Callable[[Offer], Offer]) -> None:
    offer = change(the_offer(page))
    entry = {"target": offer.target, "bases": list(offer.bases), "sha256": offer.sha256, "size": offer.size}
    page.write_text(json.dumps({"schema": 1, "deltas": [entry]}))


def delta_file(robot: Robot, page: Path) -> Path:
    return robot.registry / "blobs/sha256" / the_offer(page).sha256


def damage_the_delta(robot: Robot, page: Path) -> None:
    path = delta_file(robot, page)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def publish_a_damaged_delta(robot: Robot, page: Path) -> None:
    """Its digest is right, its content is not."""
    damage_the_delta(robot, page)
    data = delta_file(robot, page).read_bytes()
    (robot.registry / "blobs/sha256" / sha256_bytes(data)).write_bytes(data)
    rewrite(page, lambda offer: replace(offer, sha256=sha256_bytes(data)))


def name_another_target(robot: Robot, page: Path) -> None:
    """The delta is good and makes another file than the page says."""
    robot.publish("1.2.0", tensors=weights(2, 1e-6))
    folders = [str(robot.folder / f"bundle-{version}") for version in ("1.0.0", "1.2.0")]
    assert main(["delta", "offer", *folders, str(robot.registry)]) == 0
    other = the_offer(robot.registry / "pick_place/1.2.0" / OFFERS_NAME)
    rewrite(page, lambda offer: replace(other, target=offer.target))


def name_another_base(robot: Robot, page: Path) -> None:
    """The file that it names is on the robot's disk, and is not the one that the delta needs."""
    stats = robot.manifests["1.0.0"].file("stats.json")
    rewrite(page, lambda offer: replace(offer, bases=(stats.sha256,)))


def forget_the_delta(robot: Robot, page: Path) -> None:
    delta_file(robot, page).unlink()


def write_nonsense(robot: Robot, page: Path) -> None:
    page.write_text('{"schema": 1, "deltas": [{"target": 3}]}')


def need_a_base_that_is_gone(robot: Robot, page: Path) -> None:
    rewrite(page, lambda offer: replace(offer, bases=("0" * 64,)))


@pytest.mark.parametrize(
    "spoil",
    [
        damage_the_delta,
        publish_a_damaged_delta,
        name_another_target,
        name_another_base,
        forget_the_delta,
        write_nonsense,
        need_a_base_that_is_gone,
    ],
)
def test_whatever_is_wrong_with_a_delta_the_version_is_fetched_whole(
    robot: Robot, server: CheckpointServer, spoil: Callable[[Robot, Path], None]
) -> None:
    spoil(robot, offered(robot))
    robot.start()
    robot.install("1.1.0")
    verify_bundle(robot.store_dir / "current", expected_digest=robot.manifests["1.1.0"].digest)
    assert whole(robot, server) == robot.manifests["1.1.0"].file("model.safetensors").size
    robot.until(lambda: not robot.left_over())


def test_killed_while_a_delta_is_used_it_is_used_again_and_nothing_is_fetched_twice(
    robot: Robot, server: CheckpointServer
) -> None:
    robot.settings = {"min_trial_chunks": 2}
    offer = the_offer(offered(robot))
    robot.boot_policy()
    path = f"/blobs/sha256/{offer.sha256}"
    with EngineRuns() as runs:
        update = robot.update("1.1.0").to_json()
        config = robot.config_arguments()
        # the delta is there; a block is made; the file is complete; it has its name
        for point in ("blob.sealed:1", "fetch.delta:1", "fetch.delta:2", "blob.complete:1", "blob.sealed:1"):
            job = Job(config, str(robot.policy_file), update, wait_for=update["update_id"], crash_at=point)
            assert runs.run(job) == -signal.SIGKILL, point
            assert robot.current_version() == "1.0.0"
        assert runs.run(replace(job, crash_at="")) == 0
    assert robot.current_version() == "1.1.0"
    verify_bundle(robot.store_dir / "current", expected_digest=robot.manifests["1.1.0"].digest)
    assert whole(robot, server) == 0 and server.served[path] == offer.size
