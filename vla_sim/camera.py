# SPDX-License-Identifier: Apache-2.0
"""A 64x64 colour picture of table, blocks and arm, drawn with numpy: a pinhole camera, painter's algorithm, smooth edges.

The camera stands opposite the robot and looks down at the middle of the work space, mirror-symmetric in y.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, TIP_RADIUS_M
from vla_sim.kinematics import link_points

Array = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]

SIZE = 64
"""Width and height of the picture [px]."""

_EYE = np.array([0.62, 0.0, 0.95])
_LOOK_AT = np.array([0.25, 0.0, 0.03])
_FOCAL_PX = 88.0

_FLOOR_RGB = (60.0, 60.0, 66.0)
_TABLE_RGB = (172.0, 158.0, 138.0)
_LINK_RGB = (225.0, 225.0, 230.0)
_TIP_RGB = (20.0, 20.0, 20.0)
_BLOCK_RGB = {
    "red": (200.0, 35.0, 30.0),
    "green": (35.0, 150.0, 50.0),
    "blue": (35.0, 70.0, 200.0),
    "yellow": (225.0, 190.0, 30.0),
}
_TABLE_M = ((-0.1, -0.42), (0.52, -0.42), (0.52, 0.42), (-0.1, 0.42))
_SIDE_SHADE, _TOP_SHADE = 0.72, 1.0
_LINK_RADIUS_M = (0.03, 0.018, TIP_RADIUS_M)


def _camera_axes() -> Array:
    forward = (_LOOK_AT - _EYE) / np.linalg.norm(_LOOK_AT - _EYE)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


_AXES = _camera_axes()
_COLUMN, _ROW = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
_CORNERS = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * BLOCK_SIZE_M
_TOP_FACE = (1, 3, 7, 5)
_SIDE_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6))


def project(points: npt.ArrayLike) -> tuple[Array, Array]:
    """Pixels ``[..., 2]`` (column, row) and depths ``[...]`` [m] of points ``[..., 3]`` [m]."""
    seen = (np.asarray(points, dtype=np.float64) - _EYE) @ _AXES.T
    depth = seen[..., 2]
    return SIZE / 2 + _FOCAL_PX * seen[..., :2] / depth[..., None], depth


def _window(corners: Array, margin_px: float) -> tuple[slice, slice]:
    """Rows and columns of the picture that hold these pixels ``[n, 2]`` and a margin."""
    low = np.clip(np.floor(corners.min(axis=0) - margin_px), 0, SIZE).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0) + margin_px), 0, SIZE).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _blend(canvas: Array, distance: Array, rgb: npt.ArrayLike) -> None:
    """Paint ``rgb`` where the signed distance [px] is negative, with an edge one pixel wide."""
    coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    canvas += coverage * (np.asarray(rgb) - canvas)


def _fill_polygon(canvas: Array, corners: Array, rgb: npt.ArrayLike) -> None:
    """Fill a convex polygon ``[n, 2]`` [px]; the signed distance is the largest over its edges' half planes."""
    following = np.roll(corners, -1, axis=0)
    double_area = float(np.sum(corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]))
    if abs(double_area) < 1.0:  # seen edge-on
        return
    window = _window(corners, 1.0)
    columns, rows = _COLUMN[window], _ROW[window]
    distance = np.full(columns.shape, -np.inf)
    for (column, row), (dx, dy) in zip(corners, following - corners, strict=True):
        half_plane = ((columns - column) * dy - (rows - row) * dx) * np.sign(double_area) / np.hypot(dx, dy)
        np.maximum(distance, half_plane, out=distance)
    _blend(canvas[window], distance, rgb)


def _draw_link(canvas: Array, start: Array, end: Array, radius_px: float, rgb: npt.ArrayLike) -> None:
    """Draw a line with round ends between two pixels."""
    window = _window(np.stack([start, end]), radius_px + 1.0)
    column, row = _COLUMN[window] - start[0], _ROW[window] - start[1]
    dx, dy = end - start
    along = np.clip((column * dx + row * dy) / max(float(dx * dx + dy * dy), 1e-9), 0.0, 1.0)
    _blend(canvas[window], np.hypot(column - along * dx, row - along * dy) - radius_px, rgb)


def _draw_block(canvas: Array, centre: Array, rgb: npt.ArrayLike) -> None:
    """Draw a block as an upright box (a toppled or turned one keeps this look; the arm seldom does more than nudge them)."""
    pixels, depths = project(centre + _CORNERS)
    for face in sorted(_SIDE_FACES, key=lambda face: -float(depths[list(face)].mean())):
        _fill_polygon(canvas, pixels[list(face)], np.asarray(rgb) * _SIDE_SHADE)
    _fill_polygon(canvas, pixels[list(_TOP_FACE)], np.asarray(rgb) * _TOP_SHADE)


def _background() -> Array:
    canvas = np.empty((SIZE, SIZE, 3))
    canvas[:] = _FLOOR_RGB
    corners, _ = project([(x, y, 0.0) for x, y in _TABLE_M])
    _fill_polygon(canvas, corners, _TABLE_RGB)
    return canvas


_BACKGROUND = _background()


def render(joints: npt.ArrayLike, blocks: npt.ArrayLike) -> Image:
    """Picture uint8 ``[64, 64, 3]`` (RGB) of the arm at ``joints`` ``[3]`` [rad] and of the blocks' centres ``[4, 3]`` [m].

    ``blocks`` are in the order of ``BLOCK_COLOURS``.
    """
    canvas = _BACKGROUND.copy()
    centres = np.asarray(blocks, dtype=np.float64)
    _, depths = project(centres)
    for index in np.argsort(-depths):
        _draw_block(canvas, centres[index], _BLOCK_RGB[BLOCK_COLOURS[index]])
    points = link_points(joints)
    pixels, depths = project(points)
    for i, radius in enumerate(_LINK_RADIUS_M):
        radius_px = _FOCAL_PX * radius / float(depths[i : i + 2].mean())
        _draw_link(canvas, pixels[i], pixels[i + 1], radius_px, _LINK_RGB)
    _draw_link(canvas, pixels[3], pixels[3], _FOCAL_PX * TIP_RADIUS_M / float(depths[3]), _TIP_RGB)
    return np.rint(canvas).astype(np.uint8)
