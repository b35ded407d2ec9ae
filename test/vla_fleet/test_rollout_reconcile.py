# SPDX-License-Identifier: Apache-2.0
"""Reconciliation, windows and the small canary class: pure, so that every case can be tried."""

from __future__ import annotations

import datetime
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_fleet import protocol
from vla_fleet.errors import InputError
from vla_fleet.rollouts.canary_deployment import CanaryDeployment
from vla_fleet.rollouts.windows import is_open, parse_window, zone_of
from vla_fleet.steering.reconcile import Course, Given, Limits, Look, Robot, Standing, arrived, backward, forward

UPDATE = protocol.ModelUpdate(name="pick", version="2.0.0", manifest_url="http://f/m", manifest_sha256="0" * 64)
COURSE = Course("r-1", UPDATE, "why")
DEADLINE_S = 100.0


def course_of(robot: Robot, stage: int) -> tuple[protocol.Order, ...]:
    """Stages of 5 % and 25 % of episodes, then every robot."""
    return COURSE.draw(robot, (0.05, 0.25)[stage]) if stage < 2 else COURSE.run(robot)


class Simulated:
    """A robot that does what it is ordered, or fails, or is away; and a server that is restarted before each look."""

    def __init__(self) -> None:
        self.given: tuple[Given, ...] = ()
        self.version, self.draws, self.blocked, self.now_s = "1.0.0", 0.0, False, 0.0

    def robot(self, *, online: bool) -> Robot:
        blocked = frozenset({"2.0.0"} if self.blocked else ())
        return Robot("arm", "1.0.0", online, blocked=blocked, given=self.given)

    def order(self, order: protocol.Order) -> None:
        self.given += (Given(order, self.now_s, self.now_s),)

    def work(self, end: str) -> None:
        """Carry out the oldest open order."""
        for n, one in enumerate(self.given):
            if one.open:
                order = one.order
                if end == "DONE":
                    self._do(order)
                elif isinstance(order, protocol.ModelUpdate) and order.activate:
                    self.blocked = True
                done = Given(order, one.created_s, self.now_s, self.now_s, end, error_code="" if end == "DONE" else "X")
                self.given = (*self.given[:n], done, *self.given[n + 1 :])
                return

    def _do(self, order: protocol.Order) -> None:
        if isinstance(order, protocol.Rollback) or (isinstance(order, protocol.ModelUpdate) and order.activate):
            self.version = order.version
        elif isinstance(order, protocol.Assign):
            self.draws = order.probability if order.versions else 0.0


COURSES = st.lists(st.tuples(st.booleans(), st.sampled_from(["DONE", "DONE", "nothing", "FAILED"]), st.integers(0, 60)))


@settings(max_examples=300, deadline=None)
@given(COURSES, st.integers(0, 2))
def test_whatever_a_robot_does_it_ends_where_it_is_led_or_is_known_to_have_failed(
    course: list[tuple[bool, str, int]], stage: int
) -> None:
    robot, since_s = Simulated(), 0.0
    for number, (online, end, passes) in enumerate(course):
        look = forward(
            robot.robot(online=online),
            course_of(robot.robot(online=online), min(stage, number)),
            since_s,
            robot.now_s,
            DEADLINE_S,
        )
        assert len(look.orders) <= 1 and (online or not look.orders)
        for order in look.orders:
            robot.order(order)
        if online and end != "nothing":
            robot.work(end)
        robot.now_s += passes
    for _ in range(10):  # it is there, and does what it is ordered
        state = robot.robot(online=True)
        look = forward(state, course_of(state, stage), since_s, robot.now_s, 1e9)
        for order in look.orders:
            robot.order(order)
        robot.work("DONE")
    if look.standing is Standing.INSTALLED:
        assert robot.version == ("2.0.0" if stage == 2 else "1.0.0") and robot.draws == (0.05, 0.25, 0.0)[stage]
    else:
        assert look.standing is Standing.FAILED and look.detail
        assert robot.version == "1.0.0"
    robot.now_s += 1
    back_s = robot.now_s
    for _ in range(10):
        state = robot.robot(online=True)
        look = backward(state, COURSE.back(state, back_s), back_s, robot.now_s, 1e9)
        for order in look.orders:
            robot.order(order)
        robot.work("DONE")
    assert look.standing in (Standing.BACK, Standing.OUTSIDE)
    assert robot.version == "1.0.0" and robot.draws == 0.0


def test_an_order_is_given_once_however_often_somebody_looks() -> None:
    robot = Simulated()
    for _ in range(5):
        for order in forward(robot.robot(online=True), course_of(robot.robot(online=True), 2), 0.0, 1.0, 9.0).orders:
            robot.order(order)
    assert [type(given.order) for given in robot.given] == [protocol.ModelUpdate]
    moved = Course("r-1", UPDATE.model_copy(update={"manifest_url": "http://elsewhere/m"}))
    assert not forward(robot.robot(online=True), moved.run(robot.robot(online=True)), 0.0, 1.0, 9.0).orders


def test_a_robot_that_is_away_is_waited_for_until_the_deadline_and_taken_back_when_it_comes() -> None:
    robot = Robot("arm", "1.0.0", online=False)
    assert forward(robot, [UPDATE], 0.0, 99.0, DEADLINE_S) == Look(Standing.WAITING, "offline")
    assert forward(robot, [UPDATE], 0.0, 100.0, DEADLINE_S).standing is Standing.SILENT
    assert forward(Robot("arm", "1.0.0"), [UPDATE], 0.0, 200.0, DEADLINE_S).orders == (UPDATE,)
    ordered = Robot("arm", "1.0.0", online=False, given=(Given(UPDATE, 10.0, 50.0),))
    assert forward(ordered, [UPDATE], 0.0, 149.0, DEADLINE_S).standing is Standing.ORDERED
    assert forward(ordered, [UPDATE], 0.0, 150.0, DEADLINE_S).standing is Standing.SILENT
    assert [order.type for order in backward(ordered, COURSE.back(ordered, 20.0), 20.0, 21.0, 9.0).orders] == [
        "ROLLBACK"
    ]


@given(
    st.lists(st.sampled_from(["", "new", "open", "done"]), max_size=30),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 5),
)
def test_never_more_orders_at_a_time_or_in_a_minute_than_allowed(
    robots: list[str], concurrent: int | None, per_minute: int | None
) -> None:
    looks = []
    for n, state in enumerate(robots):
        orders = (Given(UPDATE, 30.0, 30.0, state="DONE" if state == "done" else "RUNNING"),)
        robot = Robot(f"arm_{n}", given=orders if state in ("open", "done") else ())
        looks.append((robot, forward(robot, [UPDATE] if state else (), 0.0, 60.0, 1e9)))
    allowed = Limits(concurrent, per_minute).allow(looks, 60.0)
    assert len(allowed) <= robots.count("new")
    if concurrent is None and per_minute is None:
        assert len(allowed) == robots.count("new")
    if concurrent is not None:
        assert len(allowed) + robots.count("open") <= max(concurrent, robots.count("open"))
    if per_minute is not None:
        given = robots.count("open") + robots.count("done")
        assert len(allowed) + given <= max(per_minute, given)
    later = Limits(None, per_minute).allow(looks, 91.0)
    assert len(later) == min(robots.count("new"), per_minute or 99)


def test_a_stage_is_judged_when_somebody_has_it_and_nobody_online_is_on_the_way() -> None:
    installed, ordered = Look(Standing.INSTALLED), Look(Standing.ORDERED)
    here, away = Robot("a"), Robot("b", online=False)
    assert arrived([(here, installed), (away, Look(Standing.WAITING)), (away, ordered)])
    assert not arrived([(here, installed), (here, ordered)])
    assert not arrived([(away, ordered), (here, Look(Standing.FAILED))])
    assert arrived([(away, Look(Standing.SILENT)), (here, Look(Standing.FAILED))])


def test_windows_are_open_when_they_say_over_midnight_and_over_the_change_of_the_clocks() -> None:
    zone = zone_of("Europe/Berlin")

    def at(text: str) -> float:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()

    night = [parse_window("mon-fri 22:00-04:00")]
    for text, is_in in {
        "2026-03-27T21:59": False, "2026-03-27T22:00": True,  # a Friday
        "2026-03-28T03:59": True, "2026-03-28T04:00": False, "2026-03-28T23:00": False, "2026-03-30T01:00": False,
    }.items():  # fmt: skip
        assert is_open(night, zone, at(text)) is is_in, text
    week = [parse_window("sat-mon,wed 00:00-24:00")]
    assert [is_open(week, zone, at(f"2026-03-{day}T12:00")) for day in range(23, 30)] == [
        True, False, True, False, False, True, True,
    ]  # fmt: skip
    daily, utc = [parse_window("03:30-05:00")], zone_of("UTC")
    open_h = sum(is_open(daily, zone, at("2026-03-28T00:00") + 60.0 * n) for n in range(3 * 24 * 60)) / 60.0
    assert open_h == 4.5 and is_open([], utc, 0.0)


@pytest.mark.parametrize(
    "text", ["", "22-04", "mon 25:00-04:00", "mon 22:60-04:00", "day 22:00-04:00", "mon- 22:00-04:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="WINDOW_INVALID"):
        parse_window(text)


def test_what_is_no_time_zone_is_refused() -> None:
    for name in ("Europe/Nowhere", "../etc/passwd", ""):
        with pytest.raises(InputError, match="TIME_ZONE_UNKNOWN"):
            zone_of(name)


@pytest.mark.parametrize("size", [1, 10, 100])
def test_the_small_canary_class_widens_at_parity_and_asks_for_improvement_before_all(size: int) -> None:
    canary = CanaryDeployment(fleet_size=size)
    assert canary.should_advance("v1.2", "v1.1") == (False, "Insufficient data: 0 and 0 of 50")
    for _ in range(60):
        canary.record_metrics("v1.2", 0.86)
        canary.record_metrics("v1.1", 0.87)
    counts = [canary.current_rollout()["robots_on_new_model"]]
    while canary.should_advance("v1.2", "v1.1")[0]:
        counts.append(canary.advance()["robots_on_new_model"])
    assert canary.current_rollout()["stage"] == "wide", "parity is not enough for every robot"
    for _ in range(600):
        canary.record_metrics("v1.2", 0.95)
    assert canary.should_advance("v1.2", "v1.1")[0]
    counts.append(canary.advance()["robots_on_new_model"])
    assert counts[0] >= 1 and counts == sorted(counts) and counts[-1] == size
    assert all(before <= after for before, after in itertools.pairwise(counts))
    assert canary.rollback() == {"stage": "rolled_back", "robots_on_new_model": 0, "robots_on_old_model": size}
    assert canary.advance()["robots_on_new_model"] == 0
    for _ in range(2000):
        canary.record_metrics("v1.2", 0.5)
    assert not canary.should_advance("v1.2", "v1.1")[0]


HOME = UPDATE.model_copy(update={"version": "1.0.0", "manifest_sha256": "1" * 64})
DONE = Given(UPDATE, 1.0, 2.0, 2.0, "DONE")


def test_a_robot_that_cannot_go_back_gets_the_version_installed_that_it_came_from() -> None:
    course = Course("r-1", UPDATE, "why", {"1.0.0": HOME})
    robot = Robot("arm", "1.0.0", given=(DONE,))
    (rollback,) = backward(robot, course.back(robot, 3.0), 3.0, 3.0, 9.0).orders
    failed = Given(rollback, 3.0, 4.0, 4.0, "FAILED", error_code="MODEL_NOT_FOUND")
    robot = Robot("arm", "1.0.0", given=(DONE, failed))
    assert backward(robot, course.back(robot, 3.0), 3.0, 4.0, 9.0).orders == (HOME,)
    robot = Robot("arm", "1.0.0", given=(DONE, failed, Given(HOME, 4.0, 5.0, 5.0, "DONE")))
    assert backward(robot, course.back(robot, 3.0), 3.0, 5.0, 9.0) == Look(Standing.BACK)
    unknown = Robot("arm", "1.0.0", given=(DONE, failed))
    assert backward(unknown, COURSE.back(unknown, 3.0), 3.0, 5.0, 9.0) == Look(Standing.FAILED, "MODEL_NOT_FOUND")


def test_a_robot_that_somebody_has_given_a_third_version_is_not_taken_back() -> None:
    for committed, status_s, orders in (("1.2.0", 3.0, 0), ("2.0.0", 3.0, 1), ("1.0.0", 3.0, 1), ("1.2.0", 1.0, 1)):
        robot = Robot("arm", "1.0.0", committed=committed, status_s=status_s, given=(DONE,))
        assert len(COURSE.back(robot, 4.0)) == orders, committed
    nobody_knows = Robot("arm", "", committed="1.2.0", status_s=3.0, given=(DONE,))
    assert len(COURSE.back(nobody_knows, 4.0)) == 1


def test_no_order_goes_to_a_robot_of_which_nobody_knows_what_it_runs() -> None:
    look = forward(Robot("arm", managed=False), [UPDATE], 0.0, 1.0, DEADLINE_S)
    assert look == Look(Standing.WAITING, "its manager is silent")


def test_a_version_number_alone_does_not_say_that_a_robot_runs_the_version() -> None:
    assert not Robot("arm", committed="2.0.0", digest="2" * 64).runs(UPDATE)
    assert Robot("arm", committed="2.0.0", digest=UPDATE.manifest_sha256).runs(UPDATE)
    assert not Robot("arm", committed="2.0.0", digest=UPDATE.manifest_sha256, trying=True).runs(UPDATE)
