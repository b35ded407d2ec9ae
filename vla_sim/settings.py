# SPDX-License-Identifier: Apache-2.0
"""Parameters of ``sim_robot``; see ``vla_ros.parameters`` for what the metadata does."""

from __future__ import annotations

from dataclasses import dataclass

from vla_ros.settings import setting
from vla_sim.arm import BLOCK_COLOURS
from vla_sim.errors import SimSettingError


@dataclass(frozen=True)
class SimSettings:
    """What can be set at the start; ``motion_enabled``, ``asleep``, ``run_tasks`` and ``task_colours`` also later."""

    joint_rate_hz: float = setting(100.0, "joint_states are published this often [Hz]", 1.0, 500.0)
    camera_rate_hz: float = setting(30.0, "camera/image_raw is published this often [Hz]", 1.0, 60.0)
    command_timeout_s: float = setting(
        0.5, "the arm stays where it is when no command came for this long [s]", 0.05, 10.0
    )
    motion_enabled: bool = setting(True, "what is published on motion_enabled", live=True)
    asleep: bool = setting(
        False, "physics, joint states and camera stand still, as those of a robot at night", live=True
    )
    run_tasks: bool = setting(True, "give the policy node one task after the other", live=True)
    task_timeout_s: float = setting(8.0, "a task not done after this time has failed [s]", 0.5, 600.0)
    operator_after_s: float = setting(
        0.0,
        "the scripted expert takes over a task that is not done after this time; 0 = nobody does [s]",
        0.0,
        600.0,
    )
    task_colours: tuple[str, ...] = setting(
        BLOCK_COLOURS,
        "block colours that tasks ask for; one that is named twice is asked for twice as often",
        live=True,
    )
    task_pause_s: float = setting(0.2, "pause between two tasks [s]", 0.0, 60.0)
    seed: int = setting(0, "of the order of tasks and block layouts", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        """Refuse colours that no block has (:class:`SimSettingError`)."""
        unknown = [colour for colour in self.task_colours if colour not in BLOCK_COLOURS]
        if unknown or not self.task_colours:
            wanted = f"{unknown[0]!r} is none of" if unknown else "must name at least one of"
            raise SimSettingError(f"task_colours: {wanted} {', '.join(BLOCK_COLOURS)}")
