# SPDX-License-Identifier: Apache-2.0
"""The demo's figures, from what the nodes reported and the server counted; nothing in here knows the story."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vla_sim.demo.journal import (
    EpisodeOutcome,
    Journal,
    ModelEvent,
    ModelStatus,
    Offer,
    PolicyStatus,
    RollbackReply,
    SwapReport,
)
from vla_sim.demo.server import CheckpointServer

END_STATES = ("COMMITTED", "REJECTED", "CANCELLED", "ROLLED_BACK", "FAILED")
OPERATOR = "OPERATOR"
SENSOR_HOLD = "OBSERVATION_STALE"
"""The policy's inputs were late, which a busy machine does to the simulator; it says nothing about updates."""


@dataclass(frozen=True)
class Swap:
    """One update that began to act."""

    from_version: str
    to_version: str
    bytes_downloaded: int  # ModelStatus.bytes_downloaded of the update
    load_s: float
    warm_up_s: float
    swap_latency_s: float
    ticks: int  # in the span that is counted: from the preparation to a second after the swap
    missed_ticks: int
    starved_ticks: int
    seam_jump: float
    typical_step: float
    seam_channel: str
    at: str


@dataclass(frozen=True)
class Rollback:
    """One way back. ``detect_s``: from the first action of the bad version to the verdict; None: a person decided."""

    from_version: str
    to_version: str
    cause: str
    warm: bool
    detect_s: float | None
    duration_s: float  # from verdict or request to the first action
    bytes_downloaded: int  # served meanwhile
    ticks: int
    missed_ticks: int
    starved_ticks: int


@dataclass(frozen=True)
class Hold:
    """One hold of a robot that had been moving; ``duration_s`` None: it never ended."""

    at_s: float
    cause: str
    duration_s: float | None
    recovered_version: str  # what acted after it


@dataclass(frozen=True)
class Rate:
    """Episodes of a version whose outcome is known and its own."""

    version: str
    episodes: int
    successes: int


def swaps(journal: Journal) -> list[Swap]:
    """Every update that began to act."""
    return [
        Swap(
            report.from_version,
            report.to_version,
            _downloaded(journal, report),
            report.load_s,
            report.warm_up_s,
            report.swap_latency_s,
            sum(report.tick_histogram),
            report.missed_ticks,
            report.starved_ticks,
            report.seam_jump,
            report.typical_step,
            report.seam_channel,
            report.at,
        )
        for report in journal.all(SwapReport)
        if report.cause == "UPDATE"
    ]


def _downloaded(journal: Journal, report: SwapReport) -> int:
    offers = [o for o in journal.all(Offer) if o.version == report.to_version and o.at_s <= report.at_s]
    if not offers:
        return 0
    counts = [s.bytes_downloaded for s in journal.all(ModelStatus) if s.update_id == offers[-1].update_id]
    return max(counts, default=0)


def rollbacks(journal: Journal, server: CheckpointServer) -> list[Rollback]:
    """Every way back, on a verdict, a request, or an expired lease."""
    found = []
    for report in journal.all(SwapReport):
        if report.cause not in ("ROLLBACK", "LEASE_EXPIRED"):
            continue
        cause, begun_s = _verdict(journal, report)
        acted = [s for s in journal.all(SwapReport) if s.to_version == report.from_version and s.at_s < report.at_s]
        by_person = cause == OPERATOR
        found.append(
            Rollback(
                report.from_version,
                report.to_version,
                cause,
                report.warm,
                None if by_person or not acted else begun_s - acted[-1].at_s,
                report.at_s - begun_s,
                server.served_bytes(since_s=begun_s, until_s=_over_s(journal, report)),
                sum(report.tick_histogram),
                report.missed_ticks,
                report.starved_ticks,
            )
        )
    return found


def _verdict(journal: Journal, report: SwapReport) -> tuple[str, float]:
    """Why and when it was decided to go back."""
    replies = [r for r in journal.all(RollbackReply) if r.at_s <= report.at_s and r.to_version == report.to_version]
    events = [e for e in journal.all(ModelEvent) if e.to_state == "ROLLING_BACK" and e.at_s <= report.at_s]
    if events and (not replies or events[-1].error_code):
        return events[-1].error_code or report.cause, events[-1].at_s
    return (OPERATOR, replies[-1].at_s) if replies else (report.cause, report.at_s)


def _over_s(journal: Journal, report: SwapReport) -> float:
    """When the manager said that it is over; the swap itself if it never did."""
    ends = [e.at_s for e in journal.all(ModelEvent) if e.to_state == "ROLLED_BACK" and e.at_s >= report.at_s]
    return ends[0] if ends else report.at_s


@dataclass(frozen=True)
class Ticks:
    """Ticks and how many of them were missed."""

    ticks: int
    missed: int

    @property
    def rate(self) -> float:
        """Share of missed ticks."""
        return self.missed / self.ticks if self.ticks else 0.0


def ticks_outside(journal: Journal) -> Ticks:
    """Ticks in which nothing was being swapped or recovered: what the machine itself does to the loop."""
    last = journal.last(PolicyStatus)
    reports = journal.all(SwapReport)
    if last is None:
        return Ticks(0, 0)
    inside = sum(sum(report.tick_histogram) for report in reports)
    missed = sum(report.missed_ticks for report in reports)
    return Ticks(max(0, last.ticks - inside), max(0, last.missed_ticks - missed))


def holds(journal: Journal) -> list[Hold]:
    """Holds after the robot first moved, by the stamps of the statuses; what a status does not show is no hold."""
    found: list[Hold] = []
    begun: PolicyStatus | None = None
    moved = False
    for status in journal.all(PolicyStatus):
        if status.holding and moved and begun is None:
            begun = status
        elif status.running:
            if begun is not None:
                duration_s = status.at_s - begun.at_s
                found.append(Hold(begun.at_s, begun.hold_reason, duration_s, status.active_version))
            moved, begun = True, None
    if begun is not None:
        found.append(Hold(begun.at_s, begun.hold_reason, None, ""))
    return found


def rejected(journal: Journal) -> list[ModelEvent]:
    """Every version that was refused."""
    return [event for event in journal.all(ModelEvent) if event.to_state == "REJECTED"]


def success_rates(journal: Journal) -> list[Rate]:
    """Episodes by version, in the order in which the versions acted."""
    rates: dict[str, Rate] = {}
    for outcome in journal.all(EpisodeOutcome):
        if outcome.known and not outcome.mixed and outcome.version:
            before = rates.get(outcome.version, Rate(outcome.version, 0, 0))
            success = outcome.success and not outcome.intervention
            rates[outcome.version] = Rate(outcome.version, before.episodes + 1, before.successes + success)
    return list(rates.values())


def make_report(journal: Journal, server: CheckpointServer) -> dict[str, Any]:
    """Everything as ``report.json`` has it; durations [s], jumps and steps [rad]."""
    last = journal.last(PolicyStatus)
    model = journal.last(ModelStatus)
    return {
        "control_rate_hz": last.control_rate_hz if last else 0.0,
        "ticks": last.ticks if last else 0,
        "missed_ticks": last.missed_ticks if last else 0,
        "starved_ticks": last.starved_ticks if last else 0,
        "worst_late_ms": last.worst_late_ms if last else 0.0,
        "missed_ticks_outside_swaps": ticks_outside(journal).missed,
        "commands": journal.commands,
        "swaps": [_short(asdict(swap)) for swap in swaps(journal)],
        "rollbacks": [_short(asdict(rollback)) for rollback in rollbacks(journal, server)],
        "rejected": [
            {"version": e.version, "error_code": e.error_code, "message": e.message} for e in rejected(journal)
        ],
        "holds": [
            {"cause": h.cause, "duration_s": h.duration_s, "recovered_version": h.recovered_version}
            for h in holds(journal)
        ],
        "final_version": last.active_version if last else "",
        "committed_version": model.committed_version if model else "",
        "success_rates": [asdict(rate) for rate in success_rates(journal)],
        "bytes_served": server.served_bytes(),
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    row = {"from": row.pop("from_version"), "to": row.pop("to_version"), **row}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
