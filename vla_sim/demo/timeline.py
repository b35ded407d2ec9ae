# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: one line an event as it happens, and tables at the end. Plain lines, no colours, no spinner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vla_ota.msg import ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_sim.demo.expectations import SENSOR_HOLD
from vla_sim.demo.journal import Killed, RollbackReply, at_s
from vla_sim.demo.report import OPERATOR, Row

_WIDTH = 120
_NOTHING_YET = "nothing heard yet"


class Timeline:
    """Prints records as they come. ``out`` takes a line; may be called from several threads."""

    def __init__(self, out: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
        self._out = out
        self.ticks_of: Callable[[SwapReport], Row]
        """Says whose missed ticks are (``Evidence.ticks_of``)."""
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

    def record(self, record: Any) -> None:
        """Print a record, if it is one that a reader wants to see."""
        if isinstance(record, ModelEvent):
            code = f"{record.error_code}: " if record.error_code else ""
            arrow = f"{record.from_state} -> {record.to_state}"
            self._deaf_to = ""
            self.say("manager", f"{record.version or '-':6} {arrow:24} {code}{record.message}", at_s(record))
        elif isinstance(record, ModelStatus):
            self._manager(record)
        elif isinstance(record, SwapReport):
            self.say("policy", self._swap_line(record))
        elif isinstance(record, PolicyStatus):
            self._policy(record)
        elif isinstance(record, ModelUpdate):
            self.say("server", f"{record.version:6} is offered", at_s(record))
        elif isinstance(record, RollbackReply):
            reply = record.reply
            what = f"{reply.from_version} -> {reply.to_version}" if reply.success else reply.error_code
            self.say("operator", f"rollback with an empty request: {what} ({reply.message})")
        elif isinstance(record, Killed):
            self.say("demo", f"SIGKILL to the {record.what}", record.at_s)
            self._deaf_to = _NOTHING_YET if record.what == "ota_manager" else self._deaf_to

    def _manager(self, status: ModelStatus) -> None:
        if self._deaf_to and status.state_name != self._deaf_to:
            self._deaf_to = status.state_name
            self.say("manager", f"is in {status.state_name}: {status.message}", at_s(status))

    def _policy(self, status: PolicyStatus) -> None:
        now_s, version = at_s(status), status.active_version
        if status.state == PolicyStatus.STATE_HOLDING and self._moved and self._held_s is None:
            if status.hold_reason != SENSOR_HOLD:
                self._held_s = now_s
                self.say("policy", f"holds: {status.hold_reason}", now_s)
        elif status.state == PolicyStatus.STATE_RUNNING:
            if not self._moved:
                self.say("policy", f"{version:6} moves the arm at {status.control_rate_hz:g} Hz", now_s)
            elif self._held_s is not None:
                self.say("policy", f"{version:6} goes on after a hold of {now_s - self._held_s:.2f} s", now_s)
            self._moved, self._held_s = True, None

    def _swap_line(self, report: SwapReport) -> str:
        way = "warm" if report.warm else "loaded"
        ticks = self.ticks_of(report)
        stalls = f", {ticks['machines_ticks']} more by the machine" if ticks["machines_ticks"] else ""
        return (
            f"{report.to_version:6} acts instead of {report.from_version or 'nothing'} ({report.cause}, {way}), "
            f"{report.swap_latency_s * 1e3:.0f} ms after the request; "
            f"{ticks['missed_ticks']} ticks missed{stalls}, {report.starved_ticks} starved"
        )


def tables(report: Row) -> list[str]:
    """Return the tables of swaps, rollbacks, refusals, holds, episodes and ticks as lines."""
    spread = {
        "Swaps": (
            [
                "from",
                "to",
                "MB",
                "load s",
                "warm-up s",
                "swap ms",
                "missed",
                "machine's",
                "starved",
                "seam",
                "typical step",
            ],
            [_swap_row(row) for row in report["swaps"]],
        ),
        "Rollbacks": (
            ["from", "to", "cause", "warm", "detected after s", "took s", "bytes", "missed", "machine's", "starved"],
            [_rollback_row(row) for row in report["rollbacks"]],
        ),
        "Rejected": (
            ["version", "code", "reason"],
            [[row["version"], row["error_code"], row["message"][:80]] for row in report["rejected"]],
        ),
        "Holds": (["cause", "times", "longest s"], _hold_rows(report["holds"])),
        "Episodes": (
            ["version", "episodes", "succeeded"],
            [
                [row["version"], str(row["episodes"]), f"{row['successes']} ({row['successes'] / row['episodes']:.0%})"]
                for row in report["success_rates"]
            ],
        ),
        "Ticks of the control loop": (
            ["ticks", "missed", "machine's", "starved", "worst late ms", "witness's worst ms"],
            [
                [
                    *(str(report[name]) for name in ("ticks", "missed_ticks", "machines_ticks", "starved_ticks")),
                    *(f"{report[name]:.1f}" for name in ("worst_late_ms", "witness_worst_late_ms")),
                ]
            ],
        ),
    }
    lines = [line for title, (head, rows) in spread.items() for line in (title, *_table(head, rows), "")]
    fifo = (
        "SCHED_FIFO as the loop's"
        if report["witness_fifo_priority"]
        else "no SCHED_FIFO here, so our own load counts too"
    )
    return [*lines, f"machine's: missed while a witness process that only sleeps was late too ({fifo})"]


def _swap_row(row: Row) -> list[str]:
    return [
        row["from"] or "-",
        row["to"],
        f"{row['bytes_downloaded'] / 1e6:.2f}",
        f"{row['load_s']:.2f}",
        f"{row['warm_up_s']:.2f}",
        f"{row['swap_latency_s'] * 1e3:.0f}",
        *_ticks(row),
        f"{row['seam_jump']:.4f} rad",
        f"{row['typical_step']:.4f} rad",
    ]


def _rollback_row(row: Row) -> list[str]:
    detected = "a person's" if row["cause"] == OPERATOR else "-"
    return [
        row["from"],
        row["to"],
        row["cause"],
        "yes" if row["warm"] else "no",
        detected if row["detect_s"] is None else f"{row['detect_s']:.1f}",
        f"{row['duration_s']:.2f}",
        str(row["bytes_downloaded"]),
        *_ticks(row),
    ]


def _ticks(row: Row) -> list[str]:
    return [str(row[name]) for name in ("missed_ticks", "machines_ticks", "starved_ticks")]


def _hold_rows(holds: Sequence[Row]) -> list[list[str]]:
    rows = []
    for cause in dict.fromkeys(hold["cause"] for hold in holds):
        durations = [hold["duration_s"] for hold in holds if hold["cause"] == cause]
        longest = "no end" if None in durations else f"{max(durations):.2f}"
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
