# SPDX-License-Identifier: Apache-2.0
"""The assignment is the same everywhere, fair, independent from experiment to experiment, and nested."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_evidence.assignment import A, B, arm, arm_in_pair, cohort, uniform
from vla_evidence.errors import InputError

ROBOTS = [f"robot_{i}" for i in range(4000)]


def z_of(count: int, n: int, p: float) -> float:
    return (count - n * p) / math.sqrt(n * p * (1 - p))


def test_the_number_is_the_documented_hash_so_that_any_language_can_compute_it() -> None:
    for parts, text in (
        (("exp", "robot_7", None), '["exp","robot_7"]'),
        (("exp", "robot_7", 3), '["exp","robot_7",3]'),
        (("exp", "robot_7", "3"), '["exp","robot_7","3"]'),
        (("prüfung", 'a"b', "x"), '["prüfung","a\\"b","x"]'),
    ):
        bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        assert uniform(*parts) == (bits >> 11) / 2**53


@given(st.text(min_size=1), st.text(min_size=1), st.one_of(st.none(), st.integers(), st.text(min_size=1)))
def test_it_is_a_number_below_one_and_always_the_same(experiment: str, robot: str, episode: str | int | None) -> None:
    try:
        value = uniform(experiment, robot, episode)
    except InputError as e:
        assert e.code == "INPUT_VALUE"  # a lone surrogate
        return
    assert 0.0 <= value < 1.0
    assert uniform(experiment, robot, episode) == value


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_the_share_of_b_is_the_probability(probability: float) -> None:
    by_robot = sum(arm("share", robot, None, probability) == B for robot in ROBOTS)
    by_episode = sum(arm("share", "robot_1", episode, probability) == B for episode in range(4000))
    assert abs(z_of(by_robot, 4000, probability)) < 4
    assert abs(z_of(by_episode, 4000, probability)) < 4


def test_two_experiments_are_independent() -> None:
    """With an unsalted hash all robots in B of the first would be in B of the second."""
    first, second = ({r for r in ROBOTS if arm(name, r, None, 0.5) == B} for name in ("one", "two"))
    assert abs(z_of(len(first & second), len(first), 0.5)) < 4


def test_names_that_look_alike_when_joined_are_different() -> None:
    assert uniform("a", "bc") != uniform("ab", "c")
    assert uniform("a", "b", "c") != uniform("a", "b,c")
    assert uniform("a", "b", 1) != uniform("a", "b", "1")


def test_a_pair_has_one_episode_of_each_arm_and_a_fair_order() -> None:
    firsts = 0
    for pair in range(2000):
        one, two = (arm_in_pair("exp", "robot_1", 2 * pair + k) for k in (0, 1))
        assert one[0] == two[0] == pair
        assert {one[1], two[1]} == {A, B}
        firsts += one[1] == B
    assert abs(z_of(firsts, 2000, 0.5)) < 4


@given(
    st.lists(st.text("abc", min_size=1), min_size=1, max_size=60, unique=True), st.floats(0.001, 1), st.floats(0.001, 1)
)
def test_cohorts_are_nested_and_have_at_least_one_robot(robots: list[str], one: float, two: float) -> None:
    small, large = (cohort("exp", robots, share) for share in sorted((one, two)))
    assert large[: len(small)] == small
    assert len(small) >= 1 and len(large) <= len(robots)
    assert cohort("exp", reversed(robots), one) == cohort("exp", robots, one)


def test_sizes_of_cohorts() -> None:
    """``int(fleet * 0.05)`` is 0 below 20 robots; ``int(100 * 0.29)`` is 28."""
    assert [len(cohort("e", ROBOTS[:n], 0.05)) for n in (1, 19, 20, 39, 40, 100)] == [1, 1, 1, 1, 2, 5]
    assert len(cohort("e", ROBOTS[:100], 0.29)) == 29
    assert len(cohort("e", ROBOTS[:7], 1.0)) == 7


def test_a_stage_without_robots_or_with_one_twice_is_refused() -> None:
    for robots in ([], ["a", "a"]):
        with pytest.raises(InputError) as caught:
            cohort("e", robots, 0.5)
        assert caught.value.code == "INPUT_COUNT"
