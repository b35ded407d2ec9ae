# SPDX-License-Identifier: Apache-2.0
"""A judge and its log never part ways: what cannot be written is not judged, and after a failure only the log counts."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_evidence.assignment import arm, arm_in_pair
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.errors import EvidenceError, InputError, LogError
from vla_evidence.log.replay import LoggedJudgement, replay_file

UNWRITABLE = ("\ud800", "r" * (1 << 20))
"""A lone surrogate, as JSON may spell one, is no text that can be written; a line of a megabyte is no record."""


@pytest.mark.parametrize(
    ("kind", "settings"), [("ab_paired", {"max_pairs": 9}), ("ab_robots", {"planned_episodes": 9})]
)
def test_an_episode_that_a_log_cannot_hold_is_not_judged_either(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    with LoggedJudgement(tmp_path / "log.jsonl", kind, "x", settings) as judgement:
        for name in UNWRITABLE:
            with pytest.raises(LogError) as caught:
                judgement.event("assign", robot=name, episode=0, arm="A", now_s=2.0)
            assert caught.value.code == "LOG_VALUE"
        verdict = judgement.verdict(now_s=3.0)
        assert (verdict.a.waiting, verdict.b.waiting) == (0, 0)
    replay_file(tmp_path / "log.jsonl")


def test_an_outcome_that_a_log_cannot_hold_is_not_judged_either(tmp_path: Path) -> None:
    settings = {"config": CanaryConfig(salt="x").to_json(), "score_history": {"tce": [0.0] * 100}}
    group = int(arm("x", "r", "e", 0.5) == "B")
    with LoggedJudgement(tmp_path / "log.jsonl", "canary", "x", settings) as judgement:
        judgement.event("begin_stage", stage=0, now_s=0.0)
        judgement.event("assign", robot="r", episode="e", now_s=2.0, group=group, probability=0.5)
        for source in UNWRITABLE:
            with pytest.raises(LogError) as caught:
                judgement.outcome(episode="e", success=True, now_s=3.0, scores={"tce": [0.0], source: [1.0]})
            assert caught.value.code == "LOG_VALUE" and judgement.verdict(now_s=4.0).figures["open"] == 1
    replay_file(tmp_path / "log.jsonl")


@contextmanager
def full_disk(path: Path, room: int) -> Iterator[None]:
    """The file may grow by so many bytes (RLIMIT_FSIZE; Python ignores its signal)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("by_verdict", [False, True])
def test_after_a_full_disk_the_log_is_whole_and_whoever_opens_it_again_goes_on(
    tmp_path: Path, by_verdict: bool
) -> None:
    log = tmp_path / "log.jsonl"
    arms = [arm_in_pair("x", "r", number)[1] for number in range(2)]
    with LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 9}) as judgement:
        judgement.event("assign", robot="r", episode=0, arm=arms[0], now_s=1.0)
        before = log.read_bytes()
        with full_disk(log, 20), pytest.raises(LogError) as caught:
            if by_verdict:
                judgement.verdict(now_s=1e6)
            else:
                judgement.outcome(robot="r", episode=0, success=True, now_s=2.0)
        assert caught.value.code == "LOG_NOT_WRITTEN" and log.read_bytes() == before
        for again in (
            lambda: judgement.outcome(robot="r", episode=0, success=True, now_s=2.0),
            lambda: judgement.verdict(now_s=3.0),
        ):
            with pytest.raises(LogError) as caught:
                again()
            assert caught.value.code == "LOG_NOT_WRITTEN" and "open it again" in str(caught.value)
        assert log.read_bytes() == before
    with LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 9}) as judgement:
        judgement.outcome(robot="r", episode=0, success=True, now_s=2.0)
        judgement.event("assign", robot="r", episode=1, arm=arms[1], now_s=3.0)
        judgement.outcome(robot="r", episode=1, success=True, now_s=4.0)
        verdict = judgement.verdict(now_s=5.0)
        assert (verdict.used, verdict.a.silent, verdict.b.silent) == (1, 0, 0)
    assert replay_file(log).verdicts == 1


_WITHOUT_STATSMODELS = """
import sys
sys.modules["statsmodels"] = None
from vla_evidence.errors import EvidenceError
from vla_evidence.log.replay import LoggedJudgement, replay_file
log = sys.argv[1]
codes = []
def refused(call):
    try:
        call()
    except EvidenceError as e:
        codes.append(e.code)
with LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 9}) as judgement:
    refused(lambda: judgement.verdict(now_s=1e6))
    refused(lambda: judgement.verdict(now_s=1e6))
refused(lambda: replay_file(sys.argv[2]))
print(*codes)
"""


def test_a_verdict_that_cannot_be_computed_leaves_the_log_alone_and_is_named_by_its_cause(tmp_path: Path) -> None:
    log, other = tmp_path / "log.jsonl", tmp_path / "other.jsonl"
    with LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 9}) as judgement:
        judgement.event("assign", robot="r", episode=0, arm=arm_in_pair("x", "r", 0)[1], now_s=1.0)
    with LoggedJudgement(other, "ab_paired", "x", {"max_pairs": 9}) as judgement:
        judgement.verdict(now_s=1.0)
    before = log.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_STATSMODELS, str(log), str(other)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["ANALYSIS_MISSING", "LOG_NOT_WRITTEN", "ANALYSIS_MISSING"]
    assert log.read_bytes() == before
    with LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 9}) as judgement:
        judgement.outcome(robot="r", episode=0, success=True, now_s=2.0)  # it is in time
        assert judgement.verdict(now_s=3.0).a.silent + judgement.verdict(now_s=3.0).b.silent == 0


def test_scores_may_come_as_arrays(tmp_path: Path) -> None:
    settings = {"config": CanaryConfig(salt="x").to_json(), "score_history": {"tce": np.zeros(100)}}
    group = int(arm("x", "r", "e", 0.5) == "B")
    with LoggedJudgement(tmp_path / "log.jsonl", "canary", "x", settings) as judgement:
        judgement.event("begin_stage", stage=0, now_s=0.0)
        judgement.event("assign", robot="r", episode="e", now_s=2.0, group=group, probability=0.5)
        judgement.outcome(episode="e", success=np.True_, now_s=np.float64(3.0), scores={"tce": np.zeros(2)})
        assert judgement.verdict(now_s=4.0).figures["open"] == 0
    assert replay_file(tmp_path / "log.jsonl").outcomes == 1


def nested() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize("value", [10**5000, nested(), object(), float("nan")], ids=["long", "deep", "object", "nan"])
def test_whatever_no_log_can_hold_has_a_code(tmp_path: Path, value: Any) -> None:
    with LoggedJudgement(tmp_path / "log.jsonl", "ab_robots", "x", {"planned_episodes": 9}) as judgement:
        for call in (
            lambda: judgement.event("assign", robot="r", episode=value, arm="A", now_s=2.0),
            lambda: judgement.outcome(robot="r", episode=0, success=value, now_s=2.0),
            lambda: judgement.verdict(now_s=value),
        ):
            with pytest.raises(EvidenceError) as caught:
                call()
            assert caught.value.code in ("LOG_VALUE", "INPUT_VALUE")
        judgement.verdict(now_s=3.0)


def test_the_seed_of_a_judgement_is_its_name_and_no_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        LoggedJudgement(tmp_path / "log.jsonl", "ab_robots", "x", {"planned_episodes": 9, "seed": "y"})
    assert (caught.value.code, caught.value.field) == ("INPUT_VALUE", "seed")
    assert not (tmp_path / "log.jsonl").exists()
