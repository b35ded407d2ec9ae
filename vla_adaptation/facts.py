# SPDX-License-Identifier: Apache-2.0
"""What the engine hears of the robot, and what it says of itself: messages as values, without ROS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["WAITING", "TRAINING", "VALIDATING", "PAUSED", "OFFERED", "TRIAL"]
STATES: tuple[State, ...] = ("WAITING", "TRAINING", "VALIDATING", "PAUSED", "OFFERED", "TRIAL")
"""In the sequence of the message's numbers."""


@dataclass(frozen=True)
class Policy:
    """From PolicyStatus."""

    episode_id: str
    operator: bool = False
    """An operator commands the robot."""


class Manager(Protocol):
    """A ModelStatus."""

    state_name: str
    update_id: str
    committed_digest: str
    trial_digest: str
    experiment: str
    error_code: str
    message: str


@dataclass(frozen=True)
class Offer:
    """For ModelUpdate."""

    update_id: str
    name: str
    version: str
    manifest_url: str
    manifest_sha256: str


@dataclass(frozen=True)
class Status:
    """For AdaptationStatus; see there."""

    state: State
    base_version: str = ""
    base_digest: str = ""
    adapter_version: str = ""
    adapter_digest: str = ""
    adapter_standing: str = ""
    episodes_used: int = 0
    corrections_used: int = 0
    episodes_refused: int = 0
    run_s: float = 0.0
    waits_for: str = ""
    validation: str = ""
    uploaded: bool = False
    error_code: str = ""
    message: str = ""
