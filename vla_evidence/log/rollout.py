# SPDX-License-Identifier: Apache-2.0
"""A rollout as a fleet server runs it: every call is judged, logged and answered; after a restart it goes on from its log."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vla_evidence.canary.by_robot import History
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.scores import Scores
from vla_evidence.episodes import Fate
from vla_evidence.log.records import EVENT, VERDICT, Record, Warn
from vla_evidence.log.replay import LoggedJudgement
from vla_evidence.tables import hours_text
from vla_evidence.verdict import Verdict


class Rollout:
    """One rollout. Call :meth:`open` (or wrap :meth:`LoggedJudgement.resume`), then :meth:`begin_stage`; ``now_s`` is the server's one steady clock [s].

    Every call raises :class:`~vla_evidence.errors.InputError` if it is refused (nothing is logged then), and
    :class:`~vla_evidence.errors.LogError` with LOG_NOT_WRITTEN if the log cannot be written: open it again, and call again.
    """

    def __init__(self, judgement: LoggedJudgement) -> None:
        self._judgement = judgement

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        experiment: str,
        config: CanaryConfig,
        score_history: Scores | None = None,
        *,
        warn: Warn | None = None,
    ) -> Rollout:
        """Begin a rollout's log, or go on where it ends.

        Args:
            path: of the log.
            experiment: its name, which salts every draw.
            config: of the judge; the same as before.
            score_history: the incumbent's scores by source, from which limits are made.
            warn: receives the warning of a torn last line, which is cut off.
        """
        settings: dict[str, Any] = {"config": config.to_json()}
        if score_history:
            settings["score_history"] = score_history
        return Rollout(LoggedJudgement.open(path, "canary", experiment, settings, warn=warn))

    def begin_stage(
        self, index: int, robots: Collection[str], now_s: float, history: History | None = None
    ) -> tuple[str, ...]:
        """Begin a stage in this fleet; return the robots that hold the new version in it."""
        more = {} if history is None else {"history": {robot: list(counts) for robot, counts in history.items()}}
        return tuple(self._judgement.event("begin_stage", stage=index, robots=sorted(robots), now_s=now_s, **more))

    def knows(self, robot: str, episode: str) -> bool:
        """Whether this episode of this robot was chosen before."""
        return self._judgement.judge.knows(episode, robot)

    def choose(self, robot: str, episode: str, now_s: float) -> int:
        """Return which version an episode runs: 0 the incumbent, 1 the canary. Calling again gives the same answer."""
        return self._judgement.choose(robot, episode, now_s)

    def outcome(
        self,
        episode: str,
        success: bool,
        now_s: float,
        latency_s: float | None = None,
        scores: Mapping[str, Any] | None = None,
    ) -> Fate:
        """An episode ended; return whether its outcome was counted, late, repeated or of an unknown episode."""
        return self._judgement.outcome(episode, success, now_s, latency_s, scores)

    def status(self, now_s: float) -> Verdict:
        """Return what is to be done."""
        return self._judgement.verdict(now_s)

    def robots_changed(self, now_s: float, *, joined: Iterable[str] = (), failed: Iterable[str] = ()) -> None:
        """Robots joined the fleet, or their own trial of the new version failed."""
        self._judgement.event("robots_changed", now_s=now_s, joined=sorted(joined), failed=sorted(failed))

    def decide(self, person: str, action: str, reason: str, now_s: float) -> None:
        """A person decides: "advance" lets any later stage begin without the judge's ADVANCE, "rollback" ends the rollout."""
        self._judgement.event("decided", person=person, action=action, reason=reason, now_s=now_s)

    def close(self) -> None:
        """Close the log."""
        self._judgement.close()


def report(records: Iterable[tuple[int, Record]]) -> str:
    """Return what happened, from a log's records: stages, decisions of persons, and every change of the verdict, with times."""
    lines, last = [], None
    for _, record in records:
        text = ""
        if record["record"] == VERDICT:
            found = record["verdict"]["decision"], record["verdict"]["code"]
            text = "" if found == last else " ".join((*found, record["verdict"]["message"]))
            last = found
        elif record["record"] == EVENT and record["event"] == "begin_stage":
            text = f"stage {record['stage']} begins with {len(record['robots'])} robots"
        elif record["record"] == EVENT and record["event"] == "decided":
            text = f"{record['person']} decides: {record['action']} ({record['reason']})"
        if text:
            lines.append(f"{hours_text(record['now_s'] / 3600.0)}: {text}")
    return "\n".join(lines)
