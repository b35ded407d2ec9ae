# SPDX-License-Identifier: Apache-2.0
"""A robot that adapts: real manager engine and store, real training processes, real episode files; a policy node in a file.

Nothing runs in the background but the manager and the training process: adaptation is looked after by ``until``.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from support.ota import Robot
from support.simulated_policy import SimulatedPolicy
from support.tiny_vla_bundles import CAMERA, STATE, make
from vla_adaptation import facts
from vla_adaptation.engine import Adaptation
from vla_adaptation.settings import AdaptationSettings
from vla_checkpoint import load_manifest
from vla_learning.episodes.format import Channel, EpisodeMeta, Feature
from vla_learning.episodes.writing import write_episode
from vla_ota_manager.engine import UpdateEngine
from vla_ota_manager.records import Update
from vla_sim.checkpoint_server import CheckpointServer, publish_bundle

STEPS = 14
FEATURES = {STATE: Feature("float32", (2,), ("j1", "j2")), CAMERA: Feature("image", (32, 32, 3))}
QUICK = {"steps": 60, "learning_rate": 3e-3, "nice": 0, "cpu_share": 64.0, "idle_s": 0.0}
"""Settings with which a test need not wait."""


def write_own_episode(path: Path, number: int, *, corrected: bool, **changes: Any) -> None:
    """Write an episode in which "red block" moves one way and "block" the other, as ``demonstrations`` do."""
    rng = np.random.default_rng(number)
    way = np.float32(1.0 if number % 2 else -1.0) * np.array([0.05, -0.05], np.float32)
    states = (rng.normal(scale=0.3, size=2) + way * np.arange(STEPS)[:, None]).astype(np.float32)
    pictures = np.repeat(rng.integers(0, 256, (1, 32, 32, 3), np.uint8), STEPS, axis=0)
    known: dict[str, Any] = {
        "episode_id": f"e-{number}", "policy": "tiny", "version": "1.0.0", "rate_hz": 20.0, "robot": "arm",
        "channels": (Channel("j1", "rad"), Channel("j2", "rad")), "features": FEATURES, "robot_type": "sim_arm",
        "instruction": ("block", "red block")[number % 2], "success": True, "intervention": corrected,
        "started_ns": 1_800_000_000_000_000_000 + number * 10**12,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = np.full(STEPS, corrected)
    features = {STATE: states, CAMERA: pictures}
    write_episode(path, EpisodeMeta(**known | changes), features, states + way, intervention=taken)


class AdaptiveRobot:
    """See the module. ``episode``: what the policy node says is open."""

    def __init__(self, folder: Path, server: CheckpointServer, base: Path, **settings: Any) -> None:
        self.folder, self.episodes = folder, folder / "recordings" / "episodes"
        self.robot = Robot(folder, server, {"adapter_dir": str(folder / "adaptation" / "offers")})
        self.settings: dict[str, Any] = {
            **QUICK,
            "adaptation_dir": str(folder / "adaptation"),
            "recording_dir": str(folder / "recordings"),
            "store_dir": str(self.robot.store_dir),
            **settings,
        }
        self.episode, self.later_s = "", 0.0
        self.offers: list[facts.Offer] = []
        self.base = base
        if not self.robot.store_dir.exists():
            UpdateEngine(self.robot.config, SimulatedPolicy(self.robot.policy_file)).import_bundle(base)
        self.robot.start()
        self.adaptation: Adaptation | None = None

    def record(self, corrected: int = 15, plain: int = 15, *, first: int = 0, **changes: Any) -> None:
        """Let the recorder have left so many episodes."""
        for number in range(first, first + corrected + plain):
            path = self.episodes / f"20260101T{number:06d}Z_e-{number}.mcap"
            write_own_episode(path, number, corrected=number - first < corrected, **changes)

    def start(self, **settings: Any) -> Adaptation:
        """Start adaptation, as a node does."""
        self.settings |= settings
        self.adaptation = Adaptation(AdaptationSettings(**self.settings), self._offer, self.clock)
        return self.adaptation

    def clock(self) -> float:
        return time.monotonic() + self.later_s

    def stop(self) -> None:
        if self.adaptation is not None:
            self.adaptation.close()
            self.adaptation = None

    def close(self) -> None:
        self.stop()
        self.robot.stop()

    def _offer(self, offer: facts.Offer) -> None:
        assert self.robot.engine is not None
        update = Update(offer.update_id, offer.manifest_url, offer.manifest_sha256, offer.name, offer.version)
        reply = self.robot.engine.offer(update)
        if reply.error_code != "OFFER_REPEATED":  # said again because nothing was heard yet
            assert reply.success, reply
            self.offers.append(offer)

    def hear(self) -> None:
        """Let adaptation hear what the policy node says now."""
        assert self.adaptation is not None
        self.adaptation.policy(facts.Policy(self.episode))

    def tick(self) -> facts.Status:
        """Let everybody say how things stand, and adaptation look once."""
        assert self.adaptation is not None and self.robot.engine is not None
        self.hear()
        self.adaptation.manager(self.robot.engine.status())
        self.adaptation.tick()
        return self.adaptation.status()

    def until(self, condition: Callable[[facts.Status], Any], timeout_s: float = 100.0) -> facts.Status:
        """Go on until a status of adaptation is as it should be, and return it."""
        deadline = time.monotonic() + timeout_s
        while not condition(status := self.tick()):
            assert time.monotonic() < deadline, f"{status}\n{self.log()}"
            time.sleep(0.02)
        return status

    def until_standing(self, standing: str) -> facts.Status:
        """Go on until the adapter stands so."""
        return self.until(lambda s: s.adapter_standing == standing)

    def log(self) -> str:
        path = self.folder / "adaptation" / "job" / "log"
        return path.read_text() if path.exists() else ""

    @property
    def process(self) -> int:
        """The training process that was started last."""
        assert self.adaptation is not None and self.adaptation._process is not None
        return self.adaptation._process.pid

    def checkpointed(self) -> bool:
        return (self.folder / "adaptation" / "job" / "work" / "checkpoint.safetensors").exists()

    def kill_training(self) -> None:
        os.kill(self.process, signal.SIGKILL)

    def install_base(self, folder: Path, version: str, **config: Any) -> None:
        """Publish another full version, made as the base was, and let it prove itself."""
        make(folder, 0.0, version=version, **config)
        publish_bundle(self.robot.registry, folder)
        self.robot.manifests[version] = load_manifest(folder)
        self.robot.install(version)

    def rewrite_state(self, **fields: Any) -> None:
        """Change what adaptation remembers of its adapter."""
        path = self.folder / "adaptation" / "state.json"
        document = json.loads(path.read_text())
        document["adapter"].update(fields)
        path.write_text(json.dumps(document))

    def adapter_folder(self) -> Path:
        """Where the adapter is that adaptation remembers."""
        document = json.loads((self.folder / "adaptation" / "state.json").read_text())
        return Path(document["adapter"]["folder"])

    def committed(self) -> str:
        """Return the version that ``current`` names."""
        return load_manifest(self.robot.store_dir / "current").version


@dataclass(frozen=True)
class Trained:
    """What a robot made of 30 good episodes and some bad ones, from its base to COMMITTED."""

    status: facts.Status
    robot: Path
    committed: str
    offers: int


Made = Callable[..., AdaptiveRobot]
"""Makes a robot, or one that goes on where another one (a :class:`Trained`) is."""


def state_of(pid: int) -> str:
    """Return what the kernel says of a process: R, S, T (stopped) …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
