# SPDX-License-Identifier: Apache-2.0
"""The A/B judges decide what their tests decide, and say so in words and numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_evidence.ab import ABDecision, PairedABJudge, UnpairedABJudge
from vla_evidence.assignment import A, B, arm, arm_in_pair
from vla_evidence.errors import InputError
from vla_evidence.sign_test import SignTestDesign
from vla_evidence.sign_test_batch import stopping_times


def test_before_anything_is_known_it_goes_on() -> None:
    for judge in (PairedABJudge(100), UnpairedABJudge(100)):
        verdict = judge.verdict()
        assert verdict.decision is judge.decision is ABDecision.CONTINUE
        assert (verdict.a.rate, verdict.a.interval, verdict.used) == (None, (0.0, 1.0), 0)
        assert verdict.reason.startswith("not decided yet: success A no episode, B no episode")
        assert "latency was not recorded" in verdict.latency_reason


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_paired_judge_decides_as_the_test_does(two_sided: bool) -> None:
    rng = np.random.default_rng(1)
    design = SignTestDesign(150, 0.05, two_sided)
    decisions = set()
    for a_rate, b_rate in ((0.6, 0.9), (0.9, 0.6), (0.8, 0.8)):
        a, b = rng.random(150) < a_rate, rng.random(150) < b_rate
        pairs, sign = stopping_times((b.astype(int) - a)[None, :], design)
        judge = PairedABJudge(150, 0.05, two_sided=two_sided)
        for won_a, won_b in zip(a.tolist(), b.tolist(), strict=True):
            judge.update(won_a, won_b)
        verdict = judge.verdict()
        decisions.add(verdict.decision)
        assert verdict.used == pairs[0]
        assert (verdict.decision is ABDecision.B_BETTER) == (sign[0] == 1)
        assert (verdict.decision is ABDecision.A_BETTER) == (sign[0] == -1)
        assert (verdict.a.successes, verdict.b.successes, verdict.a.episodes) == (a.sum(), b.sum(), 150)
    assert decisions == set(ABDecision) - {ABDecision.CONTINUE} - (set() if two_sided else {ABDecision.A_BETTER})


def test_the_reason_has_words_and_numbers() -> None:
    judge = PairedABJudge(20, two_sided=False)
    for _ in range(3):
        judge.update(False, True)
    assert judge.verdict().reason == (
        "not decided yet: success A 0 of 3 = 0.0% [0.0%, 56.1%], B 3 of 3 = 100.0% [43.9%, 100.0%];"
        " B won 3 and A 0 of 3 pairs that differ, after 3 of at most 20 pairs; no lead is enough yet"
    )
    for _ in range(4):
        judge.update(False, True)
    reason = judge.verdict().reason
    assert reason.startswith("B is better (claimed wrongly in at most 5.0% of such tests): success A 0 of 7")
    assert reason.endswith("B won 7 and A 0 of 7 pairs that differ, after 7 of at most 20 pairs")


def test_nothing_shown_at_the_end_is_not_called_equal() -> None:
    judge = PairedABJudge(4)
    for _ in range(4):
        judge.update(True, True)
    assert judge.verdict().decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert "there may be one" in judge.verdict().reason


def test_episodes_find_their_partner_in_any_order() -> None:
    """Two robots, episodes of each in their own order of arms; as if they had come in pairs."""
    rng = np.random.default_rng(2)
    judge, pairs = PairedABJudge(60), PairedABJudge(60)
    episodes = []
    for robot in ("r1", "r2"):
        for episode in range(60):
            pair, which = arm_in_pair("exp", robot, episode)
            episodes.append(
                ((robot, pair), which, bool(rng.random() < (0.9 if which == B else 0.5)), 1.0 + rng.random())
            )
    found: dict[object, dict[str, tuple[bool, float]]] = {}
    order = []
    for i in rng.permutation(len(episodes)):
        name, which, success, latency = episodes[i]
        judge.record(name, which, success, latency)
        found.setdefault(name, {})[which] = (success, latency)
        if len(found[name]) == 2:
            order.append(name)
    for name in order:
        (a, latency_a), (b, latency_b) = found[name][A], found[name][B]
        pairs.update(a, b, latency_a, latency_b)
    assert judge.waiting == 0
    assert judge.verdict() == pairs.verdict()
    assert judge.decision is ABDecision.B_BETTER


def test_latency_is_judged_beside_success_and_does_not_change_it() -> None:
    rng = np.random.default_rng(3)
    judge, without = PairedABJudge(100), PairedABJudge(100)
    for _ in range(100):
        success = bool(rng.random() < 0.8)
        judge.update(success, success, 0.20 + 0.05 * rng.random(), 0.15 + 0.06 * rng.random())
        without.update(success, success)
    verdict = judge.verdict()
    assert verdict.decision is without.decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert verdict.faster == B
    assert "B is faster" in verdict.latency_reason and "mean latency A 0.2" in verdict.latency_reason
    assert without.verdict().faster is None


def test_unpaired_robots_of_a_fleet_that_comes_as_it_comes() -> None:
    rng = np.random.default_rng(4)
    judge = UnpairedABJudge(3000, seed="exp", draws=999)
    for i in range(3000):
        robot = f"r{int(rng.integers(0, 40 if i > 500 else 20))}"
        which = arm("exp", robot, None, 0.5)
        judge.record(
            robot, which, bool(rng.random() < (0.88 if which == A else 0.7)), math.exp(rng.normal(which == A, 0.3))
        )
    verdict = judge.verdict()
    assert verdict.decision is ABDecision.A_BETTER
    assert verdict.faster == B
    assert verdict.used < 3000 and verdict.used % 150 == 0
    assert verdict.a.episodes + verdict.b.episodes == 3000
    assert "of the assignments that could have been drawn for" in verdict.reason


def test_unpaired_with_a_known_fleet() -> None:
    rng = np.random.default_rng(5)
    arms = {f"r{i}": B if i % 4 == 0 else A for i in range(24)}
    judge = UnpairedABJudge(2400, arms=arms, draws=999, two_sided=False)
    for i in range(2400):
        robot = f"r{i % 24}"
        judge.record(robot, arms[robot], bool(rng.random() < (0.9 if arms[robot] == B else 0.7)))
    assert judge.decision is ABDecision.B_BETTER
    with pytest.raises(InputError) as caught:
        judge.record("r24", A, True)
    assert caught.value.code == "INPUT_ARM"


def test_too_few_robots_are_told_that_episodes_do_not_help() -> None:
    judge = UnpairedABJudge(400, arms={"a": A, "b": B, "c": A, "d": B})
    for i in range(400):
        judge.record("abcd"[i % 4], (A, B)[i % 2], i % 2 == 1)
    verdict = judge.verdict()
    assert verdict.decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert "with so few robots no result could be rarer than 16.7%, above the 2.5% that is asked" in verdict.reason


def test_one_arm_alone_is_no_evidence() -> None:
    judge = UnpairedABJudge(100, arms={f"r{i}": A for i in range(10)})
    for i in range(100):
        judge.record(f"r{i % 10}", A, i % 3 == 0)
    verdict = judge.verdict()
    assert verdict.decision is ABDecision.NO_DIFFERENCE_SHOWN
    assert verdict.b.interval == (0.0, 1.0)


def test_the_same_episodes_give_the_same_verdict_again() -> None:
    def once() -> object:
        rng = np.random.default_rng(6)
        judge = UnpairedABJudge(500, seed="again", draws=499)
        for _ in range(500):
            robot = f"r{int(rng.integers(0, 12))}"
            judge.record(robot, arm("again", robot, None, 0.5), bool(rng.random() < 0.8))
        return judge.verdict()

    assert once() == once()


def test_wrong_input_is_named_and_nothing_is_counted() -> None:
    paired, unpaired = PairedABJudge(10), UnpairedABJudge(10)
    paired.record("p", A, True)
    unpaired.record("r", A, True)
    for call, code in (
        (lambda: PairedABJudge(0), "INPUT_COUNT"),
        (lambda: PairedABJudge(10, 0.7), "INPUT_PROBABILITY"),
        (lambda: PairedABJudge(10, latency_alpha=0.0), "INPUT_PROBABILITY"),
        (lambda: PairedABJudge(10, spending="none"), "INPUT_VALUE"),
        (lambda: PairedABJudge(10, confidence=95), "INPUT_PROBABILITY"),
        (lambda: paired.update(2, True), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.update(True, math.nan), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.update(True, None), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: paired.update(True, True, 1.0, -1.0), "INPUT_VALUE"),
        (lambda: paired.update(True, True, math.inf, 1.0), "INPUT_VALUE"),
        (lambda: paired.record("p", A, True), "INPUT_ARM"),
        (lambda: paired.record("q", "C", True), "INPUT_ARM"),
        (lambda: UnpairedABJudge(0), "INPUT_COUNT"),
        (lambda: UnpairedABJudge(10, looks=0), "INPUT_COUNT"),
        (lambda: UnpairedABJudge(10, split=0.0), "INPUT_PROBABILITY"),
        (lambda: UnpairedABJudge(10, arms={"r": "C"}), "INPUT_ARM"),
        (lambda: unpaired.record("r", B, True), "INPUT_ARM"),
        (lambda: unpaired.record("s", "C", True), "INPUT_ARM"),
        (lambda: unpaired.record("", A, True), "INPUT_VALUE"),
        (lambda: unpaired.record("r", A, "yes"), "INPUT_VALUE"),  # type: ignore[arg-type]
        (lambda: unpaired.record("r", A, True, 0.0), "INPUT_VALUE"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
    assert paired.verdict().a.episodes == 0 and paired.waiting == 1
    assert (unpaired.verdict().a.episodes, unpaired.verdict().b.episodes) == (1, 0)
