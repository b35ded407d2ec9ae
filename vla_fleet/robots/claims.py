# SPDX-License-Identifier: Apache-2.0
"""One experiment or rollout at a time decides which version a robot runs. The table's primary key holds it, on any server."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.errors import ConflictError
from vla_fleet.storage.tables import ClaimRow


async def claim(session: AsyncSession, robots: Iterable[str], holder: str) -> None:
    """Claim robots for a rollout or an experiment, all or none of them.

    Raises:
        ConflictError: ROBOT_TAKEN.
    """
    wanted, holders = sorted(robots), await claimed(session)
    for robot in wanted:
        if robot in holders:
            raise ConflictError("ROBOT_TAKEN", f"{robot} takes part in {holders[robot]}; end that first")
    session.add_all(ClaimRow(robot=robot, holder=holder) for robot in wanted)
    try:
        await session.flush()
    except IntegrityError as e:  # somebody else was faster
        raise ConflictError("ROBOT_TAKEN", "a robot was claimed at the same moment; look and try again") from e


async def claimed(session: AsyncSession) -> dict[str, str]:
    """Return who holds which robots."""
    rows = await session.execute(select(ClaimRow.robot, ClaimRow.holder))
    return {robot: holder for robot, holder in rows}


async def release(session: AsyncSession, holder: str, robot: str = "") -> None:
    """Let go of a robot, or of all that are held."""
    mine = delete(ClaimRow).where(ClaimRow.holder == holder)
    await session.execute(mine.where(ClaimRow.robot == robot) if robot else mine)
