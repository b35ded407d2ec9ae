# SPDX-License-Identifier: Apache-2.0
"""A log gives back every verdict and draw; what was changed in it, or torn, is found."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.logs import begin, keep

from vla_evidence.assignment import arm_in_pair
from vla_evidence.canary.config import ROBOT_STAGES, CanaryConfig
from vla_evidence.errors import InputError, LogError
from vla_evidence.log.judgements import judge_of
from vla_evidence.log.records import header_line, to_json
from vla_evidence.log.replay import LoggedJudgement, Step, differences, replay_file
from vla_evidence.log.rollout import Rollout

FLEET = [f"arm-{i:02}" for i in range(40)]


def paired_log(path: Path, *, episodes: int = 60, robots: int = 4) -> None:
    """Write the log of an A/B test on pairs."""
    rng = np.random.default_rng(0)
    judgement = begin(LoggedJudgement, path, "ab_paired", "grip-7", {"max_pairs": 200, "spending": "linear"})
    for number in range(episodes):
        for robot in range(robots):
            name, now_s = f"{robot}/{number}", 10.0 * number
            version = judgement.choose(f"arm-{robot}", name, now_s)
            success, latency = bool(rng.random() < (0.5, 0.9)[version]), float(rng.uniform(2.0, 5.0))
            judgement.outcome(name, success, now_s + latency, latency)
        if number % 5 == 4:
            judgement.verdict(10.0 * number + 9.0)
    keep(judgement, path)


def robots_log(path: Path, arms: dict[str, int] | None) -> None:
    rng = np.random.default_rng(1)
    settings: dict[str, Any] = {"planned_episodes": 400, "looks": 4, "draws": 199, "arms": arms}
    judgement = begin(LoggedJudgement, path, "ab_robots", "fleet-3", settings)
    for number in range(400):
        version = judgement.choose(f"arm-{number % 20}", f"e{number}", float(number))
        judgement.outcome(f"e{number}", bool(rng.random() < (0.5, 0.9)[version]), number + 0.5)
        if number % 50 == 49:
            judgement.verdict(float(number + 1))
    keep(judgement, path)


def canary_log(path: Path, by_robot: bool = False, canary: float = 0.4, episodes: int = 400) -> None:
    """Write the log of a rollout with latency and scores."""
    rng = np.random.default_rng(2)
    settings = {"stages": ROBOT_STAGES} if by_robot else {}
    config = CanaryConfig(history=(870, 1000), latency_limit_s=4.0, deadline_s=600.0, **settings)
    history = {"tce": rng.normal(size=200).tolist()}
    rollout = begin(Rollout, path, "canary", "pick-1.2.0", {"config": config.to_json(), "score_history": history})
    rollout.begin_stage(0, FLEET, 0.0, {robot: (90, 100) for robot in FLEET} if by_robot else None)
    for number in range(episodes):
        now_s, name = 60.0 * number, f"e{number}"
        version = rollout.choose(FLEET[number % len(FLEET)], name, now_s)
        if number % 25:  # every 25th is never heard of again
            success = bool(rng.random() < (canary if version else 0.87))
            scores = {"tce": rng.normal(size=2).tolist()}
            rollout.outcome(name, success, now_s + 30.0, float(rng.uniform(1, 5)), scores)
        if number % 40 == 39:
            rollout.verdict(now_s + 31.0)
    keep(rollout, path)


def changed(path: Path, line: int, old: str, new: str) -> Path:
    """Return a copy of a log in which ``old`` in a line (from 1) is ``new``."""
    lines = path.read_text().splitlines()
    assert old in lines[line - 1], lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    copy = path.with_name("changed.jsonl")
    copy.write_text("\n".join(lines) + "\n")
    return copy


def line_of(path: Path, record: str, has: str) -> int:
    lines = enumerate(path.read_text().splitlines(), start=1)
    return next(number for number, line in lines if json.loads(line)["record"] == record and has in line)


def refusal(path: Path) -> LogError:
    with pytest.raises(LogError) as e:
        replay_file(path)
    return e.value


@pytest.mark.parametrize(
    ("write", "outcomes", "last"),
    [
        (paired_log, 240, "B_BETTER"),
        (lambda path: robots_log(path, {f"arm-{i}": i % 2 for i in range(20)}), 400, "B_BETTER"),
        (lambda path: robots_log(path, None), 400, "B_BETTER"),
        (canary_log, 384, "ROLLBACK"),
        (lambda path: canary_log(path, by_robot=True), 384, "HOLD"),
    ],
    ids=["pairs", "a known fleet", "robots", "rollout", "rollout by robot"],
)
def test_every_verdict_is_computed_again(
    tmp_path: Path, write: Callable[[Path], object], outcomes: int, last: str
) -> None:
    write(log := tmp_path / "log.jsonl")
    shown: list[Step] = []
    replay = replay_file(log, show=shown.append)
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [step.verdict for step in shown] == [record["verdict"] for record in logged if record["record"] == "verdict"]
    assert (replay.outcomes, replay.last, replay.verdicts) == (outcomes, shown[-1].verdict, len(shown))
    assert shown[-1].verdict["decision"] == last


@pytest.mark.parametrize(
    ("record", "old", "new"),
    [
        ("outcome", '"success": true', '"success": false'),
        ("event", '"version": 0', '"version": 1'),
        ("event", '"episode": "0/0"', '"episode": "0/1"'),
        ("outcome", '"episode": "0/0"', '"episode": "9/9"'),
        ("header", '"max_pairs": 200', '"max_pairs": 150'),
        ("header", '"experiment": "grip-7"', '"experiment": "grip-8"'),
        ("verdict", '"pairs": 8', '"pairs": 9'),
        ("verdict", "CONTINUE", "B_BETTER"),
        ("verdict", ', "faster": null', ""),
        ("verdict", '"now_s": ', '"then": '),
    ],
)
def test_whatever_is_changed_in_a_paired_log_is_found(tmp_path: Path, record: str, old: str, new: str) -> None:
    paired_log(log := tmp_path / "log.jsonl")
    if old == ', "faster": null':
        old, new = '"faster": null', '"faster": "A"'
    assert refusal(changed(log, line_of(log, record, old), old, new)).code in ("REPLAY_DIFFERS", "LOG_VALUE")


@pytest.mark.parametrize(
    ("record", "old", "new"),
    [
        ("outcome", '"success": true', '"success": false'),
        ("outcome", '"latency_s": 1', '"latency_s": 91'),
        ("event", '"version": 0', '"version": 1'),
        ("event", '"arm-07", ', ""),
        ("outcome", '"scores": {"tce": [', '"scores": {"tce": [99, '),
        ("header", '"alpha": 0.05', '"alpha": 0.04'),
        ("header", '"probability": 0.05', '"probability": 0.06'),
        ("verdict", '"decides_at": ', '"decides_at": 1'),
    ],
)
def test_whatever_is_changed_in_the_log_of_a_rollout_is_found(tmp_path: Path, record: str, old: str, new: str) -> None:
    for by_robot in (False, True):
        canary_log(log := tmp_path / f"{by_robot}.jsonl", by_robot, episodes=200)
        assert by_robot or old in log.read_text()
        if old in log.read_text():
            e = refusal(changed(log, line_of(log, record, old), old, new))
            assert e.code in ("REPLAY_DIFFERS", "LOG_VALUE"), e


def test_a_change_of_wording_leaves_a_log_readable(tmp_path: Path) -> None:
    canary_log(log := tmp_path / "log.jsonl", episodes=80)
    other = changed(log, line_of(log, "verdict", "waiting:"), "waiting:", "patience:")
    assert replay_file(other).verdicts == 2


def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path: Path) -> None:
    paired_log(log := tmp_path / "log.jsonl", episodes=8)
    whole = log.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 40, len(whole) - 1):
        log.write_bytes(whole[:cut])
        said: list[str] = []
        assert replay_file(log, warn=said.append).outcomes == 31
        assert len(said) == 1 and "torn" in said[0]


@pytest.mark.parametrize("kind", ["paired", "rollout", "robots"])
def test_a_judgement_goes_on_where_its_log_ends(tmp_path: Path, kind: str) -> None:
    """Stop and restart at every twentieth record: the verdicts are those of one that was never restarted."""
    straight, restarted = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    if kind == "paired":
        paired_log(straight, episodes=20)
    else:
        canary_log(straight, kind == "robots", episodes=160)
    header, *records = [json.loads(line) for line in straight.read_text().splitlines()]
    judgement = None
    for number, record in enumerate(records):
        if judgement is None or number % 20 == 0:
            if judgement is not None:
                keep(judgement, restarted)
            judgement = begin(LoggedJudgement, restarted, header["kind"], header["experiment"], header["settings"])
        if record["record"] == "verdict":
            assert to_json(judgement.verdict(record["now_s"])) == record["verdict"]
            continue
        fields = {key: value for key, value in record.items() if key not in ("record", "event")}
        if record["record"] == "outcome":
            judgement.outcome(**fields)
        elif record["event"] == "choose":
            assert judgement.choose(fields["robot"], fields["episode"], fields["now_s"]) == fields["version"]
        else:
            judgement.event(record["event"], **fields)
    assert judgement is not None
    keep(judgement, restarted)
    assert restarted.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (3, "not json"),
        (3, ""),
        (3, "[1, 2]"),
        (3, '{"record": "outcome", "robot": NaN}'),
        (3, '{"record": "outcome", "latency_s": 1e999}'),
        (3, '{"record": "outcome", "episode": "a", "episode": "b"}'),
        (3, '{"record": "rumour"}'),
        (3, "[" * 100_000),
        (3, "x" * (1 << 21)),
        (1, '{"record": "outcome"}'),
        (1, '{"record": "header", "schema": 1}'),
        (3, '{"record": "header", "schema": 2}'),
    ],
)
def test_any_other_line_that_is_no_record_is_named_by_its_number(tmp_path: Path, line: int, text: str) -> None:
    paired_log(log := tmp_path / "log.jsonl", episodes=4)
    lines = log.read_text().splitlines()
    lines[line - 1] = text
    log.write_text("\n".join(lines) + "\n")
    e = refusal(log)
    assert e.code == "LOG_SYNTAX" and f"log.jsonl:{line}" in e.field


HUGE = "0" * 400


@pytest.mark.parametrize(
    "text",
    [
        '{"record": "outcome"}',
        '{"record": "event", "event": "choose", "robot": "a", "episode": "x", "now_s": 50, "version": 2}',
        '{"record": "event", "event": "choose", "robot": 7, "episode": "x", "now_s": 50, "version": 0}',
        '{"record": "event", "event": "choose", "robot": "a", "episode": "0/3", "now_s": 50, "version": 0}',
        '{"record": "outcome", "episode": 3, "success": true, "now_s": 50}',
        '{"record": "outcome", "episode": "0/3", "success": "yes", "now_s": 50}',
        '{"record": "outcome", "episode": "0/3", "success": 1, "now_s": 50}',
        '{"record": "outcome", "episode": "0/3", "success": true, "now_s": true}',
        f'{{"record": "outcome", "episode": "0/3", "success": true, "now_s": 1{HUGE}}}',
        '{"record": "outcome", "episode": "0/3", "success": true, "now_s": 50, "latncy": 3}',
        '{"record": "outcome", "episode": "0/3", "success": true, "now_s": 50, "latency_s": -3}',
        '{"record": "outcome", "episode": "0/3", "success": true, "now_s": 50, "scores": {}}',
        '{"record": "verdict", "verdict": {}}',
        f'{{"record": "verdict", "now_s": 1{HUGE}, "verdict": {{}}}}',
        '{"record": "event", "event": "begin_stage", "stage": 0, "robots": [], "now_s": 50}',
        '{"record": "event"}',
        '{"record": "verdict"}',
    ],
)
def test_a_record_that_the_judge_refuses_is_named_by_its_number(tmp_path: Path, text: str) -> None:
    paired_log(log := tmp_path / "log.jsonl", episodes=4)
    with log.open("a") as file:
        file.write(text + "\n")
    e = refusal(log)
    assert e.code in ("LOG_VALUE", "REPLAY_DIFFERS") and "log.jsonl:34" in e.field


def test_what_is_sent_again_counts_once_and_what_was_cut_out_is_found(tmp_path: Path) -> None:
    paired_log(log := tmp_path / "log.jsonl", episodes=10)
    header, *lines = log.read_text().splitlines()
    again = [line for line in lines for _ in range(1 + ('"verdict"' not in line))]
    log.write_text("\n".join([header, *again]) + "\n")
    replay_file(log)  # the same verdicts
    for cut in ('"outcome"', '"choose"', '"verdict"'):
        place = max(i for i, line in enumerate(lines[:-1]) if cut in line)
        log.write_text("\n".join([header, *lines[:place], *lines[place + 1 :]]) + "\n")
        if cut == '"verdict"':
            assert replay_file(log).verdicts == 1  # a verdict is no evidence
        else:
            assert refusal(log).code in ("REPLAY_DIFFERS", "LOG_VALUE")


def test_a_replay_claims_no_more_than_it_computed(tmp_path: Path) -> None:
    paired_log(log := tmp_path / "log.jsonl", episodes=12)
    replay = replay_file(log)
    assert (replay.verdicts, replay.unchecked) == (2, 8) and "8 outcomes came after the last" in str(replay)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(line for line in lines if '"verdict"' not in line) + "\n")
    assert "nothing was checked" in str(replay_file(log))


def test_files_that_are_no_log_are_refused(tmp_path: Path) -> None:
    (empty := tmp_path / "empty").touch()
    assert refusal(empty).code == "LOG_SYNTAX"
    assert refusal(tmp_path / "missing").code == "LOG_UNREADABLE"
    for name, kind, settings in (("unknown", "oracle", {}), ("wrong", "ab_paired", {"pairs": 5})):
        (tmp_path / name).write_bytes(header_line(kind, "x", settings))
        assert refusal(tmp_path / name).code == "LOG_VALUE"


def test_what_a_judge_refuses_leaves_no_record(tmp_path: Path) -> None:
    judgement = begin(LoggedJudgement, tmp_path / "log.jsonl", "ab_paired", "x", {"max_pairs": 5})
    for call in (
        lambda: judgement.choose("", "e", 0.0),
        lambda: judgement.event("begin_stage", stage="first"),
        lambda: judgement.outcome("e", 2, 0.0),  # type: ignore[arg-type]
        lambda: judgement.verdict("noon"),  # type: ignore[arg-type]
        lambda: judgement.verdict(10**400),
    ):
        with pytest.raises(InputError):
            call()
    assert judgement.log.take() == []


def test_settings_that_cannot_be_are_refused() -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        ("ab_paired", {"pairs": 5}),
        ("ab_paired", {"max_pairs": 0}),
        ("ab_paired", {"max_pairs": 5, "alpha": 0.7}),
        ("ab_paired", {"max_pairs": 5, "spending": "none"}),
        ("ab_paired", {"max_pairs": 5, "gone_s": 0}),
        ("ab_paired", {"max_pairs": 5, "confidence": 95}),
        ("ab_robots", {"planned_episodes": 0}),
        ("ab_robots", {"planned_episodes": 9, "draws": 10**13}),
        ("ab_robots", {"planned_episodes": 9, "split": 1.0}),
        ("ab_robots", {"planned_episodes": 9, "arms": {"r": "C"}}),
        ("ab_robots", {"planned_episodes": 9, "experiment": "y"}),
        ("canary", {}),
        ("canary", {"config": {}}),
        ("oracle", {}),
    ]
    for kind, settings in refused:
        with pytest.raises(InputError):
            judge_of(kind, "x", settings)


def test_a_long_log_is_replayed_in_bounded_memory(tmp_path: Path) -> None:
    paired_log(log := tmp_path / "log.jsonl", episodes=2)
    header = log.read_text().splitlines()[0]
    with log.open("w") as file:
        file.write(header + "\n")
        for number in range(4_000):
            episode = {"episode": f"0/{number}", "now_s": 10 * number}
            version = arm_in_pair("grip-7", "arm-0", number)[1]
            for record in (
                {"record": "event", "event": "choose", "robot": "arm-0", **episode, "version": version},
                {"record": "outcome", **episode, "success": True, "latency_s": 2.0},
            ):
                file.write(json.dumps(record) + "\n")
    replay_file(log)
    tracemalloc.start()
    replay_file(log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000


def test_numbers_differ_by_more_than_rounding_or_not_at_all() -> None:
    assert not list(differences({"a": [1.0, {"b": None}]}, {"a": [1.0 + 1e-13, {"b": None}]}))
    for logged, computed in ((1.0, 1.001), (1, True), ("1", 1), ([1], [1, 2]), ({"a": 1}, {}), (None, 0.0)):
        assert list(differences(logged, computed)), (logged, computed)
