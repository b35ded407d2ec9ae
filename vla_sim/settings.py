# SPDX-License-Identifier: Apache-2.0
"""Parameters of ``sim_robot``; see ``vla_ros.parameters`` for what the metadata does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _parameter(doc: str, low: float | None = None, high: float | None = None, live: bool = False) -> dict[str, Any]:
    return {"doc": doc, "low": low, "high": high, "live": live}


@dataclass(frozen=True)
class SimSettings:
    """What can be set at the start; ``motion_enabled`` and ``run_tasks`` also later."""

    joint_rate_hz: float = field(
        default=100.0, metadata=_parameter("joint_states are published this often [Hz]", 1.0, 500.0)
    )
    camera_rate_hz: float = field(
        default=30.0, metadata=_parameter("camera/image_raw is published this often [Hz]", 1.0, 60.0)
    )
    command_timeout_s: float = field(
        default=0.5, metadata=_parameter("the arm stays where it is when no command came for this long [s]", 0.05, 10.0)
    )
    motion_enabled: bool = field(default=True, metadata=_parameter("what is published on motion_enabled", live=True))
    run_tasks: bool = field(
        default=True, metadata=_parameter("give the policy node one task after the other", live=True)
    )
    task_timeout_s: float = field(
        default=8.0, metadata=_parameter("a task not done after this time has failed [s]", 0.5, 600.0)
    )
    task_pause_s: float = field(default=0.2, metadata=_parameter("pause between two tasks [s]", 0.0, 60.0))
    seed: int = field(default=0, metadata=_parameter("of the order of tasks and block layouts", 0, 2**31 - 1))
