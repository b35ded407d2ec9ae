# SPDX-License-Identifier: Apache-2.0
"""What the bridge needs of the robot. ``ros/`` implements it over ROS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vla_fleet import protocol


@dataclass(frozen=True)
class Answer:
    """What the manager says to a request."""

    success: bool
    error_code: str = ""
    message: str = ""
    version: str = ""


class RobotPort(Protocol):
    """The robot's manager, as the bridge sees it. All but ``offer`` may block; they have a thread of their own."""

    def offer(self, update_id: str, order: protocol.ModelUpdate) -> None:
        """Publish an offer. The manager acts on each ``update_id`` once, so it may be repeated."""
        ...

    def rollback(self, version: str, reason: str) -> Answer:
        """Go back and wait for it; error_code ``MANAGER_ABSENT`` if no manager answers."""
        ...

    def pin(self, version: str, *, unpin: bool) -> Answer:
        """Keep a version on disk, or no longer."""
        ...

    def assign(self, order: protocol.Assign, robot: str) -> Answer:
        """Take part in an experiment under this name, or (no versions) no longer; the manager keeps it."""
        ...
