# SPDX-License-Identifier: Apache-2.0
"""A log gives back every verdict and assignment; what was changed in it, or torn, is found."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_evidence.assignment import arm, arm_in_pair, cohort
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.stages import Unit
from vla_evidence.errors import InputError, LogError
from vla_evidence.log.records import LogWriter, to_json
from vla_evidence.log.replay import LoggedJudgement, Step, differences, replay_file

Settings = dict[str, Any]


def paired_log(
    path: Path, *, episodes: int = 60, robots: int = 4, rates: tuple[float, float] = (0.5, 0.9)
) -> list[str]:
    """Write the log of an A/B test on pairs; return its decisions."""
    rng = np.random.default_rng(0)
    decisions = []
    with LoggedJudgement(path, "ab_paired", "grip-7", {"max_pairs": 200, "spending": "pocock"}) as judgement:
        for number in range(episodes):
            for robot in range(robots):
                _, drawn = arm_in_pair("grip-7", f"arm-{robot}", number)
                success = bool(rng.random() < rates[drawn == "B"])
                latency, now_s = float(rng.uniform(2.0, 5.0)), 10.0 * number
                judgement.event("assign", robot=f"arm-{robot}", episode=number, arm=drawn, now_s=now_s)
                judgement.outcome(
                    robot=f"arm-{robot}", episode=number, success=success, now_s=now_s + latency, latency=latency
                )
            if number % 5 == 4:
                decisions.append(judgement.verdict(now_s=10.0 * number + 9.0).decision.value)
    return decisions


def robots_log(path: Path, arms: dict[str, str] | None) -> None:
    rng = np.random.default_rng(1)
    settings: Settings = {"planned_episodes": 400, "looks": 4, "draws": 199, "spending": "linear"}
    if arms is not None:
        settings["arms"] = arms
    with LoggedJudgement(path, "ab_robots", "fleet-3", settings) as judgement:
        for number in range(400):
            robot = f"arm-{number % 20}"
            drawn = arms[robot] if arms else arm("fleet-3", robot, None, 0.5)
            judgement.event("assign", robot=robot, episode=number // 20, arm=drawn, now_s=float(number))
            success = bool(rng.random() < (0.9 if drawn == "B" else 0.5))
            judgement.outcome(robot=robot, episode=number // 20, success=success, now_s=number + 0.5)
            if number % 50 == 49:
                judgement.verdict(now_s=float(number + 1))


def canary_log(path: Path, unit: Unit, canary: float = 0.4, episodes: int = 400) -> list[str]:
    """Write the log of a rollout with latency and scores; return its decisions."""
    rng = np.random.default_rng(2)
    experiment = "pick-1.2.0"
    config = CanaryConfig.informed(870, 1000, salt=experiment, unit=unit, latency_limit_s=4.0, deadline_s=600.0)
    fleet = [f"arm-{i:02}" for i in range(40)]
    drawn = set(cohort(experiment, fleet, config.stages[0].share))
    groups = {robot: int(robot in drawn) for robot in fleet} if unit is Unit.ROBOT else None
    settings = {"config": config.to_json(), "score_history": {"tce": rng.normal(size=200).tolist()}}
    decisions = []
    with LoggedJudgement(path, "canary", experiment, settings) as judgement:
        judgement.event("begin_stage", stage=0, now_s=0.0, cohort=groups)
        for number in range(episodes):
            now_s, name, robot = 60.0 * number, f"e{number}", fleet[number % len(fleet)]
            group = groups[robot] if groups else int(arm(experiment, robot, name, 0.3) == "B")
            judgement.event(
                "assign", episode=name, robot=robot, group=group, now_s=now_s, probability=None if groups else 0.3
            )
            if number % 25:  # every 25th is never heard of again
                success = bool(rng.random() < (canary if group else 0.87))
                told = {"latency_s": float(rng.uniform(1, 5)), "scores": {"tce": rng.normal(size=2).tolist()}}
                judgement.outcome(episode=name, success=success, now_s=now_s + 30.0, **told)
            if number % 40 == 39:
                decisions.append(judgement.verdict(now_s=now_s + 31.0).decision.value)
    return decisions


def changed(path: Path, line: int, old: str, new: str) -> Path:
    """Return a copy of a log in which ``old`` in a line (from 1) is ``new``."""
    lines = path.read_text().splitlines()
    assert old in lines[line - 1], lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    copy = path.with_name("changed.jsonl")
    copy.write_text("\n".join(lines) + "\n")
    return copy


def line_of(path: Path, record: str, nth: int = 0, **fields: Any) -> int:
    found = [
        number
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if json.loads(line)["record"] == record and fields.items() <= json.loads(line).items()
    ]
    return found[nth]


def refusal(path: Path) -> LogError:
    with pytest.raises(LogError) as e:
        replay_file(path)
    return e.value


def test_every_verdict_of_a_paired_test_is_computed_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    decisions = paired_log(log)
    shown: list[Step] = []
    replay = replay_file(log, show=shown.append)
    assert [step.verdict["decision"] for step in shown] == decisions and decisions[-1] == "B_BETTER"
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [step.verdict for step in shown] == [record["verdict"] for record in logged if record["record"] == "verdict"]
    assert (replay.outcomes, replay.verdicts, replay.last) == (240, 12, shown[-1].verdict)


@pytest.mark.parametrize("fixed", [True, False])
def test_every_verdict_of_a_test_on_robots_is_computed_again(tmp_path: Path, fixed: bool) -> None:
    log = tmp_path / "log.jsonl"
    arms = {f"arm-{i}": "AB"[i % 2] for i in range(20)} if fixed else None
    robots_log(log, arms)
    replay = replay_file(log)
    assert replay.verdicts == 8 and replay.last is not None and replay.last["decision"] == "B_BETTER"


@pytest.mark.parametrize("unit", Unit)
def test_every_verdict_of_a_rollout_is_computed_again(tmp_path: Path, unit: Unit) -> None:
    log = tmp_path / "log.jsonl"
    decisions = canary_log(log, unit)
    shown: list[Step] = []
    assert replay_file(log, show=shown.append).verdicts == len(decisions) == 10
    assert [step.verdict["decision"] for step in shown] == decisions
    if unit is Unit.EPISODE:
        assert decisions[-1] == "ROLLBACK" and "silent" in shown[-1].verdict["message"]


@pytest.mark.parametrize(
    ("record", "fields", "old", "new", "what"),
    [
        ("outcome", {}, '"success": true', '"success": false', "differs"),
        ("event", {"arm": "A"}, '"arm": "A"', '"arm": "B"', "arm"),
        ("event", {}, '"episode": 0', '"episode": 1', ""),
        ("outcome", {}, '"robot": "arm-0"', '"robot": "arm-9"', ""),
        ("header", {}, '"max_pairs": 200', '"max_pairs": 150', "planned"),
        ("header", {}, '"experiment": "grip-7"', '"experiment": "grip-8"', "arm"),
        ("verdict", {}, '"used": 8', '"used": 9', "used"),
        ("verdict", {}, "CONTINUE", "B_BETTER", "decision"),
        ("verdict", {}, '"faster": null, ', "", "faster"),
        ("verdict", {}, '"faster": null, ', '"faster": null, "proof": null, ', "proof"),
        ("verdict", {}, '"now_s": ', '"then": 0, "now_s": ', "now_s alone"),
    ],
)
def test_whatever_is_changed_in_a_paired_log_is_found(
    tmp_path: Path, record: str, fields: Settings, old: str, new: str, what: str
) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log)
    e = refusal(changed(log, line_of(log, record, **fields), old, new))
    assert e.code in ("REPLAY_DIFFERS", "LOG_VALUE")
    if what and what != "differs":
        assert what in str(e)


@pytest.mark.parametrize(
    ("record", "fields", "old", "new"),
    [
        ("outcome", {}, '"success": true', '"success": false'),
        ("outcome", {}, '"latency_s": ', '"latency_s": 9'),
        ("event", {"event": "assign"}, '"group": 0', '"group": 1'),
        ("event", {"event": "assign"}, '"probability": 0.3', '"probability": 0.31'),
        ("outcome", {}, '"scores": {"tce": [', '"scores": {"tce": [99, '),
        ("header", {}, '"alpha": 0.05', '"alpha": 0.04'),
        ("header", {}, '"salt": "pick-1.2.0"', '"salt": "pick-1.2.1"'),
        ("verdict", {}, '"max_log_e": ', '"max_log_e": 1'),
    ],
)
def test_whatever_is_changed_in_the_log_of_a_rollout_is_found(
    tmp_path: Path, record: str, fields: Settings, old: str, new: str
) -> None:
    log = tmp_path / "log.jsonl"
    canary_log(log, Unit.EPISODE, episodes=200)
    lines = log.read_text().splitlines()
    place = next(
        number for number, line in enumerate(lines, start=1)
        if json.loads(line)["record"] == record and fields.items() <= json.loads(line).items() and old in line
        and '"value": -' not in line
    )  # fmt: skip
    e = refusal(changed(log, place, old, new))
    assert e.code in ("REPLAY_DIFFERS", "LOG_VALUE"), e


def test_an_arm_that_the_experiments_name_did_not_draw_is_found(tmp_path: Path) -> None:
    """Of a robot that runs one policy, in every record of it."""
    log = tmp_path / "log.jsonl"
    robots_log(log, None)
    drawn = arm("fleet-3", "arm-0", None, 0.5)
    other = {"A": "B", "B": "A"}[drawn]
    text = log.read_text().splitlines()
    forged = [line.replace(f'"arm": "{drawn}"', f'"arm": "{other}"') if '"arm-0"' in line else line for line in text]
    log.write_text("\n".join(forged) + "\n")
    assert refusal(log).code == "REPLAY_DIFFERS"


def test_a_group_that_the_experiments_name_did_not_draw_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    canary_log(log, Unit.ROBOT, episodes=40)
    e = refusal(changed(log, 2, '"arm-00": 0', '"arm-00": 1'))
    assert e.code in ("REPLAY_DIFFERS", "LOG_VALUE")


def test_a_torn_last_line_is_left_out_with_a_warning_and_cut_off_by_who_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log, episodes=8)
    whole = log.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 40, len(whole) - 1):
        log.write_bytes(whole[:cut])
        said: list[str] = []
        replay = replay_file(log, warn=said.append)
        assert replay.outcomes == 31 and len(said) == 1 and "torn" in said[0]
        with LoggedJudgement(
            log, "ab_paired", "grip-7", {"max_pairs": 200, "spending": "pocock"}, warn=said.append
        ) as judgement:
            assert len(said) == 2 and "cut off" in said[1]
            assert log.read_bytes() == whole[:last]
            record = json.loads(whole[last:])
            del record["record"]
            judgement.outcome(**record)
        assert log.read_bytes() == whole


def test_a_judgement_goes_on_where_its_log_ends(tmp_path: Path) -> None:
    """Kill and restart at every tenth outcome: the verdicts are those of one that was never restarted."""
    straight, restarted = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    paired_log(straight, episodes=20)
    header, *records = [json.loads(line) for line in straight.read_text().splitlines()]
    judgement = None
    for number, record in enumerate(records):
        if judgement is None or number % 10 == 0:
            if judgement is not None:
                judgement.close()
            judgement = LoggedJudgement(restarted, header["kind"], header["experiment"], header["settings"])
        if record["record"] == "verdict":
            assert to_json(judgement.verdict(**record["inputs"])) == record["verdict"]
            continue
        fields = {key: value for key, value in record.items() if key not in ("record", "event")}
        if record["record"] == "event":
            judgement.event(record["event"], **fields)
        else:
            judgement.outcome(**fields)
    assert judgement is not None
    judgement.close()
    assert restarted.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (3, "not json"),
        (3, ""),
        (3, "[1, 2]"),
        (3, '{"record": "outcome", "robot": NaN}'),
        (3, '{"record": "outcome", "latency": 1e999}'),
        (3, '{"record": "outcome", "robot": "a", "robot": "b"}'),
        (3, '{"record": "rumour"}'),
        (3, "[" * 100_000),
        (3, "x" * (1 << 21)),
        (1, '{"record": "outcome"}'),
        (1, '{"record": "header", "schema": 2}'),
        (3, '{"record": "header", "schema": 1}'),
    ],
)
def test_any_other_line_that_is_no_record_is_named_by_its_number(tmp_path: Path, line: int, text: str) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log, episodes=4)
    lines = log.read_text().splitlines()
    lines[line - 1] = text
    log.write_text("\n".join(lines) + "\n")
    e = refusal(log)
    assert e.code == "LOG_SYNTAX" and f"log.jsonl:{line}" in e.field


@pytest.mark.parametrize(
    "text",
    [
        '{"record": "outcome"}',
        '{"record": "event", "event": "assign", "robot": "a", "episode": 0, "arm": "C", "now_s": 50}',
        '{"record": "event", "event": "assign", "robot": 7, "episode": "x", "arm": "A", "now_s": 50}',
        '{"record": "event", "event": "assign", "robot": "new", "episode": 1, "arm": "A", "now_s": 50}',
        '{"record": "outcome", "robot": "arm-0", "episode": 99, "success": true, "now_s": 50}',
        '{"record": "outcome", "robot": "arm-0", "episode": 3, "success": "yes", "now_s": 50}',
        '{"record": "outcome", "robot": "arm-0", "episode": 3, "success": true, "now_s": 1%s}' % ("0" * 400),
        '{"record": "outcome", "robot": "arm-0", "episode": 3, "success": true, "now_s": 50, "latncy": 3}',
        '{"record": "verdict", "inputs": {}, "verdict": {}}',
        '{"record": "verdict", "inputs": {"now_s": 1%s}, "verdict": {}}' % ("0" * 400),
        '{"record": "event", "event": "begin_stage"}',
        '{"record": "event"}',
        '{"record": "verdict"}',
    ],
)
def test_a_record_that_the_judge_refuses_is_named_by_its_number(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log, episodes=4)
    with log.open("a") as file:
        file.write(text + "\n")
    e = refusal(log)
    assert e.code in ("LOG_VALUE", "REPLAY_DIFFERS") and "log.jsonl:34" in e.field


def test_what_is_told_again_counts_once_and_what_was_cut_out_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log, episodes=10)
    header, *lines = log.read_text().splitlines()
    again = [line for line in lines for _ in range(1 + ('"outcome"' in line))]
    log.write_text("\n".join([header, *again]) + "\n")
    replay_file(log)  # the same verdicts
    for cut in ('"outcome"', '"assign"', '"verdict"'):
        place = max(i for i, line in enumerate(lines[:-1]) if cut in line)
        log.write_text("\n".join([header, *lines[:place], *lines[place + 1 :]]) + "\n")
        if cut == '"verdict"':
            assert replay_file(log).verdicts == 1  # a verdict is no evidence
        else:
            assert refusal(log).code in ("REPLAY_DIFFERS", "LOG_VALUE")


def test_a_replay_claims_no_more_than_it_computed(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log, episodes=12)
    replay = replay_file(log)
    assert (replay.verdicts, replay.unchecked) == (2, 8) and "8 outcomes came after the last" in str(replay)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(line for line in lines if '"verdict"' not in line) + "\n")
    assert "nothing was checked: no verdict" in str(replay_file(log))
    robots_log(robots := tmp_path / "robots.jsonl", {f"arm-{i}": "AB"[i % 2] for i in range(20)})
    assert "assignments were given, not drawn: unchecked" in str(replay_file(robots))


def test_files_that_are_no_log_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert refusal(empty).code == "LOG_SYNTAX"
    assert refusal(tmp_path / "missing").code == "LOG_UNREADABLE"
    unknown = tmp_path / "unknown"
    LogWriter(unknown, "oracle", "x", {}).close()
    assert refusal(unknown).code == "LOG_VALUE"
    LogWriter(wrong := tmp_path / "wrong", "ab_paired", "x", {"pairs": 5}).close()
    assert refusal(wrong).code == "LOG_VALUE"


def test_a_log_is_of_one_judgement_and_has_one_writer(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 5}) as judgement:
        with pytest.raises(LogError) as e:
            LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 5})
        assert e.value.code == "LOG_NOT_WRITTEN" and "another process" in e.value.reason
        before = log.read_bytes()
        with pytest.raises(InputError):
            judgement.event("assign", robot="a", episode=-1, arm="A", now_s=0.0)
        misspelt = {"robot": "a", "episode": 0, "now_s": 0.0, "succes": 1}
        for fields in ({}, misspelt, {"robot": "a", "episode": [], "now_s": {}, "success": 1}):
            with pytest.raises(InputError):
                judgement.outcome(**fields)
        for inputs in ({}, {"now_s": "noon"}, {"now_s": 10**400}):
            with pytest.raises(InputError):
                judgement.verdict(**inputs)
        with pytest.raises(InputError):
            judgement.event("begin_stage", stage="first")
        with pytest.raises(LogError) as e:
            judgement.outcome(robot="a", episode=0, success=True, now_s=0.0, latency=float("nan"))
        assert e.value.code == "LOG_VALUE" and log.read_bytes() == before
    with pytest.raises(LogError) as e:
        LoggedJudgement(log, "ab_paired", "x", {"max_pairs": 6})
    assert e.value.code == "LOG_VALUE"
    for kind, settings in (("ab_paired", {"pairs": 5}), ("canary", {}), ("canary", {"config": {}}), ("oracle", {})):
        with pytest.raises(InputError):
            LoggedJudgement(tmp_path / "other", kind, "x", settings)
    assert not (tmp_path / "other").exists()
    with pytest.raises(LogError) as e:
        LoggedJudgement(tmp_path / "no" / "folder", "ab_paired", "x", {"max_pairs": 5})
    assert e.value.code == "LOG_NOT_WRITTEN"


def test_a_long_log_is_replayed_in_bounded_memory(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    paired_log(log, episodes=2)
    text = log.read_text().splitlines()
    with log.open("w") as file:
        file.write(text[0] + "\n")
        for number in range(20_000):
            _, drawn = arm_in_pair("grip-7", "arm-0", number)
            episode = {"robot": "arm-0", "episode": number, "now_s": number}
            for record in (
                {"record": "event", "event": "assign", **episode, "arm": drawn},
                {"record": "outcome", **episode, "success": True, "latency": 2.0},
            ):
                file.write(json.dumps(record) + "\n")
    assert log.stat().st_size > 2_000_000
    replay_file(log)
    tracemalloc.start()
    replay_file(log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000


def test_numbers_differ_by_more_than_rounding_or_not_at_all() -> None:
    assert not list(differences({"a": [1.0, {"b": None}]}, {"a": [1.0 + 1e-13, {"b": None}]}))
    for logged, computed in ((1.0, 1.001), (1, True), ("1", 1), ([1], [1, 2]), ({"a": 1}, {}), (None, 0.0)):
        assert list(differences(logged, computed)), (logged, computed)
