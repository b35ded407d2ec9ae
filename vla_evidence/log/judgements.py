# SPDX-License-Identifier: Apache-2.0
"""The judges as a log knows them: made of JSON settings, fed with JSON records, which are checked here and nowhere else.

========== =============================================================================== ==============================
kind       settings                                                                        an outcome may also hold
========== =============================================================================== ==============================
ab_paired  arguments of :class:`~vla_evidence.ab.pairs.PairedABJudge`                      latency_s
ab_robots  those of :class:`~vla_evidence.ab.robots.UnpairedABJudge`                       latency_s
canary     config (:meth:`CanaryConfig.to_json`), score_history                            latency_s, scores (by source)
========== =============================================================================== ==============================

The experiment's name salts every draw. Each episode is chosen before it has an outcome, so one that never gets one is not
forgotten: event ``choose`` (robot, episode, now_s, version). A canary's log also has ``begin_stage`` (stage, robots, now_s;
history), ``robots_changed`` (now_s; joined, failed) and ``decided`` (person, action, reason, now_s).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vla_evidence.ab.pairs import PairedABJudge
from vla_evidence.ab.robots import UnpairedABJudge
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.errors import (
    MAX_COUNT,
    EvidenceError,
    InputError,
    LogError,
    check_counts,
    check_name,
    check_number,
    check_probability,
    check_rate,
    check_time,
    is_integer,
    shown,
)
from vla_evidence.log.records import EVENT, OUTCOME, Record

Judge = CanaryJudge | PairedABJudge | UnpairedABJudge
_LONGEST_S = 1e100
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "choose": (("robot", "episode", "now_s", "version"), ()),
    "begin_stage": (("stage", "robots", "now_s"), ("history",)),
    "robots_changed": (("now_s",), ("joined", "failed")),
    "decided": (("person", "action", "reason", "now_s"), ()),
    OUTCOME: (("episode", "success", "now_s"), ("latency_s", "scores")),
}
"""Needed and optional fields of an event or an outcome."""


def judge_of(kind: str, experiment: str, settings: Mapping[str, Any]) -> Judge:
    """Return a judge of this kind before its first outcome."""
    if kind not in _KINDS:
        raise InputError("INPUT_VALUE", "kind", f"{shown(kind)} must be one of {', '.join(sorted(_KINDS))}")
    check_name("experiment", experiment)
    try:
        return _KINDS[kind](experiment, settings)
    except EvidenceError:
        raise
    except _UNREADABLE as e:
        raise InputError("INPUT_VALUE", "settings", f"not of {kind}: {type(e).__name__}: {e}") from e


def take(judge: Judge, record: Record) -> Any:
    """Give a judge a record of unknown origin; return what it answers.

    Raises:
        InputError: the record or the judge refuses it; the judge has not changed.
        LogError: REPLAY_DIFFERS: an episode's version is not the one that the experiment's name gives.
    """
    try:
        if record["record"] == OUTCOME:
            return _outcome(judge, record)
        event = record["event"]
        if record["record"] != EVENT or event not in _FIELDS:
            raise InputError("INPUT_VALUE", "event", f"unknown: {shown(event)}")
        _check_fields(event, record)
        check_time("now_s", record["now_s"])
        if event == "choose":
            return _choose(judge, record)
        if not isinstance(judge, CanaryJudge):
            raise InputError("INPUT_VALUE", "event", f"an A/B test has no {event}")
        return _of_rollout(judge, event, record)
    except EvidenceError:
        raise
    except _UNREADABLE as e:
        raise InputError("INPUT_VALUE", "record", f"{type(e).__name__}: {e}") from e


def _choose(judge: Judge, record: Record) -> int:
    robot, episode = check_name("robot", record["robot"]), check_name("episode", record["episode"])
    version = judge.choose(robot, episode, record["now_s"])
    if record["version"] not in (None, version):
        reason = f"the log says {shown(record['version'])}, the experiment's name gives {version}"
        raise LogError("REPLAY_DIFFERS", "version", reason)
    return version


def _outcome(judge: Judge, record: Record) -> Any:
    _check_fields(OUTCOME, record)
    episode, success = check_name("episode", record["episode"]), record["success"]
    if type(success) is not bool:
        raise InputError("INPUT_VALUE", "success", f"{shown(success)} must be true or false")
    latency_s = record.get("latency_s")
    if latency_s is not None and not 0.0 < check_number("latency_s", latency_s) <= _LONGEST_S:
        raise InputError("INPUT_VALUE", "latency_s", f"{shown(latency_s)} must be a positive number of seconds")
    now_s = check_time("now_s", record["now_s"])
    if isinstance(judge, CanaryJudge):
        return judge.outcome(episode, success, now_s, latency_s, record.get("scores"))
    if record.get("scores") is not None:
        raise InputError("INPUT_VALUE", "scores", "an A/B test has none")
    return judge.outcome(episode, success, now_s, latency_s)


def _of_rollout(judge: CanaryJudge, event: str, record: Record) -> Any:
    if event == "begin_stage":
        if not is_integer(record["stage"]):
            raise InputError("INPUT_VALUE", "stage", f"{shown(record['stage'])} must be an integer")
        history = record.get("history")
        for robot, counts in (history or {}).items():
            check_counts(f"history of {robot}", *counts)
        return judge.begin_stage(record["stage"], record["now_s"], _names(record["robots"]), history)
    if event == "robots_changed":
        changed = {name: _names(record.get(name, ())) for name in ("joined", "failed")}
        return judge.robots_changed(record["now_s"], **changed)
    for name in ("person", "action", "reason"):
        check_name(name, record[name])
    return judge.decide(record["person"], record["action"], record["reason"], record["now_s"])


def _names(values: Any) -> list[str]:
    if not isinstance(values, (list, tuple)):
        raise InputError("INPUT_VALUE", "robots", f"{shown(values)} must be a list of names")
    return [check_name("robot", value) for value in values]


def _check_fields(event: str, record: Record) -> None:
    """Refuse a record with other fields: a misspelt one would be lost without a word."""
    needed, optional = _FIELDS[event]
    fields = record.keys() - {"record", "event"}
    for name in needed:
        if name not in fields:
            raise InputError("INPUT_VALUE", event, f"lacks the field {name!r}")
    for name in sorted(fields - {*needed, *optional}):
        raise InputError("INPUT_VALUE", event, f"unknown field {name!r}")


def _canary(experiment: str, settings: Mapping[str, Any]) -> CanaryJudge:
    unknown = settings.keys() - {"config", "score_history"}
    if unknown:
        raise InputError("INPUT_VALUE", "settings", f"unknown: {', '.join(sorted(unknown))}")
    return CanaryJudge(CanaryConfig.from_json(settings["config"]), experiment, settings.get("score_history"))


def _ab_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("alpha", "confidence", "split"):
        check_probability(name, settings.get(name, 0.05), below=0.5 if name == "alpha" else 1.0)
    check_rate("icc", settings.get("icc", 0.0))
    for name in ("deadline_s", "gone_s"):
        if check_time(name, settings.get(name, 1.0)) <= 0.0:
            raise InputError("INPUT_VALUE", name, "must be positive")
    for name, least, most in (("planned_episodes", 1, MAX_COUNT), ("looks", 1, 1000), ("draws", 19, 100_000)):
        value = settings.get(name, least)
        if not is_integer(value) or not least <= value <= most:
            raise InputError("INPUT_COUNT", name, f"{shown(value)} must be an integer from {least} to {most}")
    for robot, version in (settings.get("arms") or {}).items():
        if version not in (0, 1) or isinstance(version, bool):
            raise InputError("INPUT_ARM", f"arms of {robot}", f"{shown(version)} must be 0 (A) or 1 (B)")
    return dict(settings)


_KINDS: dict[str, Callable[[str, Mapping[str, Any]], Judge]] = {
    "ab_paired": lambda experiment, settings: PairedABJudge(**_ab_settings(settings), experiment=experiment),
    "ab_robots": lambda experiment, settings: UnpairedABJudge(**_ab_settings(settings), experiment=experiment),
    "canary": _canary,
}
