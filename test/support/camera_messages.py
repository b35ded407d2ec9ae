# SPDX-License-Identifier: Apache-2.0
"""What a camera driver publishes, as plain objects."""

from __future__ import annotations

import io
from array import array
from types import SimpleNamespace as Message
from typing import Any

import numpy as np
from PIL import Image

BYTES_A_PIXEL = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1}


def image(height: int = 2, width: int = 3, encoding: str = "rgb8", padding: int = 0, stamp_ns: int = 0) -> Message:
    """A sensor_msgs/Image whose bytes count up, rows padded with 255."""
    size = BYTES_A_PIXEL.get(encoding, 3)
    rows = np.full((height, width * size + padding), 255, np.uint8)
    rows[:, : width * size] = np.arange(height * width * size, dtype=np.uint8).reshape(height, -1)
    stamp = Message(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return Message(
        height=height,
        width=width,
        encoding=encoding,
        step=width * size + padding,
        is_bigendian=0,
        data=array("B", rows.tobytes()),
        header=Message(stamp=stamp),
    )


def compressed(pixels: Any, kind: str = "png", message_format: str = "") -> Message:
    """A sensor_msgs/CompressedImage of uint8 pixels ``[H, W]`` or ``[H, W, 3 or 4]``."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, kind)
    return Message(format=message_format or kind, data=array("B", file.getvalue()))
