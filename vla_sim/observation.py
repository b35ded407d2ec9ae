# SPDX-License-Identifier: Apache-2.0
"""What a policy is given: the features of the arm under the names that its bundles use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vla_sim.arm import Arm
from vla_sim.camera import render

STATE_KEY = "observation.state"
IMAGE_KEY = "observation.images.top"


def observe(arm: Arm) -> dict[str, npt.NDArray[np.generic]]:
    """``observation.state`` float32 ``[3]`` joint positions [rad], ``observation.images.top`` uint8 ``[64, 64, 3]`` RGB."""
    joints = arm.state().position
    return {STATE_KEY: joints.astype(np.float32), IMAGE_KEY: render(joints, arm.blocks())}
