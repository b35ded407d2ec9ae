# SPDX-License-Identifier: Apache-2.0
"""Every setting of the recorder with its unit and range: the source of the node's ROS parameters."""

from __future__ import annotations

from dataclasses import dataclass

from vla_recorder.errors import RecorderError
from vla_ros.settings import setting

FAILURES, ALL = "failures", "all"
"""What is uploaded."""


@dataclass(frozen=True)
class RecorderSettings:
    """Settings of one recorder. Raises RecorderError PARAMETER_INVALID for values that do not go together."""

    contract: str = setting(
        "", "Robot contract, the policy node's: names the topics that are recorded. Required", path=True
    )
    recording_dir: str = setting("", "Folder of the recordings; made if missing, one a policy. Required", path=True)
    before_s: float = setting(30.0, "What is kept in memory, and written when something happens [s]", 1.0, 600.0)
    after_s: float = setting(5.0, "How long a recording goes on after the last thing that happened [s]", 0.0, 600.0)
    image_rate_hz: float = setting(2.0, "Pictures kept a second and camera, as JPEG [Hz]", 0.1, 60.0)
    jpeg_quality: int = setting(85, "Quality of these JPEG files", 1, 95)
    state_rate_hz: float = setting(50.0, "Messages kept a second of any other observation [Hz]", 1.0, 1000.0)
    max_memory_bytes: int = setting(64 << 20, "Most memory for what is kept [bytes]", 1 << 20)
    max_disk_bytes: int = setting(2 << 30, "Most that all recordings take; the oldest go [bytes]", 4 << 20)
    min_free_bytes: int = setting(1 << 30, "Space that must stay free on their file system [bytes]", 0)
    episodes_max_disk_bytes: int = setting(
        4 << 30, "Most that the files of episodes take, beside the recordings; 0 = no episode is recorded [bytes]", 0
    )
    episode_image_rate_hz: float = setting(
        30.0, "Pictures kept a second and camera in an episode's file, at most one a step [Hz]", 0.1, 60.0
    )
    server: str = setting(
        "", "Fleet server that episodes are uploaded to, wss://host[:port] as fleet_bridge has it; empty = no upload"
    )
    state_dir: str = setting("", "Folder of fleet_bridge, which keeps the robot's token there", path=True)
    ca_file: str = setting("", "Certificate authority of the server (PEM), if this machine does not know it", path=True)
    upload: str = setting(
        "failures", "Episodes that are uploaded: failures (and corrections, and unknown ends), or all"
    )
    upload_only_idle: bool = setting(
        True, "Upload while no episode runs; what has waited 10 minutes for that is sent all the same"
    )
    upload_bandwidth_bytes_s: int = setting(0, "Largest mean upload rate [bytes/s]; 0 = no cap", 0)
    policy_node: str = setting("policy_node", "Name of the policy node, relative to this namespace, or absolute")
    ota_manager: str = setting("ota_manager", "Name of the manager's node, relative to this namespace, or absolute")

    def __post_init__(self) -> None:
        if not self.recording_dir:
            raise RecorderError("PARAMETER_INVALID", "recording_dir: must name a folder")
        if self.max_disk_bytes < 4 * self.max_memory_bytes:
            raise RecorderError("PARAMETER_INVALID", "max_disk_bytes: must be at least 4 times max_memory_bytes")
        if self.upload not in (FAILURES, ALL):
            raise RecorderError("PARAMETER_INVALID", f"upload: {self.upload!r} must be {FAILURES} or {ALL}")
        if self.server and not self.server.startswith(("ws://", "wss://")):
            raise RecorderError("PARAMETER_INVALID", f"server: {self.server!r} must begin with wss:// or ws://")
        if self.server and not self.state_dir:
            raise RecorderError(
                "PARAMETER_INVALID", "state_dir: must name the folder of fleet_bridge, if server is given"
            )

    @property
    def max_episode_bytes(self) -> int:
        """A larger episode is not kept: it would take the place of too many others [bytes]."""
        return self.episodes_max_disk_bytes // 4

    @property
    def max_file_bytes(self) -> int:
        """A recording that goes on and on is closed at this size: half of the folder stays for others [bytes]."""
        return self.max_disk_bytes // 2
