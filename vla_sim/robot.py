# SPDX-License-Identifier: Apache-2.0
"""The simulated arm as a robot: physics in a thread of its own on wall time, commands in, measurements out, thread-safe.

Like a real drive it does not trust its commander: a command that is malformed is refused, and when commands stop coming it stays
where it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_sim.arm import PHYSICS_HZ, Arm, ArmState
from vla_sim.camera import Image, render

Array = npt.NDArray[np.float64]

_CYCLE_S = 0.005
_LARGEST_CATCH_UP_S = 0.1


@dataclass(frozen=True)
class Snapshot:
    """The robot at one moment. ``sim_time_s`` is the time that the physics have run [s]."""

    arm: ArmState
    blocks: Array  # [4, 3] centres [m]
    sim_time_s: float
    holding: bool  # no command for longer than the timeout
    skipped_s: float  # wall time that the physics could not keep up with, since the start


class SimRobot:
    """Owns the arm; every method may be called from any thread."""

    def __init__(self, command_timeout_s: float = 0.5) -> None:
        self._arm = Arm()
        self._lock = threading.Lock()
        self._command_timeout_s = command_timeout_s
        self._last_command_s: float | None = None
        self._holding = True
        self._steps = 0
        self._skipped_s = 0.0
        self.asleep = False
        """Whether time stands still."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sim_physics", daemon=True)

    def start(self) -> None:
        """Let time pass."""
        self._thread.start()

    def close(self) -> None:
        """Stop the physics; idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def command(self, joints: Sequence[float]) -> None:
        """Set the joint positions to go to [rad]; raises :class:`vla_sim.errors.CommandRefusedError` and changes nothing."""
        with self._lock:
            self._arm.command(joints)
            self._last_command_s = time.monotonic()
            self._holding = False

    def place_blocks(self, layout: npt.ArrayLike) -> None:
        """Put the blocks at ``layout`` ``[4, 2]`` [m]; the arm stays as it is."""
        with self._lock:
            self._arm.place_blocks(layout)

    def snapshot(self) -> Snapshot:
        """Measure everything at one moment."""
        with self._lock:
            return Snapshot(
                self._arm.state(), self._arm.blocks(), self._steps / PHYSICS_HZ, self._holding, self._skipped_s
            )

    def picture(self) -> Image:
        """What the camera sees, uint8 ``[64, 64, 3]``."""
        now = self.snapshot()
        return render(now.arm.position, now.blocks)  # drawn outside the lock: it takes longer than a physics step

    def _run(self) -> None:
        began, done = time.monotonic(), 0.0
        while not self._stop.wait(_CYCLE_S):
            if self.asleep:
                continue
            now = time.monotonic()
            behind = now - began - done
            if behind > _LARGEST_CATCH_UP_S:  # the machine stood still: time was lost, do not rush after it
                lost = behind - _LARGEST_CATCH_UP_S
                done += lost
                behind -= lost
                self._skipped_s += lost
            steps = int(behind * PHYSICS_HZ)
            with self._lock:
                self._watch_commander(now)
                self._arm.step(steps)
                self._steps += steps
            done += steps / PHYSICS_HZ

    def _watch_commander(self, now_s: float) -> None:
        if (
            not self._holding
            and self._last_command_s is not None
            and now_s - self._last_command_s > self._command_timeout_s
        ):
            self._arm.command(self._arm.state().position.tolist())
            self._holding = True
