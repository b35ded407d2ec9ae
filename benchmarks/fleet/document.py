# SPDX-License-Identifier: Apache-2.0
"""The figures and curves of a run, into ``docs/fleet.md`` between its two markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fleet.picture import draw
from benchmarks.machine import sentence
from benchmarks.results import Row, Table, spread

BEGIN, END = "<!-- bench-fleet: begin -->", "<!-- bench-fleet: end -->"
OURS, ECHO = "vla-fleet serve", "plain echo"
_PICTURE = "pictures/fleet_curves.png"
_REPLICAS_BELOW_CORE = 0.5


def write(tables: Sequence[Table], machine: dict[str, Any], docs: Path) -> None:
    """Replace what is between the markers of ``docs/fleet.md``, and draw ``docs/pictures/fleet_curves.png``."""
    page = docs / "fleet.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    line = tables[0]
    shown = [" ".join(sentence(machine).split("\n")) + ".", f"![What a fleet costs against its size]({_PICTURE})"]
    shown += [_goals(line), *(_markdown(table) for table in tables), _million(line)]
    page.write_text("\n\n".join([before + BEGIN, *shown, END + after]))
    draw(line.to_json(), docs / _PICTURE)
    print(f"{page} and {docs / _PICTURE} have the figures of this run")


def _markdown(table: Table) -> str:
    heads = ["", "robots", *(head for _, head, _ in table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in table.rows:
        cells = [row.way, row.condition, *(spread(row.values.get(name, []), style) for name, _, style in table.columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return f"{table.title}:\n\n" + "\n".join(lines)


def _largest(line: Table, way: str) -> Row:
    return max((row for row in line.rows if row.way == way), key=lambda row: int(row.condition))


def _goals(line: Table) -> str:
    ours, floor = (dict((k, v[-1]) for k, v in _largest(line, way).values.items()) for way in (OURS, ECHO))
    goals: list[tuple[str, float, str, Callable[[float, float], bool]]] = [
        ("memory of a robot above the plain echo's, at most 15 kB", ours["kb"] - floor["kb"], "15 kB", float.__le__),
        ("an update of all: the last end is stored within 15 s", ours["update_s"], "15 s", float.__le__),
        ("a rollback of all: within 30 s", ours["rollback_s"], "30 s", float.__le__),
        ("outcomes stored, at least 2,000 a second", ours["outcomes_per_s"], "2000 /s", float.__ge__),
        ("GET robot under that load, p99 at most 50 ms", ours["robot_p99_ms"], "50 ms", float.__le__),
    ]
    lines = [f"| goal, with {_largest(line, OURS).condition} robots on one server | measured | |", "|---|--:|---|"]
    for text, found, bound, holds in goals:
        limit, unit = bound.split(" ") if " " in bound else (bound, "")
        lines.append(f"| {text} | {found:.1f} {unit} | {'held' if holds(found, float(limit)) else 'missed'} |")
    return "\n".join(lines)


def _million(line: Table) -> str:
    row = _largest(line, OURS)
    robots, factor = int(row.condition), 1e6 / int(row.condition)
    rest, order_ms, kb = (row.values[name][-1] for name in ("cpu", "update_cpu_ms", "kb"))
    cores = rest / 100 * factor
    replicas, fewer = (max(1, round(cores / slower / _REPLICAS_BELOW_CORE)) for slower in (1, 6))
    return (
        f"**A million robots**, reckoned from the row of {robots}: {rest:.0f} % of a core at rest, times {factor:.0f}, is "
        f"{cores:.0f} cores at a heartbeat of 10 s and {cores / 6:.1f} at 60 s: {replicas} or {fewer} replicas at half a core "
        f"each, and {kb:.0f} GB of memory in all. {order_ms:.2f} ms of processor for an order to one robot is "
        f"{order_ms * 1e3:.0f} s for all, {order_ms * 1e3 / replicas:.0f} or {order_ms * 1e3 / fewer:.0f} s on each replica. "
        "Statuses are 100,000 writes a second, or 16,700: nobody has measured a million, and the one database is what to "
        "measure first."
    )
