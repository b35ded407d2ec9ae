# SPDX-License-Identifier: Apache-2.0
"""What came of it: ``report.json``, and tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_sim.fleet.demo.loops import Loop
from vla_sim.fleet.demo.stage import FleetStage


def make_report(stage: FleetStage, loops: Sequence[Loop], fifo: int) -> dict[str, Any]:
    """Return the report; times [s] since the demonstration began."""
    began_s = stage.watch.began_s
    moments = [{**asdict(moment), "at_s": round(moment.at_s - began_s, 2)} for moment in stage.watch.moments]
    marks, chapters = (
        [{"at_s": round(mark.at_s - began_s, 2), "what": mark.text} for mark in marks]
        for marks in (stage.watch.marks, stage.watch.chapters)
    )
    return {
        "clock_rate": stage.clock.rate,
        "problems": stage.problems,
        **stage.facts,
        "loops": [asdict(loop) for loop in loops],
        "witness_fifo_priority": fifo,
        "episodes": {name: robot.played for name, robot in stage.simulated.items()},
        "chapters": chapters,
        "marks": marks,
        "robots": moments,
    }


def print_loops(console: Console, loops: Sequence[Loop]) -> None:
    """Print the table of the control loops."""
    table = Table(title="The real robots' control loops", title_justify="left", box=None, header_style="bold")
    for column in ("robot", "ticks", "missed", "machine's", "starved", "holds", "worst late"):
        table.add_column(column)
    for loop in loops:
        held = ", ".join(f"{cause} {count}×" for cause, count in loop.holds.items()) or "none"
        numbers = (str(n) for n in (loop.ticks, loop.missed, loop.machines, loop.starved))
        table.add_row(loop.robot, *numbers, held, f"{loop.worst_late_ms:.1f} ms")
    console.print(table)
    console.print("machine's: missed while a witness, a process that only sleeps, was late too", style="dim")
