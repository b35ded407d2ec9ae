# SPDX-License-Identifier: Apache-2.0
"""The loop behind rollouts and experiments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from vla_fleet.clock import Clock

log = structlog.get_logger("vla_fleet")

MOST_ORDERS = 500
"""Orders that one step gives: a transaction that takes long keeps robots' messages out of the database."""
_REST, _LONGEST_REST_S = 2.0, 60.0


async def run(
    step: Callable[[], Awaitable[None]],
    clock: Clock,
    every_s: float,
    leads: Callable[[], Awaitable[bool]],
) -> None:
    """Step until cancelled whenever this server ``leads``, also after a step that failed, for example for a locked database.

    After a step that took long, as one over a large fleet does, robots' lines have twice that time.
    """
    while True:
        begun_s = clock.now()
        try:
            if await leads():
                await step()
        except Exception:
            log.exception("a step failed; it is tried again")
        rest_s = _REST * (clock.now() - begun_s)
        await clock.sleep(max(every_s, min(rest_s, _LONGEST_REST_S)))


async def step_each(names: Iterable[str], step: Callable[[str], Awaitable[None]], turn: asyncio.Lock) -> None:
    """Step rollouts or experiments. One that fails does not keep the others from it."""
    for name in names:
        try:
            async with turn:
                await step(name)
        except Exception:
            log.exception("a step failed; it is tried again", subject=name)
