# SPDX-License-Identifier: Apache-2.0
"""A whole robot for tests: the real ota_manager and the real policy_node as processes, an ideal two-joint robot that writes
down every command, a checkpoint server, a probe.

Every published version moves joint ``j1`` alike and holds ``j2`` at a place of its own (:data:`PLACES`), so that the commands
themselves say which version acts. Trials of updates are decided by episodes, which the test runs; a first install by chunks.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from std_srvs.srv import Trigger
from vla_ota.msg import AnomalyScore, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport
from vla_ota.srv import EndEpisode, StartEpisode

from support.engine_rig import PATIENT, contract_text
from support.kept import KEPT
from support.manager_rig import QUICK
from support.policy_rig import IdealRobot, policy_parameters
from support.ros import Inbox, NodeProcess, RosHarness
from support.scripted import TEST_FOLDER, scripted_bundle
from support.waits import wait_for
from vla_checkpoint import load_manifest, verify_bundle
from vla_ota_manager.states import UpdateState
from vla_ros import qos
from vla_sim.checkpoint_server import CheckpointServer, publish_bundle

PERIOD_S, VELOCITY, LOW, HIGH = 0.02, 4.0, -2.0, 2.0
"""Of the contract in ``engine_rig.py``: [s], [rad/s], [rad]."""
PLACE_STEP = 0.015
"""Distance between the places of two versions [rad]."""
_REPLY_S = 10.0
LONG_HORIZON = 150
"""Actions of a chunk: three seconds, so that a machine that stalls for one or two starves nobody."""
EPISODES = 2
"""With a known outcome, that a commit needs."""

DECISIVE: Mapping[str, Any] = {
    **QUICK,
    "first_install_chunks": 4,
    "min_trial_episodes": EPISODES,
    "min_trial_chunks": 0,
    "score_sources": ["reversal"],  # looks at one chunk alone: a busy machine does not change it
    "tolerated_exceedance": 0.3,
    "commit_max_evidence": 1.0,
    "trial_lease_s": 60.0,
    "policy_wait_s": 60.0,
    "max_trial_attempts": 10,
}
"""Parameters of a manager that decides as soon as a test has shown it enough, and never because the machine is busy."""


class WatchedRobot(IdealRobot):
    """Also keeps when each command arrived."""

    def __init__(self, ros: RosHarness) -> None:
        self.record: list[tuple[float, float, float]] = []
        super().__init__(ros)

    def _on_command(self, message: Any) -> None:
        super()._on_command(message)
        self.record.append((time.monotonic(), message.data[0], message.data[1]))


class RobotRig:
    """Use as a context manager; nothing runs until ``start_policy`` and ``start_manager``. Everything in it ends with it.

    Args:
        domain: ROS_DOMAIN_ID.
        folder: for store, bundles and logs.
        namespace: of the whole robot.
        contract: of the robot, see ``contract_text``.
        manager: parameters over ``DECISIVE``.
        kept: the rig is a fixture of a whole file, so its processes may outlive the test that started them.
    """

    def __init__(
        self,
        domain: int,
        folder: Path,
        *,
        namespace: str = "",
        contract: Mapping[str, Any] | None = None,
        manager: Mapping[str, Any] | None = None,
        kept: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.domain, self.folder, self.namespace, self._kept = domain, folder, namespace, kept
        self.store = folder / "store"
        (folder / "contract.yaml").write_text(contract_text(**PATIENT, **(contract or {})))
        self.server = CheckpointServer(folder / "registry")
        self.server.__enter__()
        self.ros = RosHarness(domain, namespace=namespace)
        self.robot = WatchedRobot(self.ros)
        self.policy_status: Inbox = self.ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH)
        self.reports: Inbox = self.ros.subscribe(SwapReport, "policy_node/swap_report", qos.LATCHED_EACH)
        self.scores: Inbox = self.ros.subscribe(AnomalyScore, "anomaly_score", qos.EVENTS)
        self.status: Inbox = self.ros.subscribe(ModelStatus, "ota_manager/status", qos.LATCHED_EACH)
        self.events: Inbox = self.ros.subscribe(ModelEvent, "ota_manager/events")
        self.diagnostics: Inbox = self.ros.subscribe(DiagnosticArray, "/diagnostics")
        self._offers = self.ros.advertise(ModelUpdate, "model_update", readers=0)
        self._parameters = {
            **DECISIVE,
            "store_dir": str(self.store),
            "allowed_sources": [f"{self.server.base}/"],
            **(manager or {}),
        }
        self.digests: dict[str, str] = {}
        self.places: dict[str, float] = {}
        """Where ``j2`` is while a version acts [rad]."""
        self.policy: NodeProcess | None = None
        self.manager: NodeProcess | None = None

    def __enter__(self) -> RobotRig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for process in (self.manager, self.policy):
                if process is not None:
                    process.__exit__(kind, error, trace)
        finally:
            self.ros.close()
            self.server.__exit__(None, None, None)

    # -- processes ----------------------------------------------------------------------------------------------------------

    def start_policy(self, **parameters: Any) -> NodeProcess:
        """Start the policy node; it starts from the store's ``current``, if there is one."""
        if self.policy is not None and self.policy_runs:
            self.policy.kill()
        self.policy_status.clear()
        self.policy = NodeProcess(
            "vla_policy_node.ros.policy_node",
            self.domain,
            self.folder / "log",
            parameters=policy_parameters(self.folder, store_dir=str(self.store), bundle_roots=[], **parameters),
            namespace=self.namespace,
        )
        self._keep(self.policy)
        return self.policy

    def start_manager(self, *, crash_at: str = "", **parameters: Any) -> NodeProcess:
        """Start the manager; ``crash_at``: a point of the store's file system at which it is to kill itself."""
        if self.manager is not None and self.manager_runs:
            self.manager.kill()
        self.status.clear()
        self.manager = NodeProcess(
            "support.crashing_manager_node" if crash_at else "vla_ota_manager.ros.manager_node",
            self.domain,
            self.folder / "log",
            parameters={**self._parameters, **parameters},
            namespace=self.namespace,
            environment={
                "CRASH_AT": crash_at,
                "PYTHONPATH": os.pathsep.join([TEST_FOLDER, os.environ.get("PYTHONPATH", "")]),
            },
        )
        self._keep(self.manager)
        if not crash_at:
            self.ros.known_to("ota_manager")
        return self.manager

    def _keep(self, process: NodeProcess) -> None:
        if self._kept:
            KEPT.add(process.process.pid)

    @property
    def policy_runs(self) -> bool:
        """Whether the policy node's process lives."""
        return self.policy is not None and self.policy.process.poll() is None

    @property
    def manager_runs(self) -> bool:
        """Whether the manager's process lives."""
        return self.manager is not None and self.manager.process.poll() is None

    def forget(self) -> None:
        """Forget every message received so far."""
        for inbox in (self.policy_status, self.reports, self.scores, self.status, self.events, self.diagnostics):
            inbox.clear()

    def until_crash(self, crash_at: str) -> None:
        """Start a manager that kills itself there, and wait until it has."""
        assert self.start_manager(crash_at=crash_at).wait() == -9

    def worker_pid(self) -> int:
        """Return the process id of the acting generation's worker, from the diagnostics from now on."""
        self.diagnostics.clear()

        def pid(message: Any) -> str:
            values = [v for status in message.status for v in status.values if v.key == "worker pid"]
            return str(values[0].value) if values else ""

        return int(pid(self.diagnostics.wait(lambda m: bool(pid(m)), what="the worker's pid")))

    # -- models and offers --------------------------------------------------------------------------------------------------

    def publish(self, version: str, *, size: int = 0, **options: Any) -> str:
        """Put a bundle into the registry; ``size``: of the ballast beside its weights [bytes]. Return its digest."""
        self.places.setdefault(version, PLACE_STEP * (len(self.places) % 19))
        wave = {"amplitude": (0.1, 0.0), "frequency_hz": 1.0, "offset": (0.0, self.places[version])}
        wave["horizon"] = LONG_HORIZON
        if size:
            seed = int(self.places[version] / PLACE_STEP) + len(self.digests)
            ballast = np.random.default_rng(seed).standard_normal(size // 4).astype(np.float32)
            options["more_tensors"] = {"ballast": ballast}
        folder = self.folder / "bundles" / version
        self.digests[version] = scripted_bundle(folder, version, **{**wave, **options}).digest
        publish_bundle(self.server.root, folder)
        return self.digests[version]

    def url(self, version: str) -> str:
        """Return where a bundle's manifest is."""
        return self.server.url(f"pick_place/{version}/manifest.json")

    def blob(self, version: str, path: str = "model.safetensors") -> str:
        """Return the path of a bundle's file on the server."""
        manifest = load_manifest(self.server.root / "pick_place" / version)
        return "/blobs/sha256/" + next(entry.sha256 for entry in manifest.files if entry.path == path)

    def offer(self, version: str, **fields: Any) -> str:
        """Publish a ModelUpdate until the manager has taken it (a killed one stays in the graph for a while); return its id."""
        values = {
            "update_id": f"u-{version}-{uuid.uuid4().hex[:6]}",
            "name": "pick_place",
            "version": version,
            "manifest_url": self.url(version),
            "manifest_sha256": self.digests[version],
        }
        message = ModelUpdate(**{**values, **fields})
        publish = self._offers.publish

        def taken() -> bool:
            if not (self.store / "state.json").exists() or message.update_id not in self.state()["seen"]:
                publish(message)
                time.sleep(0.1)
                return False
            return True

        wait_for(taken, f"the manager taking {message.update_id}")
        return str(message.update_id)

    # -- waiting ------------------------------------------------------------------------------------------------------------

    def wait_update(self, update_id: str, *states: str) -> Any:
        """Wait for a status in which an update is in one of these states, of those that its manager has published."""
        return self.status.wait(
            lambda m: m.update_id == update_id and m.state_name in states, what=f"{update_id} in {states}"
        )

    def wait_status(self, accept: Callable[[Any], bool], what: str) -> Any:
        """Wait for a status of the manager, from now on."""
        self.status.clear()
        return self.status.wait(accept, what=what)

    def wait_policy(self, accept: Callable[[Any], bool], what: str) -> Any:
        """Wait for a status of the policy node, from now on."""
        self.policy_status.clear()
        return self.policy_status.wait(accept, what=what)

    def wait_acting(self, version: str) -> Any:
        """Wait until a version acts: the policy node says so, and the commands go where this version alone goes."""
        status = self.wait_policy(
            lambda m: m.state == PolicyStatus.STATE_RUNNING and m.active_version == version, f"{version} running"
        )
        seen = len(self.robot.record)
        wait_for(
            lambda: any(abs(j2 - self.places[version]) < 1e-3 for _, _, j2 in self.robot.record[seen:]),
            f"commands of {version}",
        )
        return status

    def wait_scored(self, version: str, count: int) -> None:
        """Wait until so many chunks of a version have been scored."""
        seen = len(self.scores.messages)
        wait_for(
            lambda: sum(m.version == version and m.source == "reversal" for m in self.scores.messages[seen:]) >= count,
            f"{count} scored chunks of {version}",
        )

    def wait_settled(self, version: str) -> None:
        """Wait until a version is committed and nothing remains to be done: the next manager begins with nothing pending."""

        def settled() -> bool:
            state = self.state()
            return not state["activation_due"] and state["committed"] is not None and version in str(state["committed"])

        wait_for(settled, f"{version} settled")
        self.wait_policy(lambda m: m.active_version == version and not m.on_trial, f"{version} without a lease")

    def state(self) -> dict[str, Any]:
        """Return the manager's ``state.json``."""
        document: dict[str, Any] = json.loads((self.store / "state.json").read_text())
        return document

    @property
    def saved(self) -> str:
        """State of the update as it is on disk."""
        return UpdateState(self.state()["state"]).name

    @property
    def committed(self) -> str:
        """Version that is committed, as it is on disk."""
        return str(self.state()["committed"]["version"])

    # -- what the robot does ------------------------------------------------------------------------------------------------

    def wait_commands(self) -> int:
        """Wait until no command has come for a while; return how many there were: the last ones may come after all else."""
        while True:
            sent = len(self.robot.record)
            time.sleep(0.5)
            self.ros.on_executor(lambda: None)
            if len(self.robot.record) == sent:
                return sent

    def call(self, service_type: type, name: str, request: Any = None) -> Any:
        """Call a service for which a repeated request does no harm: one right after a restart may get lost on a dead server."""
        for _ in range(5):
            with contextlib.suppress(AssertionError):
                return self.ros.call(service_type, name, request, timeout_s=_REPLY_S)
        return self.ros.call(service_type, name, request, timeout_s=_REPLY_S)

    def episode(self, success: bool) -> Any:
        """Run one episode; return its outcome."""
        name = uuid.uuid4().hex[:12]
        opened = self.call(StartEpisode, "policy_node/start_episode", StartEpisode.Request(episode_id=name))
        assert opened.success or opened.error_code == "EPISODE_OPEN", opened.message
        closed = self.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(episode_id=name, success=success))
        assert closed.success, closed.message
        return closed.outcome

    def episodes_until(self, success: bool, state: str, update_id: str) -> Any:
        """Run episodes until an update is in a state; return that status."""

        def there() -> bool:
            return any(m.update_id == update_id and m.state_name == state for m in self.status.messages)

        def work() -> bool:
            if not there():
                self.episode(success)
            return there()

        wait_for(work, f"{state} of {update_id} after episodes")
        return self.wait_update(update_id, state)

    def prove(self, update_id: str) -> Any:
        """Let the version on trial succeed until it is committed; return that status."""
        self.wait_update(update_id, "TRIAL")
        return self.episodes_until(True, "COMMITTED", update_id)

    def resume(self) -> Any:
        """Call ``resume``; return the reply."""
        return self.call(Trigger, "policy_node/resume")

    def install(self, version: str, **options: Any) -> str:
        """Publish a bundle, offer it, let it prove itself, and wait until it is settled; return the update's id."""
        self.publish(version, **options)
        update_id = self.offer(version)
        if not (self.store / "current").exists():
            self.wait_update(update_id, "COMMITTED")
        else:
            self.prove(update_id)
        self.wait_settled(version)
        self.wait_acting(version)
        return update_id

    # -- what always holds --------------------------------------------------------------------------------------------------

    def current(self) -> str:
        """Return the version that ``current`` names, after its bundle has been verified whole; empty = it names none."""
        link = self.store / "current"
        if not link.is_symlink():
            return ""
        manifest = verify_bundle(link.resolve()).manifest
        assert manifest.digest == self.digests[manifest.version]
        return manifest.version

    def check(self, committed: str, *, never: tuple[str, ...] = ()) -> None:
        """Fail unless everything that always holds has held so far.

        Args:
            committed: version that ``current`` must name.
            never: versions that must never have acted.
        """
        assert self.current() == committed
        self._check_commands(never)
        acted = {m.active_version for m in self.policy_status.messages}
        assert acted.isdisjoint(never), acted
        asked: dict[str, list[int]] = {}
        for path, headers in list(self.server.requests):
            if path.startswith("/blobs/"):
                start = headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
                asked.setdefault(path, []).append(int(start))
        again = {path: starts for path, starts in asked.items() if any(np.diff(starts) <= 0)}
        assert not again, f"bytes were fetched twice: {again}"

    def _check_commands(self, never: tuple[str, ...]) -> None:
        record = np.array(self.robot.record).reshape(-1, 3)
        stamps, commands = record[:, 0], record[:, 1:]
        assert np.isfinite(commands).all() and (commands >= LOW).all() and (commands <= HIGH).all()
        jumps = np.abs(np.diff(commands, axis=0)).max(axis=1, initial=0.0)
        reach = VELOCITY * np.maximum(np.diff(stamps), PERIOD_S) + 1e-6  # a command may get lost on a busy machine
        assert (jumps <= reach).all(), f"the robot was told to jump by {jumps[jumps > reach]} rad"
        others = [place for version, place in self.places.items() if version not in never]
        for version in never:
            place = self.places[version]
            if all(abs(place - other) > PLACE_STEP / 2 for other in others):
                away = np.abs(commands[:, 1] - place)
                rests = (away[1:] < 1e-3) & (jumps < 1e-3)  # passing by is no visit
                assert not rests.any(), f"the robot was where {version} goes"


class Repeating:
    """``with Repeating(publisher, message) as repeating:`` says it ten times a second; ``message`` may be changed."""

    def __init__(self, publisher: Any, message: Any) -> None:
        self._publisher, self.message = publisher, message
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Repeating:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self._publisher.publish(self.message)
