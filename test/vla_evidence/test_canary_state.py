# SPDX-License-Identifier: Apache-2.0
"""Input that cannot be is refused and changes nothing; a restart goes on exactly where it was."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pytest
from support.canaries import DAY, drawn, judge_of, scored_judge

from vla_evidence import CANARY, INCUMBENT, InputError, LogError
from vla_evidence.canary.config import CanaryConfig, latency_limit
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.stages import DEFAULT_STAGES, Stage, Unit


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    judge = judge_of()
    judge.assign("open", "r", CANARY, 0.0, 0.25)
    before = judge.to_json()
    staged = judge_of(stages=DEFAULT_STAGES)
    staged.verdict(1e6)
    staged_before = staged.to_json()
    for call, code in (
        (lambda: judge.assign("e", "r", 2, 0.0, 0.25), "INPUT_ARM"),
        (lambda: judge.assign("e", "r", "canary", 0.0, 0.25), "INPUT_ARM"),
        (lambda: judge.assign("e", "r", CANARY, 0.0), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, 0.0, 0.0), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, 0.0, 1.0), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, 0.0, math.nan), "INPUT_PROBABILITY"),
        (lambda: judge.assign("e", "r", CANARY, math.nan, 0.25), "INPUT_VALUE"),
        (lambda: judge.assign("open", "r", CANARY, 0.0, 0.25), "INPUT_VALUE"),
        (lambda: judge.finish("open", 0.5, 0.0), "INPUT_RATE"),
        (lambda: judge.finish("open", True, 0.0, -1.0), "INPUT_VALUE"),
        (lambda: judge.finish("open", True, 0.0, math.nan), "INPUT_VALUE"),
        (lambda: judge.add_many([1], [1], 0.25), "INPUT_VALUE"),  # one is open
        (lambda: judge.begin_stage(0, 0.0), "INPUT_VALUE"),
        (lambda: judge.begin_stage(2, 0.0), "INPUT_VALUE"),
        (lambda: CanaryJudge(CanaryConfig()).verdict(0.0), "INPUT_VALUE"),
        (lambda: CanaryConfig(alpha=0.0), "INPUT_PROBABILITY"),
        (lambda: CanaryConfig(alpha=5e-324), "INPUT_PROBABILITY"),
        (lambda: CanaryConfig(salt=""), "INPUT_VALUE"),
        (lambda: CanaryConfig(allow_unjudged_scores="no"), "INPUT_VALUE"),
        (lambda: CanaryConfig(episodes_per_robot=10**400), "INPUT_COUNT"),
        (lambda: CanaryConfig(harm_margin=-0.1), "INPUT_MARGIN"),
        (
            lambda: judge.assign("open", "r", CANARY, 4000.0, 0.25),
            "INPUT_VALUE",
        ),  # told twice, and late: no time passes
        (lambda: judge.assign("", "r", CANARY, 4000.0, 0.25), "INPUT_VALUE"),
        (lambda: staged.begin_stage(1, 4000.0, {"r": 1}), "INPUT_ARM"),
        (lambda: staged.assign("e", "r", CANARY, 1e6 - 3600.0, 0.25), "INPUT_VALUE"),  # its deadline has passed
        (lambda: judge.begin_stage(1, 10**400), "INPUT_VALUE"),
        (lambda: judge.verdict(10**400), "INPUT_VALUE"),
        (lambda: judge.finish("open", True, 4000.0, -1.0), "INPUT_VALUE"),
        (lambda: scored_judge().finish("e", True, 0.0, scores={"tce": ["high"]}), "INPUT_VALUE"),
        (lambda: scored_judge().finish("e", True, 0.0, scores={"tce": "high"}), "INPUT_VALUE"),
        (lambda: CanaryJudge(CanaryConfig(), {"tce": [math.nan] * 30}), "INPUT_VALUE"),
        (lambda: CanaryJudge(CanaryConfig(), {"tce": ["x"] * 30}), "INPUT_VALUE"),
        (lambda: CanaryConfig(min_episodes=0), "INPUT_COUNT"),
        (lambda: CanaryConfig(min_episodes=math.nan), "INPUT_COUNT"),
        (lambda: CanaryConfig(deadline_s=math.inf), "INPUT_VALUE"),
        (lambda: CanaryConfig(latency_limit_s=0.0), "INPUT_VALUE"),
        (lambda: CanaryConfig(stages=()), "INPUT_COUNT"),
        (lambda: CanaryConfig.informed(11, 10), "INPUT_COUNT"),
        (lambda: CanaryConfig.informed(-1, 10), "INPUT_COUNT"),
        (lambda: CanaryConfig.informed(5, 10, expected_drop=1.0), "INPUT_MARGIN"),
        (lambda: latency_limit([0.1] * 19), "INPUT_VALUE"),
        (lambda: latency_limit([0.1] * 30 + [-1.0]), "INPUT_VALUE"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
    assert judge.to_json() == before and staged.to_json() == staged_before
    with pytest.raises(InputError, match="latencies"):
        judge_of(latency_limit_s=1.0).add_many([0, 1], [1, 1], 0.25, [0.5])
    for groups, ys, pi in (
        ([0, 3], [1, 1], 0.25),
        ([0, 1], [1, 2], 0.25),
        ([0, 1], [1, 1], 0.0),
        ([[0, 1], [1, 0]], [[1, 1], [0, 1]], 0.25),
        ([0, 1], [1], 0.25),
        (0, 1, 0.25),
    ):
        fresh = judge_of()
        state = fresh.to_json()
        with pytest.raises(InputError):
            fresh.add_many(groups, ys, pi)
        assert fresh.to_json() == state


def test_too_many_probabilities_are_refused_when_they_are_assigned_and_no_outcome_is_lost() -> None:
    judge = judge_of()
    for n in range(16):
        judge.assign(f"e{n}", "r", n % 2, 0.0, 0.3 + 0.01 * n)
    with pytest.raises(InputError) as caught:
        judge.assign("e16", "r", CANARY, 5.0, 0.5)
    assert caught.value.code == "INPUT_PROBABILITY"
    assert all(judge.finish(f"e{n}", True, 1.0) for n in range(16))
    assert sum(judge.verdict(2.0).figures[name][1] for name in ("incumbent", "canary")) == 16
    judge.begin_stage(1, 3.0)  # the next stage may have others
    staged = CanaryJudge(CanaryConfig(stages=DEFAULT_STAGES))
    for stage in range(3):
        staged.begin_stage(stage, float(stage))
        for n in range(12):
            staged.assign(f"{stage} {n}", "r", n % 2, float(stage), 0.1 + 0.2 * stage + 0.01 * n)
    assert staged.verdict(4000.0).figures["open"] == 0


@pytest.mark.parametrize("unit", [Unit.EPISODE, Unit.ROBOT])
def test_after_a_restart_it_goes_on_exactly_where_it_was(unit: Unit) -> None:
    rng = random.Random(4)
    history = {"tce": [rng.gauss(0, 1) for _ in range(100)], "few": [1.0]}
    config = CanaryConfig.informed(870, 1000, unit=unit, latency_limit_s=1.0, deadline_s=900.0, episodes_per_robot=5)
    one = CanaryJudge(config, history)
    groups = drawn(40, 10)
    one.begin_stage(0, 0.0, groups if unit is Unit.ROBOT else None)
    robots = list(groups)
    two = CanaryJudge.from_json(json.loads(json.dumps(one.to_json())))
    for n in range(400):
        robot = robots[n % 40]
        group = groups[robot] if unit is Unit.ROBOT else int(rng.random() < 0.25)
        pi = None if unit is Unit.ROBOT else 0.25
        success, latency, silent, score = rng.random() < 0.8, rng.random() * 1.1, rng.random() < 0.05, rng.gauss(0, 1)
        for judge in (one, two):
            judge.assign(f"e{n}", robot, group, n * 60.0, pi)
            if not silent:
                judge.finish(f"e{n}", success, n * 60.0 + 30.0, latency, {"tce": [score, score / 2]})
        if n % 37 == 0:
            two = CanaryJudge.from_json(json.loads(json.dumps(two.to_json())))
    assert two.verdict(DAY) == one.verdict(DAY)
    assert two.to_json() == one.to_json()


def changed(document: dict, *path: object, to: object) -> dict:
    """Return a copy in which what lies at this path is another value."""
    copy = json.loads(json.dumps(document))
    *way, last = path
    inner = copy
    for key in way:
        inner = inner[key]
    inner[last] = to
    return copy


def test_what_is_no_state_of_a_judge_is_refused_with_its_code() -> None:
    """Also if only its parts do not fit each other. (It is not signed: who forges all of it consistently is not found.)"""
    judge = scored_judge(latency_limit_s=5.0)
    for n in range(60):
        judge.assign(f"e{n}", "r", n % 2, 1.0, 0.5)
    for n in range(40):
        judge.finish(f"e{n}", True, 2.0, 1.0, {"tce": [0.0], "reversal": [0.0]})
    document = json.loads(json.dumps(judge.to_json()))
    assert CanaryJudge.from_json(document).to_json() == judge.to_json()
    row = document["open"]["units"][0]
    for nonsense in (
        {},
        {**document, "schema": 2},
        {**document, "config": {}},
        changed(document, "config", "alpha", to=2.0),
        changed(document, "totals", to=3),
        changed(document, "totals", to=[[0, 0]]),
        changed(document, "totals", 0, to=[5, -1]),
        changed(document, "totals", 0, to=[20, 20.0]),
        changed(document, "totals", 0, to=[20, 400]),
        changed(document, "stage_units", 0, to=21),
        *(changed(document, "stage", to=value) for value in (7, -2, 0.5, True, "0")),
        *(changed(document, "since_s", to=value) for value in (math.nan, 1e9, "x")),
        changed(document, "canaries", to=5),
        changed(document, "limits", "limits", to={}),
        changed(document, "limits", "limits", "tce", to=math.nan),
        changed(document, "blocks", "tce", to=[1]),
        changed(document, "probabilities", to=[2.0]),
        changed(document, "assignment", "units", to=[[0.5, 1, 1]]),
        changed(document, "assignment", "last", "r", to=7),
        changed(document, "comparison", to={"harm": {"success": [1.0]}, "counts": [], "last_probability": 0.5}),
        changed(document, "comparison", "counts", to=[[0.5, 0, 0, 1000, 0], [0.4, 1000, 1000, 0, 0]]),
        changed(document, "comparison", "harm", "success", 5, to=50.0),  # 60 units at 1/2 give 41.6 at most
        changed(document, "comparison", "harm", "success", 4, to=1.0),  # above its maximum
        changed(document, "open", "units", to=[["e"]]),
        *(changed(document, "open", "units", 0, at, to=value)
          for at, value in ((0, 5), (0, ""), (1, None), (2, 7), (2, True), (3, 2.0), (4, 1),
                            (5, "x"), (5, 1e9), (6, 1), (6, True))),
        changed(document, "open", "units", to=[row, *document["open"]["units"]]),
        changed(document, "open", "left", 0, to=["e0", math.inf]),
    ):  # fmt: skip
        with pytest.raises(LogError) as caught:
            CanaryJudge.from_json(nonsense)
        assert caught.value.code == "LOG_VALUE"


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Return the path of everything in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


ODD = (None, -1, "x", math.nan, math.inf, 0.5, 1e300, 10**400, True, [], {})


def accepted_of_nonsense(judge: CanaryJudge) -> Iterator[CanaryJudge]:
    """Put nonsense at every place of the state; yield the judges that take it; most do not, and raise nothing but LogError."""
    document = json.loads(json.dumps(judge.to_json()))
    refused = 0
    for path, nonsense in itertools.product(places(document)[1:], ODD):
        try:
            other = CanaryJudge.from_json(changed(document, *path, to=nonsense))
        except LogError:
            refused += 1
            continue
        yield other
    assert refused > 1000


def test_a_state_with_nonsense_anywhere_is_refused_or_can_be_used() -> None:
    """It never raises anything else, when it is read or afterwards."""
    judge = scored_judge(latency_limit_s=5.0)
    for n in range(12):
        judge.assign(f"e{n}", f"r{n % 2}", n % 2, 1.0, 0.5)
        if n < 10 and n != 7:
            judge.finish(f"e{n}", True, 2.0, 1.0, {"tce": [0.0]})
    for other in accepted_of_nonsense(judge):
        other.verdict(9e4)
        assert not other.finish("e7", True, 9e4)


def robots_judge() -> CanaryJudge:
    """In the second stage, with robots that have their episodes, some that are given up, and others that have a few."""
    stages = (Stage("one", 0.25, DAY, 0.1), Stage("two", 0.5, DAY, 0.1), Stage("full", 1.0, 0.0, None))
    config = CanaryConfig(unit=Unit.ROBOT, stages=stages, episodes_per_robot=3, latency_limit_s=5.0, deadline_s=600.0)
    judge = CanaryJudge(config, {"tce": [float(n) for n in range(100)]})
    first = {f"r{n}": int(n % 4 == 0) for n in range(12)}
    for stage, groups in enumerate((first, first | {"r1": 1, "r5": 1, "r9": 1})):
        start_s = stage * DAY
        judge.begin_stage(stage, start_s, groups)
        for n in range(3):
            for index, (robot, group) in enumerate(groups.items()):
                name = f"{stage} {robot} {n}"
                if not (stage and index in (2, 3) and n):
                    judge.assign(name, robot, group, start_s + n)
                if index != 7 and not (stage and index == 9):
                    judge.finish(name, not group or n == 0, start_s + n, 1.0, {"tce": [50.0]})
    judge.verdict(DAY + 700.0)
    judge.assign("last", "r2", INCUMBENT, DAY + 710.0)
    return judge


def test_a_state_of_robots_follows_from_its_cohort_and_another_one_is_refused() -> None:
    judge = robots_judge()
    document = json.loads(json.dumps(judge.to_json()))
    cohort, earlier = document["comparison"]["cohort"], document["comparison"]["earlier"]
    assert earlier["success"] > 0.0 and set(document["comparison"]) == {"cohort", "earlier"}
    assert CanaryJudge.from_json(document).to_json() == judge.to_json()
    assert CanaryJudge.from_json(document).verdict(DAY + 720.0) == judge.verdict(DAY + 720.0)
    incumbent, canary = "r2", "r1"
    for nonsense in (
        changed(document, "convicted", to="success"),
        changed(document, "comparison", "cohort", to=None),
        changed(document, "comparison", "earlier", to={"success": 0.0}),
        *(changed(document, "comparison", "earlier", "success", to=value) for value in (-1.0, "1", math.inf)),
        changed(document, "stage", to=0),  # its canaries are those of the second
        changed(document, "stage", to=2),  # nobody is left to compare with
        changed(document, "stage", to=-1),
        changed(document, "canaries", to=[]),
        changed(document, "canaries", to=[*document["canaries"], incumbent]),
        changed(document, "comparison", "cohort", "groups", incumbent, to=1),
        changed(document, "comparison", "cohort", "groups", canary, to=0),
        changed(document, "comparison", "cohort", "groups", canary, to=True),
        changed(document, "comparison", "cohort", "groups", to={}),
        changed(document, "comparison", "cohort", "sums", "nobody", to=[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        changed(document, "comparison", "cohort", "sums", incumbent, to=cohort["sums"][incumbent][:-1]),
        changed(document, "comparison", "cohort", "sums", incumbent, to=[*cohort["sums"][incumbent], 0.0]),
        changed(document, "comparison", "cohort", "sums", incumbent, to=[3.0, 0.0, 0.0, 3.0, 3.0, 3.0]),  # not told
        changed(document, "assignment", "units", to=[[0.5, 1, 1]]),
        changed(document, "assignment", "sticking", to=[0.0, 99.0]),
        changed(document, "probabilities", to=[0.5]),
        changed(document, "open", "units", 0, "group", to=1),
    ):
        with pytest.raises(LogError) as caught:
            CanaryJudge.from_json(nonsense)
        assert caught.value.code == "LOG_VALUE"
    before = json.loads(json.dumps(CanaryJudge(CanaryConfig(unit=Unit.ROBOT)).to_json()))
    for nonsense in (
        changed(before, "comparison", "earlier", "success", to=9.0),
        changed(before, "canaries", to=["r1"]),
        changed(before, "comparison", "cohort", to={"groups": {"a": 0, "b": 1}, "sums": {}}),
    ):
        with pytest.raises(LogError):
            CanaryJudge.from_json(nonsense)


@pytest.mark.parametrize("over", [False, True])
def test_a_state_of_robots_with_nonsense_anywhere_is_refused_or_can_be_used(over: bool) -> None:
    judge = robots_judge()
    now_s = 2 * DAY if over else DAY + 720.0
    judge.verdict(now_s)
    robots = judge.to_json()["comparison"]["cohort"]["groups"]
    for other in accepted_of_nonsense(judge):
        for n, (robot, group) in enumerate(robots.items()):
            try:
                other.assign(f"new {n}", robot, group, now_s)
                other.finish(f"new {n}", True, now_s, 1.0, {"tce": [1.0]})
            except InputError:
                continue  # settings or a stage in which there is no such robot
        other.verdict(now_s)
        other.verdict(2 * DAY)
        assert other.to_json() == CanaryJudge.from_json(json.loads(json.dumps(other.to_json()))).to_json()


STRANGE = (None, [], {}, "x", b"e", 1.5, math.nan, 10**400, np.array([1, 0]), np.int64(1), np.float32(0.3), Decimal("0.3"),
           object())  # fmt: skip


@pytest.mark.parametrize("unit", Unit)
def test_whatever_a_judge_is_told_it_takes_or_refuses_with_a_code_and_stays_as_it_was(unit: Unit) -> None:
    groups, pi = ({"r0": 1, "r1": 0, "r2": 0}, None) if unit is Unit.ROBOT else (None, 0.5)
    calls = (
        lambda judge, value: judge.assign(value, "r1", 0, 1.0, pi),
        lambda judge, value: judge.assign("e", value, 0, 1.0, pi),
        lambda judge, value: judge.assign("e", "r1", value, 1.0, pi),
        lambda judge, value: judge.assign("e", "r1", 0, value, pi),
        lambda judge, value: judge.assign("e", "r1", 0, 1.0, value),
        lambda judge, value: judge.finish(value, True, 1.0),
        lambda judge, value: judge.finish("e0", value, 1.0),
        lambda judge, value: judge.finish("e0", True, value),
        lambda judge, value: judge.finish("e0", True, 1.0, value),
        lambda judge, value: judge.finish("e0", True, 1.0, 1.0, value),
        lambda judge, value: judge.finish("e0", True, 1.0, 1.0, {"tce": value}),
        lambda judge, value: judge.finish("e0", True, 1.0, 1.0, {"tce": [value]}),
        lambda judge, value: judge.begin_stage(value, 1.0, groups),
        lambda judge, value: judge.begin_stage(1, value, groups),
        lambda judge, value: judge.begin_stage(1, 1.0, value),
        lambda judge, value: judge.begin_stage(1, 1.0, {"r0": 1, "r1": value}),
        lambda judge, value: judge.verdict(value),
    )
    for strange, (number, call) in itertools.product(STRANGE, enumerate(calls)):
        judge = CanaryJudge(CanaryConfig(unit=unit, latency_limit_s=5.0), {"tce": [float(n) for n in range(50)]})
        judge.begin_stage(0, 0.0, groups)
        judge.assign("e0", "r0", 1, 0.0, pi)
        before = json.dumps(judge.to_json())
        try:
            call(judge, strange)
        except InputError:
            assert json.dumps(judge.to_json()) == before, (number, strange)
        assert CanaryJudge.from_json(json.loads(json.dumps(judge.to_json()))).to_json() == judge.to_json()
