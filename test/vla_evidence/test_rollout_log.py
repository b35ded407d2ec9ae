# SPDX-License-Identifier: Apache-2.0
"""What a fleet server calls: a judge and its log never part ways, and a restart goes on from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.logs import begin, keep

from vla_evidence.canary.config import CanaryConfig, Stage
from vla_evidence.episodes import Fate
from vla_evidence.errors import EvidenceError, InputError, LogError
from vla_evidence.log.records import read_lines
from vla_evidence.log.replay import LoggedJudgement, replay_file
from vla_evidence.log.rollout import Rollout, report
from vla_evidence.verdict import Decision

UNWRITABLE = ("\ud800", "r" * (1 << 20))
"""A lone surrogate, as JSON may spell one, is no text that can be written; a line of a megabyte is no record."""
STAGES = (Stage("canary", 1.0, 0.5, 100.0, None), Stage("full", 1.0, 1.0, 0.0, None))
CONFIG = CanaryConfig(stages=STAGES, min_episodes=1, deadline_s=50.0)


def rollout(path: Path, **settings: Any) -> Rollout:
    return begin(Rollout, path, "canary", "pick-2", {"config": CONFIG.to_json(), **settings})


def test_a_server_runs_a_rollout_restarts_in_the_middle_and_reports_it(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = rollout(log)
    assert first.begin_stage(0, ["a", "b"], 0.0) == ("a", "b")
    versions = [first.choose("a", f"e{n}", float(n)) for n in range(40)]
    assert set(versions) == {0, 1}
    keep(first, log)
    assert first.choose("a", "e3", 40.0) == versions[3]  # the answer was lost: asked again
    assert first.log.take() == []
    assert first.outcome("e0", True, 41.0) is Fate.COUNTED
    keep(first, log)

    second = rollout(log)
    assert [second.choose("a", f"e{n}", 42.0) for n in range(40)] == versions
    assert second.outcome("e0", True, 43.0) is Fate.REPEATED
    assert second.outcome("nobody's", True, 43.0) is Fate.UNKNOWN
    for n in range(1, 40):
        assert second.outcome(f"e{n}", True, 44.0) is Fate.COUNTED
    second.robots_changed(45.0, joined=["c"])
    assert second.choose("c", "c0", 50.0) in (0, 1)
    assert second.verdict(60.0).decision is Decision.HOLD
    with pytest.raises(InputError, match="a person must decide"):
        second.begin_stage(1, ["a", "b", "c"], 61.0)
    second.decide("anna", "advance", "the customer waits", 62.0)
    assert second.begin_stage(1, ["a", "b", "c"], 63.0) == ("a", "b", "c")
    second.verdict(64.0)
    keep(second, log)
    with log.open("rb") as lines:
        said = report(read_lines(lines))
    assert "stage 0 begins with 2 robots" in said and "stage 1 begins with 3 robots" in said
    assert "anna decides: advance (the customer waits)" in said and said.count("HOLD") == 1
    replay = replay_file(log)
    assert (replay.kind, replay.experiment, replay.verdicts) == ("canary", "pick-2", 2)


@pytest.mark.parametrize(("rule", "decision"), [("evidence", Decision.ADVANCE), ("simple", Decision.ASK)])
def test_a_stage_ends_as_its_rule_says_however_often_the_server_restarts(
    tmp_path: Path, rule: str, decision: Decision
) -> None:
    log, config = tmp_path / "log.jsonl", CanaryConfig(stages=STAGES, min_episodes=1, deadline_s=50.0, rule=rule)
    server = rollout(log, config=config.to_json())
    server.begin_stage(0, ["a"], 0.0)
    for n in range(120):
        if n % 10 == 0:
            keep(server, log)
            server = rollout(log)
        server.choose("a", f"e{n}", n / 2)
        server.outcome(f"e{n}", True, n / 2 + 0.5)
    assert server.verdict(100.0).decision is decision  # the simple rule asks for an improvement
    if decision is Decision.ADVANCE:
        server.begin_stage(1, ["a"], 100.0)
        assert server.choose("a", "last", 101.0) == 1
    keep(server, log)
    assert (replay_file(log).outcomes, replay_file(log).verdicts) == (120, 1)


@pytest.mark.parametrize(
    ("kind", "settings"), [("ab_paired", {"max_pairs": 9}), ("ab_robots", {"planned_episodes": 9})]
)
def test_an_episode_that_a_log_cannot_hold_is_not_judged_either(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    judgement = begin(LoggedJudgement, tmp_path / "log.jsonl", kind, "x", settings)
    for name in UNWRITABLE:
        with pytest.raises(LogError) as caught:
            judgement.choose(name, "e", 2.0)
        assert caught.value.code == "LOG_VALUE"
    figures = judgement.verdict(3.0).figures
    assert (figures["A"]["open"], figures["B"]["open"]) == (0, 0)


def test_scores_and_outcomes_may_come_as_numpy_values(tmp_path: Path) -> None:
    server = rollout(log := tmp_path / "log.jsonl", score_history={"tce": np.zeros(100)})
    server.begin_stage(0, ["r"], 0.0)
    server.choose("r", "e", 2.0)
    fate = server.outcome("e", np.True_, np.float64(3.0), scores={"tce": np.zeros(2)})  # type: ignore[arg-type]
    assert fate is Fate.COUNTED and server.verdict(4.0).figures["open"] == 0
    keep(server, log)
    assert replay_file(log).outcomes == 1


def nested() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize("value", [10**5000, nested(), object(), float("nan")], ids=["long", "deep", "object", "nan"])
def test_whatever_no_log_can_hold_has_a_code(tmp_path: Path, value: Any) -> None:
    server = rollout(tmp_path / "log.jsonl")
    server.begin_stage(0, ["r"], 0.0)
    for call in (
        lambda: server.choose("r", value, 2.0),
        lambda: server.outcome("e", value, 2.0),
        lambda: server.outcome("e", True, 2.0, scores={"tce": value}),
        lambda: server.begin_stage(value, ["r"], 2.0),
        lambda: server.begin_stage(1, ["r"], 2.0, {"r": value}),
        lambda: server.decide("anna", "advance", value, 2.0),
        lambda: server.verdict(value),
    ):
        with pytest.raises((EvidenceError, TypeError)):
            call()
    server.verdict(3.0)
