# SPDX-License-Identifier: Apache-2.0
"""The judges as a log knows them: made of JSON settings, fed with JSON records, each assignment checked on the way.

========== ======================================================= ====================================================
kind       settings                                                an outcome's fields
========== ======================================================= ====================================================
ab_paired  arguments of :class:`~vla_evidence.ab.PairedABJudge`    robot, episode, success, now_s, latency
ab_robots  those of :class:`~vla_evidence.ab.UnpairedABJudge`      robot, episode, success, now_s, latency
canary     config (:meth:`CanaryConfig.to_json`), score_history    episode, success, now_s, latency_s, scores
========== ======================================================= ====================================================

The experiment's name is the salt of every assignment, and of the random draws that a test needs. Each episode is assigned before
it has an outcome, so one that never gets one is not forgotten: event ``assign`` (A/B: robot, episode (0, 1, … on this robot),
arm, now_s; canary: episode, robot, group, now_s; for units of episodes: probability). A canary's log also has the event
``begin_stage`` (stage, now_s; for units of robots: cohort), and its outcomes may hold ``scores`` (by source, of each block).
Verdicts depend on ``now_s``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vla_evidence.ab import PairedABJudge, UnpairedABJudge
from vla_evidence.assignment import B, arm, arm_in_pair, cohort
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.errors import EvidenceError, InputError, LogError, check_time, shown
from vla_evidence.log.records import EVENT, OUTCOME, Record


class Judgement(Protocol):
    """A judge that is fed with records of a log."""

    kind: str
    experiment: str
    judge: Any
    drawn: bool
    """Whether the experiment's name gives every assignment; else some stand in the header and are taken as given."""

    def take(self, record: Record) -> None:
        """Take an outcome or event in.

        Raises:
            InputError: the judge refuses it.
            LogError: REPLAY_DIFFERS: its assignment is not the one that the experiment's name gives.
        """

    def verdict(self, inputs: Mapping[str, Any]) -> Any:
        """Return the verdict."""


class _AB:
    """What both tests of A and B take from a log."""

    drawn = True

    def __init__(self, experiment: str, judge: PairedABJudge | UnpairedABJudge) -> None:
        self.experiment, self.judge = experiment, judge

    def take(self, record: Record) -> None:
        """See :class:`Judgement`."""
        if record["record"] == OUTCOME:
            _check(record, ("robot", "episode", "success", "now_s"), ("latency",))
            self.judge.finish(
                record["robot"], record["episode"], record["success"], record["now_s"], record.get("latency")
            )
        elif record["event"] == "assign":
            _check(record, ("robot", "episode", "arm", "now_s"), (), EVENT)
            self._check_arm(record)
            self.judge.assign(record["robot"], record["episode"], record["arm"], record["now_s"])
        else:
            raise InputError("INPUT_VALUE", "event", f"this judge knows no {record['event']!r}")

    def _check_arm(self, record: Record) -> None:
        raise NotImplementedError

    def verdict(self, inputs: Mapping[str, Any]) -> Any:
        """See :class:`Judgement`."""
        return self.judge.verdict(_time_of(inputs))


class PairedAB(_AB):
    """Pairs on one robot; which of its episodes runs what is drawn by :func:`vla_evidence.assignment.arm_in_pair`."""

    kind = "ab_paired"

    def __init__(self, experiment: str, settings: Mapping[str, Any]) -> None:
        super().__init__(experiment, PairedABJudge(**settings))

    def _check_arm(self, record: Record) -> None:
        _same_arm(record["arm"], arm_in_pair(self.experiment, record["robot"], record["episode"])[1])


class RobotsAB(_AB):
    """Robots that run one policy each: in ``arms``, or drawn by :func:`vla_evidence.assignment.arm` with ``split``."""

    kind = "ab_robots"

    def __init__(self, experiment: str, settings: Mapping[str, Any]) -> None:
        if "seed" in settings:
            raise InputError("INPUT_VALUE", "seed", "is the experiment's name, and no setting")
        super().__init__(experiment, UnpairedABJudge(**{**settings, "seed": experiment}))
        self.drawn, self._split = settings.get("arms") is None, settings.get("split", 0.5)

    def _check_arm(self, record: Record) -> None:
        if self.drawn:
            _same_arm(record["arm"], arm(self.experiment, record["robot"], None, self._split))


class Canary:
    """A rollout. Episodes are drawn by :func:`vla_evidence.assignment.arm`, robots by :func:`vla_evidence.assignment.cohort`."""

    kind = "canary"
    drawn = True

    def __init__(self, experiment: str, settings: Mapping[str, Any]) -> None:
        config = CanaryConfig.from_json(settings["config"])
        if config.salt != experiment:
            raise InputError("INPUT_VALUE", "salt", f"{config.salt!r} is not the experiment {experiment!r}")
        self.experiment = experiment
        self.judge = CanaryJudge(config, settings.get("score_history"))

    def take(self, record: Record) -> None:
        """See :class:`Judgement`."""
        if record["record"] == OUTCOME:
            _check(record, ("episode", "success", "now_s"), ("latency_s", "scores"))
            measured = record.get("latency_s"), record.get("scores")
            self.judge.finish(record["episode"], record["success"], record["now_s"], *measured)
        elif record["event"] == "begin_stage":
            _check(record, ("stage", "now_s"), ("cohort",), EVENT)
            self._begin(record["stage"], record["now_s"], record.get("cohort"))
        elif record["event"] == "assign":
            _check(record, ("episode", "robot", "group", "now_s"), ("probability",), EVENT)
            self._assign(
                record["episode"], record["robot"], record["group"], record["now_s"], record.get("probability")
            )
        else:
            raise InputError("INPUT_VALUE", "event", f"this judge knows no {record['event']!r}")

    def _begin(self, stage: int, now_s: float, groups: Mapping[str, int] | None) -> None:
        if groups is not None:
            drawn = set(cohort(self.experiment, groups, self.judge.config.stages[stage].share))
            for robot, group in groups.items():
                _same_arm(group, int(robot in drawn))
        self.judge.begin_stage(stage, now_s, groups)

    def _assign(self, episode: str, robot: str, group: int, now_s: float, probability: float | None) -> None:
        if probability is not None:  # else its robot was drawn, with the cohort
            _same_arm(group, int(arm(self.experiment, robot, episode, probability) == B))
        self.judge.assign(episode, robot, group, now_s, probability)

    def verdict(self, inputs: Mapping[str, Any]) -> Any:
        """See :class:`Judgement`."""
        return self.judge.verdict(_time_of(inputs))


_KINDS: dict[str, Callable[[str, Mapping[str, Any]], Judgement]] = {
    judgement.kind: judgement for judgement in (PairedAB, RobotsAB, Canary)
}


def judgement_of(kind: str, experiment: str, settings: Mapping[str, Any]) -> Judgement:
    """Return a judge of this kind before its first outcome.

    Raises:
        InputError: INPUT_VALUE: no such kind, or settings that are none of its; or what the judge says of them.
    """
    if kind not in _KINDS:
        raise InputError("INPUT_VALUE", "kind", f"{kind!r} is none of {', '.join(sorted(_KINDS))}")
    try:
        return _KINDS[kind](experiment, settings)
    except EvidenceError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise InputError("INPUT_VALUE", "settings", f"not of {kind}: {type(e).__name__}: {e}") from e


def take(judgement: Judgement, record: Record) -> None:
    """Give a judge a record of unknown origin; it raises nothing but :class:`EvidenceError`."""
    try:
        judgement.take(record)
    except EvidenceError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as e:
        raise InputError("INPUT_VALUE", "record", f"{type(e).__name__}: {e}") from e


def _check(record: Record, needed: tuple[str, ...], optional: tuple[str, ...], kind: str = OUTCOME) -> None:
    """Refuse a record of another kind or with other fields: a misspelt one would be lost without a word."""
    if record["record"] != kind:
        raise InputError("INPUT_VALUE", "record", f"this judge knows no {record['record']}")
    fields = record.keys() - {"record", "event"}
    missing, unknown = set(needed) - fields, fields - {*needed, *optional}
    if missing or unknown:
        found = [
            f"{what} {', '.join(sorted(names))}" for what, names in (("lacks", missing), ("has", unknown)) if names
        ]
        raise InputError("INPUT_VALUE", "record", f"no record of this judge: it {' and '.join(found)}")


def _time_of(inputs: Mapping[str, Any]) -> float:
    if inputs.keys() != {"now_s"}:
        raise InputError("INPUT_VALUE", "inputs", f"a verdict depends on now_s alone, not on {shown(sorted(inputs))}")
    return check_time("now_s", inputs["now_s"])


def _same_arm(logged: str | int, drawn: str | int) -> None:
    if logged != drawn:
        raise LogError("REPLAY_DIFFERS", "arm", f"the log says {logged!r}, the experiment's name gives {drawn!r}")
