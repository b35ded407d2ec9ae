# SPDX-License-Identifier: Apache-2.0
"""One robot for tests of the manager's node: the node as a process, a stand-in policy node, a checkpoint server, a probe."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from vla_ota.msg import ModelEvent, ModelStatus, ModelUpdate

from support.bundles import make_bundle
from support.ros import Inbox, NodeProcess, RosHarness
from support.ros_policy import StandInPolicyNode
from support.waits import wait_for
from vla_checkpoint import load_manifest
from vla_ros import qos
from vla_sim.checkpoint_server import CheckpointServer, publish_bundle

CHUNKS, EPISODES = 12, 4
"""Exposure that a commit needs with ``QUICK``."""

QUICK: Mapping[str, Any] = {
    "status_period_s": 0.2,
    "policy_silent_s": 8.0,
    "heartbeat_timeout_s": 30.0,
    "min_free_bytes": 0,
    "backoff_s": 0.1,
    "retries": 3,
    "min_trial_time_s": 0.0,
    "min_trial_chunks": CHUNKS,
    "min_trial_episodes": EPISODES,
    "first_install_chunks": 4,
    "block_chunks": 1,
    "calibration_samples": 40,
    "policy_wait_s": 30.0,
}
"""Parameters of a manager that decides quickly."""


class ManagerRig:
    """Use as a context manager. Everything in it ends with it.

    Args:
        domain: ROS_DOMAIN_ID.
        folder: for store, models and logs.
        namespace: of manager and policy node; the probe stays in the root.
        remaps: of the manager.
        parameters: of the manager, over ``QUICK``.
    """

    def __init__(
        self,
        domain: int,
        folder: Path,
        *,
        namespace: str = "",
        remaps: tuple[str, ...] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.domain, self.folder, self.namespace, self._remaps = domain, folder, namespace, remaps
        self.store = folder / "store"
        self.digests: dict[str, str] = {}
        """Of the published bundles, by version."""
        self.server = CheckpointServer(folder / "registry")
        self.server.__enter__()
        self.parameters = {
            **QUICK,
            "store_dir": str(self.store),
            "allowed_sources": [f"{self.server.base}/"],
            **(parameters or {}),
        }
        self.ros = RosHarness(domain)
        self.policy = StandInPolicyNode(domain, namespace)
        self.status: Inbox = self.ros.subscribe(ModelStatus, self.name("ota_manager/status"), qos.LATCHED_EACH)
        self.events: Inbox = self.ros.subscribe(ModelEvent, self.name("ota_manager/events"))
        self._offers = self.ros.advertise(ModelUpdate, self.name("model_update"), readers=0)
        self.manager: NodeProcess | None = None

    def __enter__(self) -> ManagerRig:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        try:
            if self.manager is not None:
                self.manager.__exit__(exc_type)
        finally:
            self.policy.__exit__()
            self.ros.close()
            self.server.__exit__(None, None, None)

    def name(self, relative: str) -> str:
        """Return a name in the robot's namespace as the probe must say it."""
        return f"{self.namespace}/{relative}" if self.namespace else relative

    def start(self, *, scores: bool = True) -> NodeProcess:
        """Start the manager and wait until it hears offers and the policy node (``scores``: its scores too) and we hear it."""
        self.status.clear()
        self.manager = NodeProcess(
            "vla_ota_manager.ros.manager_node",
            self.domain,
            self.folder / "log",
            parameters=self.parameters,
            namespace=self.namespace,
            remaps=self._remaps,
        )
        try:
            self.status.wait()
            wait_for(lambda: self._offers.get_subscription_count() >= 1, "the subscription of model_update")
            wait_for(lambda: self.policy.is_heard(scores=scores), "the manager's subscriptions to the policy node")
            self.ros.known_to(self.name("ota_manager"))
        except AssertionError as e:
            raise AssertionError(f"{e}\n--- log\n{self.manager.log}") from None
        return self.manager

    # -- models and offers --------------------------------------------------------------------------------------------------

    def publish(self, version: str, *, size: int = 0, name: str = "pick_place", **options: Any) -> str:
        """Put a bundle into the registry; ``size``: of its weights, about [bytes]. Return its digest."""
        seed = zlib.crc32(version.encode())
        if size:
            options["tensors"] = {"w": np.random.default_rng(seed).standard_normal(size // 4).astype(np.float32)}
        folder = self.folder / "bundles" / name / version
        manifest = make_bundle(folder, name=name, version=version, **{"seed": seed, **options})
        publish_bundle(self.server.root, folder)
        self.digests[version] = manifest.digest
        return manifest.digest

    def url(self, version: str, name: str = "pick_place") -> str:
        """Return where a bundle's manifest is."""
        return self.server.url(f"{name}/{version}/manifest.json")

    def weights(self, version: str, name: str = "pick_place") -> str:
        """Return the SHA-256 of a published bundle's ``model.safetensors``."""
        manifest = load_manifest(self.server.root / name / version)
        return next(entry.sha256 for entry in manifest.files if entry.path == "model.safetensors")

    def offer(self, version: str, digest: str, **fields: Any) -> str:
        """Publish a ModelUpdate; return its update_id."""
        values = {
            "update_id": f"u-{uuid.uuid4().hex[:8]}",
            "name": "pick_place",
            "version": version,
            "manifest_url": self.url(version),
            "manifest_sha256": digest,
        }
        message = ModelUpdate(**{**values, **fields})
        self._offers.publish(message)
        return str(message.update_id)

    def wait_state(self, state: str, accept: Callable[[Any], bool] = lambda _: True) -> Any:
        """Wait for a status in this state, of those to come or received since ``status.clear()``."""
        return self.status.wait(lambda m: m.state_name == state and accept(m), what=state)

    def wait_event(self, update_id: str, to_state: str) -> Any:
        """Wait for the event that says that an update has entered a state."""
        return self.events.wait(
            lambda m: m.update_id == update_id and m.to_state == to_state, what=f"{update_id} -> {to_state}"
        )

    def wait_update(self, update_id: str, state: str) -> Any:
        """Wait for the status in which an update is in a state where it stays; unlike events, no restart can lose it."""
        return self.wait_state(state, lambda m: m.update_id == update_id)

    def prove(self, update_id: str, *, score: float = 1.0) -> Any:
        """Let the version on trial behave well until it is committed; return that status."""

        def committed() -> bool:
            return any(m.update_id == update_id and m.state_name == "COMMITTED" for m in self.status.messages[-50:])

        self.wait_update(update_id, "TRIAL")
        self.behave(score, committed)
        return self.wait_update(update_id, "COMMITTED")

    def behave(self, score: float, until: Callable[[], bool]) -> None:
        """Let the robot act, a chunk of this score every few milliseconds, until something has come of it."""

        def act() -> bool:
            if until():
                return True
            self.policy.publish_scores(score, 1)
            return False

        wait_for(act, f"the effect of scores of {score}")

    def install(self, version: str, **options: Any) -> str:
        """Publish a bundle, offer it and let it prove itself; return its digest."""
        digest = self.publish(version, **options)
        self.prove(self.offer(version, digest))
        self.status.wait(lambda m: m.committed_version == version, what=f"{version} in the status")
        return digest
