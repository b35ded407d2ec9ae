# SPDX-License-Identifier: Apache-2.0
"""The robots of a stage are looked at by the clock, all by the same time, each by what it had, and in an order of their own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vla_evidence import InputError
from vla_evidence.canary.by_robot import RobotComparison
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.open_units import OpenUnit
from vla_evidence.canary.robot_cohort import LOOKS, RobotCohort, Tallies
from vla_evidence.canary.robot_units import RobotPrior
from vla_evidence.canary.stages import Unit


def tallied(sums: dict[str, list[tuple[float, bool]]]) -> Tallies:
    """Return tallies of (outcome, whether it was told) of each robot's episodes."""
    tallies = Tallies(1)
    for robot, episodes in sums.items():
        for y, told in episodes:
            tallies.add(robot, [y], silent=not told)
    return tallies


def test_robots_come_in_an_order_that_is_not_that_of_finishing_nor_of_groups() -> None:
    names = [f"r{n}" for n in range(40)]
    means = {name: 0.25 if name == "r0" else 1.0 for name in names}
    first = RobotCohort(dict.fromkeys(names, 0) | {"r0": 1}, 1, "s")
    second = RobotCohort(dict.fromkeys(names, 1) | {"r9": 0}, 1, "s")
    told = tallied({name: [(mean, True)] for name, mean in means.items()})
    backwards = tallied({name: [(means[name], True)] for name in reversed(names)})
    assert [u.means for u in first.heard(told)] == [u.means for u in second.heard(backwards)]
    orders = {tuple(RobotCohort(dict.fromkeys(names, 0), 1, f"s{n}")._order) for n in range(5)}
    assert len(orders) == 5


def test_the_looks_of_a_stage_stake_all_of_it_and_the_last_one_is_at_its_end() -> None:
    shares, weights = zip(*LOOKS, strict=True)
    assert math.fsum(weights) == pytest.approx(1.0) and list(shares) == sorted(shares) and shares[-1] == 1.0


def test_a_robot_is_judged_by_its_mean_and_of_what_was_not_heard_of_the_worst_is_assumed_for_the_proof() -> None:
    episodes = {"gone": (2, 2), "short": (2, 0), "lost": (9, 1), "much": (20, 0), "never": (0, 0)}
    groups = {**dict.fromkeys(episodes, 1), **{name.title(): 0 for name in episodes}}
    tallies = tallied({name: [(1.0, True)] * episodes[name.lower()][0] + [(0.0, False)] * episodes[name.lower()][1]
                       for name in groups if name.lower() != "never"})  # fmt: skip
    cohort = RobotCohort(groups, 10, "s")
    assert cohort.short(tallies) == (4, 4) and cohort.unheard_of(tallies) == (1, 1)
    everybody = dict(zip(cohort._order, cohort.all(tallies), strict=True))
    worst = {"gone": 0.2, "short": 0.2, "lost": 0.9, "much": 1.0, "never": 0.0}
    assert {name: everybody[name].worst for name in episodes} == pytest.approx(worst)
    assert all(everybody[name.title()].worst == 1.0 for name in episodes)
    heard = dict(zip([r for r in cohort._order if r.lower() != "never"], cohort.heard(tallies), strict=True))
    for name, mean in {"gone": 0.5, "short": 1.0, "lost": 0.9, "much": 1.0}.items():
        assert heard[name].means == heard[name.title()].means == [pytest.approx(mean)]  # harm: both groups alike


def test_pi_is_the_share_of_canaries_among_those_left_of_those_that_are_looked_at() -> None:
    cohort = RobotCohort({"a": 0, "b": 1, "c": 0, "d": 1, "e": 1}, 1, "x")
    tallies = tallied({name: [(1.0, True)] for name in "abcd"})
    for units, robots, left in ((cohort.all(tallies), 5, 3), (cohort.heard(tallies), 4, 2)):
        for index, (group, _, _, pi) in enumerate(units):
            assert pi == pytest.approx(left / (robots - index))
            left -= group
        assert left == 0


def unit(name: str, robot: str, group: int, outcome: float | None) -> OpenUnit:
    """Return an episode of a stage; None: not told."""
    told = outcome is not None
    fields = {"group": group, "probability": 0.5, "stage": 0, "outcomes": (outcome or 0.0,)}
    return OpenUnit(robot=robot, due_s=9.0, done=told, episode=name, **fields)  # type: ignore[arg-type]


def compared(groups: dict[str, int]) -> RobotComparison:
    config = CanaryConfig(unit=Unit.ROBOT, episodes_per_robot=3, robot_prior=RobotPrior(0.6, 0.3))
    comparison = RobotComparison(config)
    comparison.begin(RobotCohort(groups, 3, "s"), 2)
    return comparison


def test_a_look_takes_all_that_is_over_and_waits_for_what_was_not_told_but_not_for_what_runs() -> None:
    comparison = compared({"a": 0, "b": 1, "c": 0, "d": 1, "e": 0})
    assert comparison.add(unit("a0", "a", 0, 1.0)) and not comparison.add(unit("z0", "z", 1, 1.0))
    queue = [
        unit("b0", "b", 1, None),  # not told, and the robot has begun another one: over
        unit("a1", "a", 0, None),  # runs
        unit("b1", "b", 1, 1.0),
        unit("c0", "c", 0, None),  # runs, and is its first: no other one says how it does
        unit("d0", "d", 1, 0.0),
        unit("d1", "d", 1, None),  # runs
    ]
    comparison.look(queue)
    (look,) = comparison.looks
    assert look.pending == {"b0", "c0"}
    assert look.tallies.sums == {"a": [1.0, 0.0, 1.0], "b": [1.0, 0.0, 1.0], "d": [1.0, 0.0, 0.0]}
    stake = math.log(comparison._stake)
    assert comparison.harm["success"].log_e == stake
    for name, robot, outcome in (("b0", "b", None), ("a1", "a", 0.0), ("b1", "b", 1.0), ("c0", "c", 1.0)):
        assert comparison.harm["success"].log_e == stake, "it waits"
        comparison.add(unit(name, robot, int(robot == "b"), outcome))
    assert look.tallies.sums["b"] == [1.0, 1.0, 1.0] and look.tallies.sums["c"] == [1.0, 0.0, 1.0]
    assert look.tallies.sums["a"] == [1.0, 0.0, 1.0] and comparison.tallies.sums["a"] == [2.0, 0.0, 1.0]
    assert not look.pending and comparison.harm["success"].log_e != stake


def test_every_look_of_a_stage_has_its_part_of_the_stake_over_all_draws() -> None:
    """A look's evidence has the mean of its part of the stake; the share of draws in which any look reaches c is <= stake/c."""
    names, rng = [f"r{n}" for n in range(6)], np.random.default_rng(14)
    for _ in range(10):
        known = [{name: rng.integers(0, 2, rng.integers(1, 4)).tolist() for name in names} for _ in LOOKS]
        evidence: list[list[float]] = [[] for _ in LOOKS]
        top = []
        for canaries in itertools.combinations(names, 2):
            comparison = compared({name: int(name in canaries) for name in names})
            for look, episodes in enumerate(known):
                for name, ys in episodes.items():
                    for n, y in enumerate(ys):
                        comparison.add(unit(f"{look} {name} {n}", name, int(name in canaries), float(y)))
                comparison.look([])
                evidence[look].append(math.exp(comparison.harm["success"].log_e))
            assert comparison.closed and comparison.next_look is None
            state = comparison.to_json()["cohort"]["looks"]
            comparison.add(unit("later", "r0", int("r0" in canaries), 0.0))
            assert comparison.to_json()["cohort"]["looks"] == state
            top.append(comparison.harm["success"].max_log_e)
        stake = CanaryConfig(unit=Unit.ROBOT).stake(2)
        for (_, weight), values in zip(LOOKS, evidence, strict=True):
            assert np.mean(values) == pytest.approx(stake * weight)
        for rank, log_e in enumerate(sorted(top, reverse=True), start=1):
            assert log_e == 0.0 or rank / len(top) <= stake * math.exp(-log_e) + 1e-9


def test_what_cannot_be_is_refused() -> None:
    robots = {"a": 0}
    for call, code in (
        (lambda: RobotCohort({}, 1, "s"), "INPUT_ARM"),
        (lambda: RobotCohort({"a": 2}, 1, "s"), "INPUT_ARM"),
        (lambda: RobotCohort({"a": []}, 1, "s"), "INPUT_ARM"),  # type: ignore[dict-item]
        (lambda: RobotCohort({"a": 1}, 0, "s"), "INPUT_COUNT"),
        (lambda: Tallies(1).add("a", [2.0], silent=False), "INPUT_RATE"),
        (lambda: Tallies(2).add("a", [1.0], silent=False), "INPUT_COUNT"),
        (lambda: Tallies.from_json({"b": [1.0, 0.0, 1.0]}, robots, 1), "INPUT_VALUE"),
        *(
            (lambda sums=sums: Tallies.from_json({"a": sums}, robots, 1), "INPUT_VALUE")
            for sums in (
                [1.0],
                [1.0, 0.0],
                [1.0, 0.0, 1.0, 1.0],
                [0.0, 0.0, 0.0],  # whoever is there had an episode
                [1.0, 0.0, 2.0],
                [1.5, 0.0, 1.0],
                [-1.0, 2.0, 0.0],
                [1.0, 0.0, math.nan],
                [10**400, 0.0, 1.0],
                ["1", 0.0, 1.0],
                [True, 0.0, 1.0],
            )
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
