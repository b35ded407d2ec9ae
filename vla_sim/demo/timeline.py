# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: one line an event as it happens, and tables at the end. Plain lines, no colours, no spinner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vla_ota.msg import ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_sim.demo.expectations import SENSOR_HOLD
from vla_sim.demo.journal import Killed, RollbackReply, at_s
from vla_sim.demo.report import Row

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


_TICKS = {"missed": "{missed_ticks}", "machine's": "{machines_ticks}", "starved": "{starved_ticks}"}
_TABLES = {  # title: (key of the report, heading: format of a row)
    "Swaps": (
        "swaps",
        {"from": "{from}", "to": "{to}", "MB": "{mb:.2f}", "load s": "{load_s:.2f}", "warm-up s": "{warm_up_s:.2f}"}
        | {"swap s": "{swap_latency_s:.2f}", **_TICKS}
        | {"seam": "{seam_jump:.4f} rad", "typical step": "{typical_step:.4f} rad"},
    ),
    "Rollbacks": (
        "rollbacks",
        {"from": "{from}", "to": "{to}", "cause": "{cause}", "warm": "{warm}", "detected after": "{detected}"}
        | {"took s": "{duration_s:.2f}", "bytes": "{bytes_downloaded}", **_TICKS},
    ),
    "Rejected": ("rejected", {"version": "{version}", "code": "{error_code}", "reason": "{message:.80}"}),
    "Holds": ("holds", {"cause": "{cause}", "lasted": "{lasted}"}),
    "Episodes": ("success_rates", {"version": "{version}", "episodes": "{episodes}", "succeeded": "{successes}"}),
}


def tables(report: Row) -> list[str]:
    """Return the tables of swaps, rollbacks, refusals, holds, episodes and ticks as lines."""
    lines = []
    for title, (key, columns) in _TABLES.items():
        lines += [title, *_table(columns, [_readable(row) for row in report[key]]), ""]
    whole = {"ticks": "{ticks}", **_TICKS, "worst late": "{worst_late_ms:.1f} ms"}
    lines += ["The control loop", *_table({**whole, "witness's worst": "{witness_worst_late_ms:.1f} ms"}, [report]), ""]
    fifo = (
        "SCHED_FIFO, above the loop"
        if report["witness_fifo_priority"]
        else "no SCHED_FIFO here: our own load counts too"
    )
    return [*lines, f"machine's: missed while a witness, a process that only sleeps, was late too ({fifo})"]


def _readable(row: Row) -> Row:
    return {
        **row,
        "from": row.get("from") or "-",
        "warm": "yes" if row.get("warm") else "no",
        "mb": row.get("bytes_downloaded", 0) / 1e6,
        "detected": "a person decided" if row.get("detect_s") is None else f"{row['detect_s']:.1f} s",
        "lasted": "no end" if row.get("duration_s") is None else f"{row['duration_s']:.2f} s",
    }


def _table(columns: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["  none"]
    lines = [list(columns), *([form.format_map(row) for form in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
