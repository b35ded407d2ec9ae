# SPDX-License-Identifier: Apache-2.0
"""A robot for tests of the update engine: registry behind a real HTTP server, store, simulated policy node, engine."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from support.bundles import make_bundle
from support.simulated_policy import SimulatedPolicy
from vla_checkpoint import Manifest
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.engine import UpdateEngine
from vla_ota_manager.records import EpisodeResult, Event, Score, Status, Update, UpdateOutcome
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import State
from vla_sim.checkpoint_server import CheckpointServer, publish_bundle

QUICK = {
    "min_free_bytes": 0, "backoff_s": 0.01, "backoff_max_s": 0.05, "trial_lease_s": 60.0, "status_period_s": 0.1,
    "min_trial_episodes": 0, "min_trial_chunks": 5, "min_trial_time_s": 0.0, "first_install_chunks": 3,
}  # fmt: skip
"""Settings with which a test need not wait; a lease runs out where a test says so, and not in a stall of the machine."""


def shared_weights(seed: int = 7, size: int = 4000) -> dict[str, Any]:
    """Return weights of which "backbone" is the same for every seed's bundle file layout."""
    return {"w": np.random.default_rng(seed).normal(size=size).astype(np.float32)}


@dataclass
class Robot:
    """One robot; ``engine`` exists after ``start``."""

    folder: Path
    server: CheckpointServer
    settings: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    feeding: bool = True
    later_s: float = 0.0
    """How far the engine's wall clock is ahead of the machine's [s]: what a test sets to let an offer expire."""

    def __post_init__(self) -> None:
        self.store_dir = self.folder / "store"
        self.policy_file = self.folder / "policy.json"
        self.registry = self.server.root
        self.manifests: dict[str, Manifest] = {}
        self.engine: UpdateEngine | None = None
        self._stopping = threading.Event()
        self._feeder: threading.Thread | None = None

    @property
    def config(self) -> OtaConfig:
        return OtaConfig(**self.config_arguments())

    def config_arguments(self) -> dict[str, Any]:
        base = {"store_dir": str(self.store_dir), "allowed_sources": (self.server.base,)}
        return {**QUICK, **base, **self.settings}

    def publish(self, version: str, **bundle: Any) -> Manifest:
        """Make a bundle and put it into the registry."""
        folder = self.folder / f"bundle-{version}"
        bundle.setdefault("seed", zlib.crc32(version.encode()) % 1000)
        self.manifests[version] = make_bundle(folder, version=version, **bundle)
        publish_bundle(self.registry, folder)
        return self.manifests[version]

    def publish_broken(self, version: str, **bundle: Any) -> Manifest:
        """Publish a bundle that arrives whole and fails its verification: the digests of its tensors are wrong."""
        good = self.publish(version, **bundle)
        tensors = {file: dict.fromkeys(digests, "0" * 64) for file, digests in good.tensors.items()}
        bad = self.manifests[version] = replace(good, tensors=tensors)
        (self.registry / good.name / version / "manifest.json").write_bytes(bad.canonical())
        return bad

    def adopt(self, version: str, **bundle: Any) -> Manifest:
        """Make a bundle and commit it as a factory image."""
        manifest = self.publish(version, **bundle)
        engine = UpdateEngine(self.config, SimulatedPolicy(self.policy_file))
        engine.import_bundle(self.folder / f"bundle-{version}")
        return manifest

    def boot_policy(self) -> SimulatedPolicy:
        return SimulatedPolicy.boot(self.policy_file, self.store_dir / "current")

    @property
    def policy(self) -> SimulatedPolicy:
        return SimulatedPolicy(self.policy_file)

    def start(self, **engine: Any) -> UpdateEngine:
        policy = self.policy
        if not self.policy_file.exists():
            self.boot_policy()

        def on_status(status: Status) -> None:
            self.statuses.append(status)
            digests = status.experiment_digests
            policy.hear_manager(status.trial_digest, status.committed_digest, status.experiment, digests)

        engine.setdefault("filesystem", Filesystem())
        engine.setdefault("wall_clock", lambda: time.time() + self.later_s)
        self.engine = UpdateEngine(self.config, policy, on_status=on_status, on_event=self.events.append, **engine)
        self.engine.start()
        self._stopping.clear()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()
        return self.engine

    def stop(self) -> None:
        self._stopping.set()
        if self._feeder is not None:
            self._feeder.join(60.0)
        if self.engine is not None:
            assert self.engine.stop()
            self.engine = None

    def _feed(self) -> None:
        """Give the engine what a robot at work would: a good score now and then."""
        while not self._stopping.wait(0.02):
            snapshot = self.policy.status()
            engine = self.engine
            if self.feeding and engine is not None and snapshot is not None and snapshot.generation:
                engine.on_score(Score("tce", 0.1, time.time(), snapshot.active_version, snapshot.generation))

    # -- what tests do ------------------------------------------------------------------------------------------------------

    def update(self, version: str, /, **fields: Any) -> Update:
        """Return an offer of a published version."""
        manifest = self.manifests[version]
        return Update(**{
            "update_id": f"u-{version}", "name": manifest.name, "version": version,
            "manifest_url": self.server.url(f"{manifest.name}/{version}/manifest.json"),
            "manifest_sha256": manifest.digest, **fields,
        })  # fmt: skip

    def offer(self, version: str, /, **fields: Any) -> str:
        update = self.update(version, **fields)
        assert self.engine is not None
        reply = self.engine.offer(update)
        assert reply.success, reply
        return update.update_id

    def install(self, version: str, state: UpdateState = UpdateState.COMMITTED, /, **fields: Any) -> UpdateOutcome:
        """Offer a version and wait until that is over; check how it ended."""
        outcome = self.ended(self.offer(version, **fields))
        assert outcome.state is state, outcome
        if state is UpdateState.COMMITTED:
            self.until(lambda: self.engine is not None and not self.engine.store.state.activation_due)
        return outcome

    def begin(self, filesystem: Filesystem | None = None, **says: Any) -> UpdateEngine:
        """Commit 1.0.0, publish 1.1.0 and start; ``says``: what the policy node does from then on."""
        self.adopt("1.0.0")
        self.publish("1.1.0")
        self.boot_policy()
        self.say(**says)
        return self.start(filesystem=filesystem or Filesystem())

    def say(self, **fields: Any) -> None:
        """Change what the policy node reports or does; see :class:`SimulatedPolicy`."""
        with self.policy.edit() as document:
            document.update(fields)

    def try_out(self, version: str = "1.1.0", **engine: Any) -> str:
        """Commit 1.0.0, offer another version with permission and wait until it is on trial; return the update's id."""
        self.adopt("1.0.0")
        self.publish(version)
        self.start(**engine).set_update_permitted(True)
        update_id = self.offer(version)
        self.reach(UpdateState.TRIAL)
        return update_id

    def try_next(self, version: str = "1.2.0") -> str:
        """Offer another version and wait until it is on trial, where it proves nothing; return the update's id."""
        self.publish(version)
        self.feeding = False
        update_id = self.offer(version)
        self.reach(UpdateState.TRIAL)
        return update_id

    def ended(self, update_id: str, state: UpdateState | None = None, code: str | None = None) -> UpdateOutcome:
        """Wait for an update's end and its event; ``state`` and ``code``: how it must have ended."""
        engine = self.engine
        assert engine is not None
        self.until(lambda: (outcome := engine.outcome(update_id)) is not None and outcome.final)
        outcome = engine.outcome(update_id)
        assert outcome is not None
        self.until(lambda: self.states_of(update_id)[-1:] == [outcome.state.name])  # comes after ``current``
        assert state in (None, outcome.state) and code in (None, outcome.error_code), outcome
        return outcome

    def reach(self, state: UpdateState) -> None:
        """Wait until the engine is in a state and has published that: the state is there before its event and its status."""
        engine = self.engine
        assert engine is not None
        self.until(lambda: engine.status().state is state and self.statuses[-1:] and self.statuses[-1].state is state)

    def rest(self) -> None:
        """Wait until the engine's thread has done what follows a transition, such as to remove what nobody needs any more."""
        assert self.engine is not None
        assert not self.engine.commit("0.0.0-nobody").success  # its thread refuses it, when it comes to it

    def go_round(self, times: int = 3) -> None:
        """Wait until the engine has gone on for several of its steps, so that what did not happen will not."""
        seen = len(self.statuses)
        self.until(lambda: len(self.statuses) >= seen + times)

    def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            status = self.engine.status() if self.engine is not None else None
            assert time.monotonic() < deadline, f"{status}\n" + "\n".join(e.to_line() for e in self.events)
            time.sleep(0.005)

    def score(self, value: float, source: str = "tce", **fields: Any) -> None:
        """Let the acting generation score; ``fields``: of the score, over the true ones."""
        snapshot = self.policy.status()
        assert snapshot is not None and self.engine is not None
        known = {"stamp_s": time.time(), "version": snapshot.active_version, "generation": snapshot.generation}
        self.engine.on_score(Score(source, value, **{**known, **fields}))

    def episode(self, success: bool, **fields: Any) -> None:
        """Let the acting generation go through an episode; ``fields``: of its outcome, over the true ones."""
        assert self.engine is not None
        episode_id = f"e-{time.monotonic_ns()}"
        for opened in (episode_id, ""):
            with self.policy.edit() as document:
                document["episode"] = opened
            self.engine.on_policy_status()
        self.outcome(success, **{"episode_id": episode_id, **fields})

    def outcome(self, success: bool, **fields: Any) -> None:
        """Publish an outcome of an episode of the acting generation, whether there was one or not."""
        snapshot = self.policy.status()
        assert snapshot is not None and self.engine is not None
        known = {"stamp_s": time.time(), "version": snapshot.active_version, "generation": snapshot.generation}
        self.engine.on_outcome(EpisodeResult(**{"episode_id": "nobody's", "success": success, **known, **fields}))

    def current_version(self) -> str:
        link = self.store_dir / "current"
        return link.resolve().name if link.is_symlink() else ""

    def left_over(self) -> list[str]:
        """Return what lies on the disk and belongs to no version: downloads, and blobs that nobody links to."""
        found = [path.name for path in (self.store_dir / "partial").iterdir()]
        for path in (self.store_dir / "blobs/sha256").iterdir():
            with suppress(FileNotFoundError):  # it goes this moment
                if path.stat().st_nlink == 1:
                    found.append(path.name)
        return found

    def saved(self) -> State:
        """Return the state that a restart would find."""
        return State.from_bytes((self.store_dir / "state.json").read_bytes())

    def states_of(self, update_id: str) -> list[str]:
        """Return the states of an update whose events have come."""
        return [event.to_state for event in list(self.events) if event.update_id == update_id]

    def trail(self, update_id: str) -> list[str]:
        """Return the states that an update went through, up to the end that the engine tells."""
        outcome = self.engine.outcome(update_id) if self.engine is not None else None
        if outcome is not None and outcome.final:  # known a moment before its event is
            self.until(lambda: self.states_of(update_id)[-1:] == [outcome.state.name])
        return self.states_of(update_id)
