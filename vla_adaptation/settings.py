# SPDX-License-Identifier: Apache-2.0
"""Every setting of local adaptation with its unit and range: the source of the node's ROS parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_adaptation.errors import AdaptationError
from vla_ros.settings import setting


@dataclass(frozen=True)
class AdaptationSettings:
    """Settings of one policy's adaptation. Raises AdaptationError PARAMETER_INVALID for values that do not go together."""

    adaptation_dir: str = setting(
        "", "Folder of training and adapters, on the episodes' file system; made if missing. Required", path=True
    )
    recording_dir: str = setting("", "The recorder's folder: its episodes are learned from. Required", path=True)
    store_dir: str = setting("", "ota_manager's store: the committed version is the base. Required", path=True)
    python: str = setting(
        "", "Interpreter of the training process, one that has torch and pyarrow; empty = the node's own", path=True
    )
    threads: int = setting(1, "Threads of the training process", 1, 64)
    nice: int = setting(19, "Niceness of the training process: 19 takes what nobody else wants", 0, 19)
    cpu_share: float = setting(0.5, "Most CPU time of the training process, as a share of one core", 0.01, 64.0)
    max_memory_bytes: int = setting(4 << 30, "Most memory of the training process [bytes]", 256 << 20)
    max_run_s: float = setting(
        7200.0, "Longest time that one adapter is trained, without its pauses [s]", 1.0, 604_800.0
    )
    idle_s: float = setting(30.0, "Training begins or goes on when no episode ran for so long [s]", 0.0, 86_400.0)
    min_corrections: int = setting(
        15, "New corrected episodes, and successes besides, that an adapter is trained for; a third is held out", 15
    )
    max_episodes: int = setting(300, "Most episodes that an adapter is trained on, the newest", 30, 10_000)
    rank: int = setting(8, "Rank of the adapter", 1, 256)
    steps: int = setting(400, "Steps of the optimiser", 1, 1_000_000)
    learning_rate: float = setting(1e-3, "Highest learning rate", 1e-9, 1.0)
    server: str = setting(
        "", "Fleet server that proven adapters are uploaded to, wss://host[:port] as fleet_bridge has it; empty = none"
    )
    state_dir: str = setting("", "Folder of fleet_bridge, which keeps the robot's token there", path=True)
    ca_file: str = setting("", "Certificate authority of the server (PEM), if this machine does not know it", path=True)
    policy_node: str = setting("policy_node", "Name of the policy node, relative to this namespace, or absolute")
    ota_manager: str = setting("ota_manager", "Name of the manager's node, relative to this namespace, or absolute")

    def __post_init__(self) -> None:
        for name in ("adaptation_dir", "recording_dir", "store_dir"):
            if not getattr(self, name):
                raise AdaptationError("PARAMETER_INVALID", f"{name}: must name a folder")
        if self.server and not self.server.startswith(("ws://", "wss://")):
            raise AdaptationError("PARAMETER_INVALID", f"server: {self.server!r} must begin with wss:// or ws://")
        if self.server and not self.state_dir:
            raise AdaptationError("PARAMETER_INVALID", "state_dir: must name the folder of fleet_bridge")

    @property
    def folder(self) -> Path:
        """Of training and adapters."""
        return Path(self.adaptation_dir)

    @property
    def episodes(self) -> Path:
        """Of the recorder's episode files."""
        return Path(self.recording_dir) / "episodes"
