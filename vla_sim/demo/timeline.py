# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: one line an event as it happens, and tables at the end. Plain lines, no colours, no spinner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from vla_sim.demo.journal import (
    Journal,
    Killed,
    ModelEvent,
    ModelStatus,
    Offer,
    PolicyStatus,
    Record,
    RollbackReply,
    SwapReport,
)
from vla_sim.demo.report import (
    OPERATOR,
    SENSOR_HOLD,
    Hold,
    Rollback,
    Swap,
    holds,
    rejected,
    rollbacks,
    success_rates,
    swaps,
)
from vla_sim.demo.server import CheckpointServer

_WIDTH = 120
_NOTHING_YET = "nothing heard yet"


class Timeline:
    """Prints records as they come. ``out`` takes a line; may be called from several threads."""

    def __init__(self, out: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._begun_s = time.time()
        self._held_s: float | None = None
        self._moved = False
        self._deaf_to = ""  # state of a manager that has just started: its first events reach nobody

    def chapter(self, number: int, title: str) -> None:
        """Print a heading."""
        with self._lock:
            self._out(f"\n--- {number}. {title}")

    def say(self, who: str, what: str, at_s: float | None = None) -> None:
        """Print a line; ``at_s`` seconds since 1970, default now."""
        elapsed_s = (time.time() if at_s is None else at_s) - self._begun_s
        line = f"{elapsed_s:7.1f} s  {who:8} {' '.join(what.split())}"
        with self._lock:
            self._out(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…")

    def record(self, record: Record) -> None:
        """Print a record, if it is one that a reader wants to see."""
        if isinstance(record, ModelEvent):
            code = f"{record.error_code}: " if record.error_code else ""
            arrow = f"{record.from_state} -> {record.to_state}"
            self._deaf_to = ""
            self.say("manager", f"{record.version or '-':6} {arrow:24} {code}{record.message}", record.at_s)
        elif isinstance(record, ModelStatus):
            self._manager(record)
        elif isinstance(record, SwapReport):
            self.say("policy", _swap_line(record))
        elif isinstance(record, PolicyStatus):
            self._policy(record)
        elif isinstance(record, Offer):
            self.say("server", f"{record.version:6} is offered", record.at_s)
        elif isinstance(record, RollbackReply):
            what = f"{record.from_version} -> {record.to_version}" if record.success else record.error_code
            self.say("operator", f"rollback with an empty request: {what} ({record.message})")
        elif isinstance(record, Killed):
            self.say("demo", f"SIGKILL to the {record.what}", record.at_s)
            self._deaf_to = _NOTHING_YET if record.what == "ota_manager" else self._deaf_to

    def _manager(self, status: ModelStatus) -> None:
        if self._deaf_to and status.state_name != self._deaf_to:
            self._deaf_to = status.state_name
            self.say("manager", f"is in {status.state_name}: {status.message}", status.at_s)

    def _policy(self, status: PolicyStatus) -> None:
        if status.holding and status.hold_reason != SENSOR_HOLD and self._moved and self._held_s is None:
            self._held_s = status.at_s
            self.say("policy", f"holds: {status.hold_reason}", status.at_s)
        elif status.running:
            if not self._moved:
                self.say(
                    "policy", f"{status.active_version:6} moves the arm at {status.control_rate_hz:g} Hz", status.at_s
                )
            elif self._held_s is not None:
                held_s = status.at_s - self._held_s
                self.say("policy", f"{status.active_version:6} goes on after a hold of {held_s:.2f} s", status.at_s)
            self._moved, self._held_s = True, None


def _swap_line(report: SwapReport) -> str:
    way = "warm" if report.warm else "loaded"
    return (
        f"{report.to_version:6} acts instead of {report.from_version or 'nothing'} ({report.cause}, {way}), "
        f"{report.swap_latency_s * 1e3:.0f} ms after the request; "
        f"{report.missed_ticks} ticks missed, {report.starved_ticks} starved"
    )


def tables(journal: Journal, server: CheckpointServer) -> list[str]:
    """Return the tables of swaps, rollbacks, refusals, holds and success rates as lines."""
    lines = ["Swaps"]
    lines += _table(
        ["from", "to", "MB", "load s", "warm-up s", "swap ms", "missed", "starved", "seam", "typical step"],
        [_swap_row(swap) for swap in swaps(journal)],
    )
    lines += ["", "Rollbacks"]
    lines += _table(
        ["from", "to", "cause", "warm", "detected after s", "took s", "bytes"],
        [_rollback_row(rollback) for rollback in rollbacks(journal, server)],
    )
    lines += ["", "Rejected"]
    lines += _table(
        ["version", "code", "reason"], [[e.version, e.error_code, e.message[:80]] for e in rejected(journal)]
    )
    lines += ["", "Holds"]
    lines += _table(
        ["cause", "times", "longest s"],
        _hold_rows(holds(journal)),
    )
    lines += ["", "Episodes"]
    lines += _table(
        ["version", "episodes", "succeeded"],
        [
            [rate.version, str(rate.episodes), f"{rate.successes} ({rate.successes / rate.episodes:.0%})"]
            for rate in success_rates(journal)
        ],
    )
    return lines


def _swap_row(swap: Swap) -> list[str]:
    return [
        swap.from_version or "-",
        swap.to_version,
        f"{swap.bytes_downloaded / 1e6:.2f}",
        f"{swap.load_s:.2f}",
        f"{swap.warm_up_s:.2f}",
        f"{swap.swap_latency_s * 1e3:.0f}",
        str(swap.missed_ticks),
        str(swap.starved_ticks),
        f"{swap.seam_jump:.4f} rad",
        f"{swap.typical_step:.4f} rad",
    ]


def _rollback_row(rollback: Rollback) -> list[str]:
    detected = "a person's" if rollback.cause == OPERATOR else "-"
    return [
        rollback.from_version,
        rollback.to_version,
        rollback.cause,
        "yes" if rollback.warm else "no",
        detected if rollback.detect_s is None else f"{rollback.detect_s:.1f}",
        f"{rollback.duration_s:.2f}",
        str(rollback.bytes_downloaded),
    ]


def _hold_rows(found: Sequence[Hold]) -> list[list[str]]:
    rows = []
    for cause in dict.fromkeys(hold.cause for hold in found):
        durations = [hold.duration_s for hold in found if hold.cause == cause]
        ended = [duration for duration in durations if duration is not None]
        longest = f"{max(ended):.2f}" if len(ended) == len(durations) else "no end"
        rows.append([cause, str(len(durations)), longest])
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["  none"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
