# SPDX-License-Identifier: Apache-2.0
"""MuJoCo physics of a three-joint arm over a table with four coloured blocks; needs no GL.

The joints follow position commands through torque-limited servos, the links have mass, the blocks are free bodies that the arm
can push away. Physics run at ``PHYSICS_HZ``; a control period is a whole number of physics steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt

from vla_sim.errors import CommandRefusedError
from vla_sim.kinematics import FOREARM_M, SHOULDER_HEIGHT_M, UPPER_ARM_M

Array = npt.NDArray[np.float64]

ROBOT_TYPE = "sim_arm"
JOINT_NAMES = ("j1", "j2", "j3")
CONTROL_HZ = 50
PHYSICS_HZ = 500

# What the robot contract should hold the policy to. A good policy's steps are at most 0.8 rad/s / 50 Hz = 0.016 rad within a
# chunk and up to twice that where chunks meet.
POSITION_LIMITS_RAD = ((-1.6, 1.6), (-0.3, 1.7), (-2.7, -0.3))
VELOCITY_LIMITS_RAD_S = (2.5, 2.5, 2.5)
HOME_RAD = (0.0, 1.25, -1.95)

BLOCK_COLOURS = ("red", "green", "blue", "yellow")
BLOCK_SIZE_M = 0.05
TIP_RADIUS_M = 0.01

# Stiff enough to follow a ramp about one control period behind it.
_SERVO_STIFFNESS_NM_RAD = (300.0, 300.0, 80.0)
_SERVO_TORQUE_NM = 20.0


def mjcf() -> str:
    """The model as MJCF text, from the same lengths that the kinematics use."""
    half = BLOCK_SIZE_M / 2
    limits = [f'range="{low} {high}"' for low, high in POSITION_LIMITS_RAD]
    blocks = "".join(
        f'<body name="{colour}" pos="{0.3} {0.12 * i - 0.18} {half}"><freejoint name="{colour}"/>'
        f'<geom type="box" size="{half} {half} {half}" mass="0.1" friction="0.8 0.01 0.0005"/></body>'
        for i, colour in enumerate(BLOCK_COLOURS)
    )
    # dampratio 1: critically damped for the inertia at the reference pose, as a tuned servo is.
    servos = "".join(
        f'<position name="{name}" joint="{name}" kp="{stiffness}" dampratio="1" '
        f'forcerange="-{_SERVO_TORQUE_NM} {_SERVO_TORQUE_NM}"/>'
        for name, stiffness in zip(JOINT_NAMES, _SERVO_STIFFNESS_NM_RAD, strict=True)
    )
    return f"""
<mujoco model="sim_arm">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{1 / PHYSICS_HZ}" integrator="implicitfast"/>
  <default><joint armature="0.01" damping="0.1"/></default>
  <worldbody>
    <geom name="table" type="box" pos="0.2 0 -0.02" size="0.5 0.6 0.02"/>
    <body name="column" pos="0 0 0" gravcomp="1">
      <joint name="j1" axis="0 0 1" {limits[0]}/>
      <geom type="cylinder" fromto="0 0 0.005 0 0 {SHOULDER_HEIGHT_M}" size="0.03" mass="0.5" contype="0" conaffinity="0"/>
      <body name="upper_arm" pos="0 0 {SHOULDER_HEIGHT_M}" gravcomp="1">
        <joint name="j2" axis="0 -1 0" {limits[1]}/>
        <geom type="capsule" fromto="0 0 0 {UPPER_ARM_M} 0 0" size="0.02" mass="0.35" contype="0" conaffinity="0"/>
        <body name="forearm" pos="{UPPER_ARM_M} 0 0" gravcomp="1">
          <joint name="j3" axis="0 -1 0" {limits[2]}/>
          <geom type="capsule" fromto="0 0 0 {FOREARM_M} 0 0" size="{TIP_RADIUS_M}" mass="0.2"/>
          <site name="tip" pos="{FOREARM_M} 0 0"/>
        </body>
      </body>
    </body>
    {blocks}
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>"""


@dataclass(frozen=True)
class ArmState:
    """What can be measured: joints [rad], joint velocities [rad/s], tip [m] and its speed [m/s]."""

    position: Array
    velocity: Array
    tip: Array
    tip_speed: float


class Arm:
    """The arm, its table and its blocks. Not thread-safe: one owner steps it."""

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_string(mjcf())
        self._data = mujoco.MjData(self._model)
        self._tip_id = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_SITE, "tip")
        self._qpos_of = {colour: int(self._model.joint(colour).qposadr[0]) for colour in BLOCK_COLOURS}
        self._dof_of = {colour: int(self._model.joint(colour).dofadr[0]) for colour in BLOCK_COLOURS}
        self.reset(HOME_RAD)

    def reset(self, joints: Sequence[float]) -> None:
        """Put the arm at rest at ``joints`` [rad], commanded to stay there; the blocks go back to where the model has them."""
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:3] = joints
        self.command(joints)
        mujoco.mj_forward(self._model, self._data)

    def place_blocks(self, layout: npt.ArrayLike) -> None:
        """Put the blocks, in the order of ``BLOCK_COLOURS``, at rest on the table at ``layout`` ``[4, 2]`` (x, y) [m]."""
        for colour, (x, y) in zip(BLOCK_COLOURS, np.asarray(layout, dtype=np.float64), strict=True):
            at, dof = self._qpos_of[colour], self._dof_of[colour]
            self._data.qpos[at : at + 7] = (x, y, BLOCK_SIZE_M / 2, 1.0, 0.0, 0.0, 0.0)
            self._data.qvel[dof : dof + 6] = 0.0
        mujoco.mj_forward(self._model, self._data)

    def command(self, joints: Sequence[float]) -> None:
        """Set the servos' target, three joint positions [rad], clipped to the position limits as real servos do.

        Raises :class:`CommandRefusedError` for a wrong number of values or one that is not finite.
        """
        target = np.asarray(joints, dtype=np.float64)
        if target.shape != (len(JOINT_NAMES),):
            raise CommandRefusedError(f"expected {len(JOINT_NAMES)} joint positions, got shape {target.shape}")
        if not np.isfinite(target).all():
            raise CommandRefusedError(f"joint positions are not finite: {target.tolist()}")
        low, high = np.transpose(POSITION_LIMITS_RAD)
        self._data.ctrl[:] = np.clip(target, low, high)

    @property
    def commanded(self) -> Array:
        """The servos' target [rad]."""
        return np.array(self._data.ctrl)

    def step(self, physics_steps: int = 1) -> None:
        """Advance the physics by ``physics_steps / PHYSICS_HZ`` seconds."""
        mujoco.mj_step(self._model, self._data, physics_steps)

    def step_control_period(self) -> None:
        """Advance the physics by one control period."""
        self.step(PHYSICS_HZ // CONTROL_HZ)

    def state(self) -> ArmState:
        """Measure the arm."""
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self._model, self._data, mujoco.mjtObj.mjOBJ_SITE, self._tip_id, velocity, 0)
        return ArmState(
            position=np.array(self._data.qpos[:3]),
            velocity=np.array(self._data.qvel[:3]),
            tip=np.array(self._data.site_xpos[self._tip_id]),
            tip_speed=float(np.linalg.norm(velocity[3:])),
        )

    def blocks(self) -> Array:
        """Centres of the blocks ``[4, 3]`` [m], in the order of ``BLOCK_COLOURS``."""
        return np.stack([self._data.qpos[self._qpos_of[colour] :][:3] for colour in BLOCK_COLOURS])
