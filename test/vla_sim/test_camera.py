"""The picture shows the scene: blocks in their colours at their places, the arm, mirror-symmetric, the same every time."""

from __future__ import annotations

import numpy as np

from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, HOME_RAD
from vla_sim.camera import project, render
from vla_sim.kinematics import joints_for, tip_position

LAYOUT = np.array([[0.3, -0.25], [0.38, 0.1], [0.22, 0.2], [0.4, -0.1]])


def centres(layout: np.ndarray = LAYOUT) -> np.ndarray:
    return np.column_stack([layout, np.full(len(layout), BLOCK_SIZE_M / 2)])


def pixel(picture: np.ndarray, point: list[float]) -> np.ndarray:
    (column, row), _ = project(point)
    return picture[int(row), int(column)].astype(int)


def test_every_block_shows_its_colour_where_it_lies() -> None:
    picture = render(HOME_RAD, centres())
    red, green, blue, yellow = (pixel(picture, [x, y, BLOCK_SIZE_M]) for x, y in LAYOUT)
    assert BLOCK_COLOURS == ("red", "green", "blue", "yellow")
    assert red[0] > 2 * max(red[1], red[2])
    assert green[1] > 2 * max(green[0], green[2])
    assert blue[2] > 2 * max(blue[0], blue[1])
    assert min(yellow[0], yellow[1]) > 2 * yellow[2]


def test_moving_one_block_changes_the_picture_there_and_nowhere_else() -> None:
    moved = centres()
    moved[2, :2] = (0.30, 0.28)
    changed = np.any(render(HOME_RAD, centres()) != render(HOME_RAD, moved), axis=-1)
    near = np.zeros_like(changed)
    for block in (centres()[2], moved[2]):
        (column, row), _ = project(block)
        near[max(0, int(row) - 7) : int(row) + 8, max(0, int(column) - 7) : int(column) + 8] = True
    assert changed.any()
    assert not (changed & ~near).any()


def test_the_tip_is_seen_over_the_blocks() -> None:
    x, y = LAYOUT[3]
    joints = joints_for([np.arctan2(y, x), np.hypot(x, y), BLOCK_SIZE_M + 0.02])
    assert pixel(render(joints, centres()), tip_position(joints).tolist()).max() < 110
    assert pixel(render(HOME_RAD, centres()), tip_position(joints).tolist()).max() > 150


def test_a_mirrored_scene_gives_the_mirrored_picture() -> None:
    joints = np.array([0.5, 1.0, -1.8])
    mirrored = render(joints * [-1, 1, 1], centres() * [1, -1, 1])
    assert np.abs(render(joints, centres()).astype(int) - mirrored[:, ::-1].astype(int)).max() <= 1


def test_it_is_a_64_by_64_colour_picture_and_the_same_every_time() -> None:
    first, second = render(HOME_RAD, centres()), render(HOME_RAD, centres())
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert np.array_equal(first, second)
