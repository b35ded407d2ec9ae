# SPDX-License-Identifier: Apache-2.0
"""A rollout as a fleet server runs it: every call is judged, logged and answered; after a restart it goes on from its log."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vla_evidence.canary.by_robot import History
from vla_evidence.log.records import EVENT, VERDICT, Record
from vla_evidence.log.replay import LoggedJudgement
from vla_evidence.tables import hours_text


class Rollout(LoggedJudgement):
    """One rollout. Call :meth:`resume`, then :meth:`begin_stage`; ``now_s`` is the server's one steady clock [s].

    Every call raises :class:`~vla_evidence.errors.InputError` if it is refused; nothing is logged then.
    """

    def begin_stage(
        self, index: int, robots: Collection[str], now_s: float, history: History | None = None
    ) -> tuple[str, ...]:
        """Begin a stage in this fleet; return the robots that hold the new version in it."""
        more = {} if history is None else {"history": {robot: list(counts) for robot, counts in history.items()}}
        return tuple(self.event("begin_stage", stage=index, robots=sorted(robots), now_s=now_s, **more))

    def knows(self, robot: str, episode: str) -> bool:
        """Whether this episode of this robot was chosen before."""
        return self.judge.knows(episode, robot)

    def robots_changed(self, now_s: float, *, joined: Iterable[str] = (), failed: Iterable[str] = ()) -> None:
        """Robots joined the fleet, or their own trial of the new version failed."""
        self.event("robots_changed", now_s=now_s, joined=sorted(joined), failed=sorted(failed))

    def decide(self, person: str, action: str, reason: str, now_s: float) -> None:
        """A person decides: "advance" lets any later stage begin without the judge's ADVANCE, "rollback" ends the rollout."""
        self.event("decided", person=person, action=action, reason=reason, now_s=now_s)


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
