# SPDX-License-Identifier: Apache-2.0
"""From a sensor_msgs/Image to JPEG, from a policy's picture to PNG. Messages are read by attribute: no ROS import."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_RAW_MODES = {
    "rgb8": ("RGB", "RGB"),
    "bgr8": ("RGB", "BGR"),
    "rgba8": ("RGB", "RGBX"),
    "bgra8": ("RGB", "BGRX"),
    "mono8": ("L", "L"),
}


def jpeg(message: Any, quality: int) -> bytes | None:
    """Return the picture as JPEG; None: it has an encoding that JPEG cannot hold, or not the bytes it promises."""
    modes = _RAW_MODES.get(message.encoding)
    if modes is None:
        return None
    try:
        picture = Image.frombuffer(
            modes[0], (message.width, message.height), message.data, "raw", modes[1], message.step, 1
        )
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality)
    except (ValueError, OSError):
        return None
    return out.getvalue()


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return a picture ``[H, W, 3]`` as PNG: small features lose nothing, and the time goes to the control loop's machine."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
