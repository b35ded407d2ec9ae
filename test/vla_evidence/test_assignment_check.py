# SPDX-License-Identifier: Apache-2.0
"""Units that were not assigned as stated are noticed; correctly assigned ones are blamed no more often than promised."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest

from vla_evidence import InputError
from vla_evidence.canary.assignment_check import ALPHA, AssignmentCheck


def test_the_mean_of_the_evidence_for_sticking_is_one_if_every_episode_is_drawn() -> None:
    """Exactly, over all ways to draw eight episodes of two robots, π changing on the way."""
    pis, total = (0.05, 0.05, 0.5, 0.5, 0.25, 0.25, 0.25, 0.9), 0.0
    for groups in itertools.product((0, 1), repeat=len(pis)):
        check, chance = AssignmentCheck(), 1.0
        for index, (group, pi) in enumerate(zip(groups, pis, strict=True)):
            check.add("ab"[index % 2], group, pi)
            chance *= pi if group else 1.0 - pi
        total += chance * math.exp(check.to_json()["sticking"][0])
    assert total == pytest.approx(1.0, abs=1e-12)


def test_drawn_episodes_are_not_blamed_and_robots_that_stick_are_soon() -> None:
    """Looked at after every episode, 100 runs of 600: the promise is 0.002 for both checks; two would be 1 in 50 tests."""
    blamed = 0
    for seed in range(100):
        rng, check, faults = random.Random(seed), AssignmentCheck(), 0
        for n in range(600):
            check.add(f"r{n % 20}", int(rng.random() < 0.25), 0.25)
            faults += n % 20 == 0 and bool(check.fault())
        blamed += faults > 0
    assert ALPHA == 1e-3 and blamed <= 1
    check, episodes = AssignmentCheck(), 0
    while not check.fault():
        check.add(f"r{episodes % 20}", int(episodes % 20 < 5), 0.25)
        episodes += 1
    assert "stay with one version" in check.fault() and episodes <= 60
    check.begin_stage()
    assert check.fault()  # what was found stays found
    again = AssignmentCheck()
    again.restore(json.loads(json.dumps(check.to_json())))
    assert again.to_json() == check.to_json() and again.fault() == check.fault()


@pytest.mark.parametrize(
    "state",
    [
        {"units": [[2.0, 1, 1]], "last": {}, "sticking": [0.0, 0.0]},
        {"units": [[0.5, 1, -1]], "last": {}, "sticking": [0.0, 0.0]},
        {"units": [[0.5, 1, 1], [0.5, 1, 1]], "last": {}, "sticking": [0.0, 0.0]},
        {"units": [], "last": {"r": 2}, "sticking": [0.0, 0.0]},
        {"units": [], "last": {}, "sticking": [1.0, 0.0]},
        {"units": [], "last": {}, "sticking": [0.0, math.nan]},
    ],
)
def test_a_state_that_cannot_be_is_refused(state: dict) -> None:
    with pytest.raises(InputError):
        AssignmentCheck().restore(state)
