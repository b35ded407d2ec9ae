# SPDX-License-Identifier: Apache-2.0
"""Pictures of an episode: as they were written, and as arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vla_learning.errors import EpisodeError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """What one camera saw in T steps; a picture that did not change is there once."""

    name: str
    shape: tuple[int, ...]
    """``(H, W, 3)``"""
    encoded: Sequence[bytes]
    """PNG or JPEG, each other than the one before."""
    which: npt.NDArray[np.int64]
    """Of each step, an index of ``encoded``, ``[T]``."""

    def decoded(self, index: int) -> Bytes:
        """Return one of ``encoded`` as ``[H, W, 3]``; EpisodeError EPISODE_FORMAT if it is damaged."""
        return decode(self.encoded[index], self.shape, self.name)

    def array(self) -> Bytes:
        """Return the pictures of all steps, ``[T, H, W, 3]``."""
        distinct = [self.decoded(index) for index in range(len(self.encoded))]
        return np.stack(distinct)[self.which] if distinct else np.zeros((0, *self.shape), np.uint8)


def encode_png(picture: Bytes) -> bytes:
    """Return a picture ``[H, W, 3]`` as PNG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def check_header(data: bytes, shape: tuple[int, ...], where: str) -> None:
    """Raise EpisodeError EPISODE_FORMAT unless ``data`` begins as a picture of this shape."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            size = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise EpisodeError("EPISODE_FORMAT", where, "this is no picture in PNG or JPEG") from e
    if size != (shape[1], shape[0]):
        raise EpisodeError("EPISODE_FORMAT", where, f"a picture of {size[1]} x {size[0]}, not {shape[0]} x {shape[1]}")


def decode(data: bytes, shape: tuple[int, ...], where: str) -> Bytes:
    """Return a picture file as ``[H, W, 3]``; EpisodeError EPISODE_FORMAT if it is none of that shape, or damaged."""
    check_header(data, shape, where)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as e:
        raise EpisodeError("EPISODE_FORMAT", where, f"a picture is damaged: {e}") from e
