# SPDX-License-Identifier: Apache-2.0
"""The demo's figures, from what the nodes reported, the server counted and the witness suffered; nothing here knows the story.

Every function returns rows as ``report.json`` has them. A row's ``missed_ticks`` are the loop's own; ``machines_ticks`` were
missed as well, but in stalls that the witness suffered too (``vla_sim/witness.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_sim.checkpoint_server import CheckpointServer
from vla_sim.demo.journal import Journal, RollbackReply, at_s
from vla_sim.witness import Late, between, machines_share

END_STATES = ("COMMITTED", "REJECTED", "CANCELLED", "ROLLED_BACK", "FAILED")
OPERATOR = "OPERATOR"
_SPAN_AFTER_SWAP_S = 1.0  # what a SwapReport counts ends so long after the first action

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What was seen.

    ``late``: the witness's late wake-ups, in seconds since 1970. ``blobs``: version → {path: size [bytes]} of what only this
    version has.
    """

    journal: Journal
    server: CheckpointServer
    late: Sequence[Late]
    blobs: Mapping[str, Mapping[str, int]]
    witness_fifo: int = 0

    def share(self, missed: int, begin_s: float, end_s: float, rate_hz: float) -> int:
        """Return how many of the ticks that were missed between two times [s since 1970] are the machine's."""
        return machines_share(missed, 1.0 / rate_hz, between(self.late, begin_s, end_s)) if rate_hz else 0

    def ticks_of(self, report: SwapReport) -> Row:
        """Return what a swap or rollback did to the ticks."""
        rate_hz = max((status.control_rate_hz for status in self.journal.all(PolicyStatus)), default=0.0)
        ticks, end_s = sum(report.tick_histogram), at_s(report) + _SPAN_AFTER_SWAP_S
        begin_s = end_s - (ticks / rate_hz if rate_hz else 0.0)
        share = self.share(report.missed_ticks, begin_s, end_s, rate_hz)
        return {
            "ticks": ticks,
            "missed_ticks": report.missed_ticks - share,
            "machines_ticks": share,
            "starved_ticks": report.starved_ticks,
            "worst_late_ms": report.worst_late_ms,
        }


def swaps(evidence: Evidence) -> list[Row]:
    """Every update that began to act."""
    return [
        {
            "from": report.from_version,
            "to": report.to_version,
            "bytes_downloaded": _downloaded(evidence.journal, report),
            **{name: getattr(report, name) for name in ("load_s", "warm_up_s", "swap_latency_s", "at")},
            **evidence.ticks_of(report),
            **{name: getattr(report, name) for name in ("seam_jump", "typical_step", "seam_channel")},
        }
        for report in evidence.journal.all(SwapReport)
        if report.cause == "UPDATE"
    ]


def _downloaded(journal: Journal, report: SwapReport) -> int:
    offers = [o for o in journal.all(ModelUpdate) if o.version == report.to_version and at_s(o) <= at_s(report)]
    ids = {offer.update_id for offer in offers[-1:]}
    return max((s.bytes_downloaded for s in journal.all(ModelStatus) if s.update_id in ids), default=0)


def rollbacks(evidence: Evidence) -> list[Row]:
    """Every way back, on a verdict, a request, or an expired lease.

    ``detect_s``: from the first action of the bad version to the verdict; None: a person decided. ``duration_s``: from verdict
    or request to the first action. ``bytes_downloaded``: what the server sent from then until the manager said that it is over.
    """
    journal, rows = evidence.journal, []
    for report in journal.all(SwapReport):
        if report.cause not in ("ROLLBACK", "LEASE_EXPIRED"):
            continue
        acted_s, (cause, begun_s) = at_s(report), _verdict(journal, report)
        ends = [at_s(e) for e in journal.all(ModelEvent) if e.to_state == "ROLLED_BACK" and at_s(e) >= acted_s]
        before = [at_s(s) for s in journal.all(SwapReport) if s.to_version == report.from_version and at_s(s) < acted_s]
        rows.append(
            {
                "from": report.from_version,
                "to": report.to_version,
                "cause": cause,
                "warm": report.warm,
                "detect_s": None if cause == OPERATOR or not before else begun_s - before[-1],
                "duration_s": acted_s - begun_s,
                "bytes_downloaded": evidence.server.sent_between(begun_s, min(ends, default=acted_s)),
                **evidence.ticks_of(report),
            }
        )
    return rows


def _verdict(journal: Journal, report: SwapReport) -> tuple[str, float]:
    """Why and when it was decided to go back."""
    acted_s = at_s(report)
    asked = [
        r.at_s for r in journal.all(RollbackReply) if r.at_s <= acted_s and r.reply.to_version == report.to_version
    ]
    events = [e for e in journal.all(ModelEvent) if e.to_state == "ROLLING_BACK" and at_s(e) <= acted_s]
    if events and (not asked or events[-1].error_code):
        return events[-1].error_code or report.cause, at_s(events[-1])
    return (OPERATOR, asked[-1]) if asked else (report.cause, acted_s)


def rejected(evidence: Evidence) -> list[Row]:
    """Every version that was refused."""
    return [
        {"version": e.version, "error_code": e.error_code, "message": e.message, "at_s": at_s(e)}
        for e in evidence.journal.all(ModelEvent)
        if e.to_state == "REJECTED"
    ]


def holds(evidence: Evidence) -> list[Row]:
    """Holds after the robot first moved, by the stamps of the statuses; ``duration_s`` None: it never ended."""
    rows: list[Row] = []
    begun: Row | None = None
    moved = False
    for status in evidence.journal.all(PolicyStatus):
        if status.state == PolicyStatus.STATE_HOLDING and moved and begun is None:
            begun = {"cause": status.hold_reason, "at_s": at_s(status), "duration_s": None, "recovered_version": ""}
            rows.append(begun)
        elif status.state == PolicyStatus.STATE_RUNNING:
            if begun is not None:
                begun["duration_s"] = at_s(status) - begun["at_s"]
                begun["recovered_version"] = status.active_version
            moved, begun = True, None
    return rows


def success_rates(evidence: Evidence) -> list[Row]:
    """Episodes by version whose outcome is known and the version's own, in the order in which the versions acted."""
    rows: dict[str, Row] = {}
    for outcome in evidence.journal.all(EpisodeOutcome):
        if outcome.known and not outcome.mixed and outcome.version:
            row = rows.setdefault(outcome.version, {"version": outcome.version, "episodes": 0, "successes": 0})
            row["episodes"] += 1
            row["successes"] += int(outcome.success and not outcome.intervention)
    return list(rows.values())


def missed(evidence: Evidence) -> list[Row]:
    """Every span between two statuses in which the loop missed ticks."""
    rows = []
    for before, after in pairwise(evidence.journal.all(PolicyStatus)):
        count, span = after.missed_ticks - before.missed_ticks, (at_s(before), at_s(after))
        if count > 0:
            share = evidence.share(count, *span, after.control_rate_hz)
            rows.append({"begin_s": span[0], "end_s": span[1], "missed_ticks": count - share, "machines_ticks": share})
    return rows


def make_report(evidence: Evidence) -> Row:
    """Everything as ``report.json`` has it; times [s since 1970], durations [s], jumps and steps [rad]."""
    last, model = evidence.journal.last(PolicyStatus), evidence.journal.last(ModelStatus)
    spans = missed(evidence)
    report = {
        "control_rate_hz": last.control_rate_hz if last else 0.0,
        "ticks": last.ticks if last else 0,
        "missed_ticks": sum(span["missed_ticks"] for span in spans),
        "machines_ticks": sum(span["machines_ticks"] for span in spans),
        "starved_ticks": last.starved_ticks if last else 0,
        "worst_late_ms": last.worst_late_ms if last else 0.0,
        "witness_worst_late_ms": max((w.late_s * 1e3 for w in evidence.late), default=0.0),
        "witness_fifo_priority": evidence.witness_fifo,
        "missed_spans": spans,
        "commands": len(evidence.journal.commands),
        "swaps": swaps(evidence),
        "rollbacks": rollbacks(evidence),
        "rejected": rejected(evidence),
        "holds": holds(evidence),
        "final_version": last.active_version if last else "",
        "committed_version": model.committed_version if model else "",
        "success_rates": success_rates(evidence),
        "bytes_served": sum(evidence.server.served.values()),
    }
    return {
        name: [_short(row) for row in value] if isinstance(value, list) else value for name, value in report.items()
    }


def _short(row: Row) -> Row:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
