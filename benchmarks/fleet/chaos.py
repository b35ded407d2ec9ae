# SPDX-License-Identifier: Apache-2.0
"""Lines are cut and a server is killed while orders and outcomes flow; then both ends are counted."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.fleet.server import LoadHost, Measured, Progress

SHARE = 0.1
_LIMIT_S = 300.0
_COUNTS = {
    "outcomes": "SELECT count(*) FROM outcomes",
    "events": "SELECT count(*) FROM events",
    "orders": "SELECT count(*) FROM commands",
    "orders_done": "SELECT count(*) FROM commands WHERE state = 'DONE'",
}
Count = Callable[[str], int]


class LostOrDoubledError(RuntimeError):
    """The robots and the server do not count the same."""


def chaos(
    measured: Measured, rounds: int, every_s: float, rate: float, kill: Callable[[], None], count: Count, tell: Progress
) -> dict[str, float]:
    """Cut a tenth of the lines each round, between orders to all; kill a server in the middle. Return what was counted.

    Args:
        measured: servers with robots.
        rounds: how often lines are cut.
        every_s: time between [s].
        rate: outcomes a second meanwhile [1/s].
        kill: kills a server with SIGKILL; when it returns, the one that takes orders runs.
        count: answers a SQL query with one number, from the database itself.
        tell: gets a line for each step.

    Raises:
        LostOrDoubledError: something was lost, or happened twice.
    """
    load = measured.load
    episodes = load.begin("play", rate=rate, seconds=rounds * every_s)
    begun_s, dropped = time.monotonic(), 0
    for number in range(rounds):
        measured.order_all(back=number % 2 == 1)
        dropped += load.ask("drop", share=SHARE)["dropped"]
        tell(f"chaos: an order to all, {dropped} lines cut so far")
        if number == rounds // 2:
            kill()
            tell("chaos: a server was killed with SIGKILL")
        time.sleep(max(0.0, begun_s + (number + 1) * every_s - time.monotonic()))
    load.end(episodes)
    back_s = _settle(load, lambda: count(_COUNTS["orders"]) - count(_COUNTS["orders_done"]))
    robots, server = load.ask("counts"), {name: count(query) for name, query in _COUNTS.items()}
    said = f"outcomes {server['outcomes']} of {robots['outcomes']}, events {server['events']} of {robots['events']}, "
    said += f"orders {server['orders_done']} done of {server['orders']}, {robots['orders']} carried out once each"
    tell(f"chaos: {said}; {robots['came_again']} came again and were not carried out again")
    ends = {(server["outcomes"], robots["outcomes"]), (server["events"], robots["events"])}
    ends |= {(server["orders"], robots[name]) for name in ("orders", "distinct_orders", "carried_out")}
    ends |= {(server["orders"], server["orders_done"])}
    if any(here != there for here, there in ends):
        raise LostOrDoubledError(said)
    return {"dropped": dropped, "again": robots["came_again"], "back_s": back_s, **server}


def _settle(load: LoadHost, unfinished: Callable[[], int]) -> float:
    """Wait until all robots are connected, have nothing left to tell, and no order is open; return how long that took [s]."""
    begun_s = time.monotonic()
    while load.ask("settle")["unsent"] or unfinished():
        if time.monotonic() - begun_s > _LIMIT_S:
            raise LostOrDoubledError(f"{unfinished()} orders have not ended after {_LIMIT_S:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - begun_s
