# SPDX-License-Identifier: Apache-2.0
"""What is said again and again is one line and a count."""

from __future__ import annotations

from vla_ros.repeats import Repeats


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_text_that_comes_again_is_logged_once_and_counted_when_another_comes() -> None:
    lines: list[str] = []
    clock = Clock()
    repeats = Repeats(lines.append, again_s=600.0, clock=clock)
    assert [repeats.say("a") for _ in range(3)] == [True, False, False]
    clock.now_s = 25.0
    assert repeats.say("b") and repeats.say("a")
    assert lines == ["a", "a (2 more times in 25 s)", "b", "a"]


def test_a_text_that_goes_on_for_long_is_logged_now_and_then_with_its_count() -> None:
    lines: list[str] = []
    clock = Clock()
    repeats = Repeats(lines.append, again_s=600.0, clock=clock)
    for second in range(1201):
        clock.now_s = float(second)
        repeats.say("a")
    assert lines == ["a", "a (600 more times in 600 s)", "a (600 more times in 600 s)"]


def test_what_is_over_is_counted_and_new_when_it_comes_again() -> None:
    lines: list[str] = []
    clock = Clock()
    repeats = Repeats(lines.append, clock=clock)
    repeats.say("a")
    repeats.over()
    repeats.say("a")
    repeats.say("a")
    clock.now_s = 3.0
    repeats.over()
    repeats.over()
    assert lines == ["a", "a", "a (1 more times in 3 s)"]
