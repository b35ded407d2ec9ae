# SPDX-License-Identifier: Apache-2.0
"""One experiment or rollout at a time decides which version a robot runs. The table's primary key holds it for experiments."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.errors import ConflictError
from vla_fleet.storage.tables import ClaimRow, RolloutRobotRow, RolloutRow


async def claim(session: AsyncSession, robots: Sequence[str], holder: str) -> None:
    """Claim robots for an experiment, all or none of them.

    Raises:
        ConflictError: ROBOT_TAKEN.
    """
    in_rollouts = select(RolloutRobotRow.robot, RolloutRow.id).join(RolloutRow).where(RolloutRow.active.is_not(None))
    for robot, rollout in await session.execute(in_rollouts):
        if robot in robots:
            raise ConflictError("ROBOT_TAKEN", f"{robot} takes part in rollout {rollout}; end that first")
    for robot, other in await claimed(session):
        if robot in robots:
            raise ConflictError("ROBOT_TAKEN", f"{robot} takes part in {other}; end that first")
    session.add_all(ClaimRow(robot=robot, holder=holder) for robot in robots)
    try:
        await session.flush()
    except IntegrityError as e:  # somebody else was faster
        raise ConflictError("ROBOT_TAKEN", "a robot was claimed at the same moment; look and try again") from e


async def claimed(session: AsyncSession) -> list[tuple[str, str]]:
    """Return the robots that take part in experiments, and in which."""
    return [(row.robot, row.holder) for row in await session.scalars(select(ClaimRow).order_by(ClaimRow.robot))]


async def release(session: AsyncSession, robot: str, holder: str) -> None:
    """Let go of a robot."""
    await session.execute(delete(ClaimRow).where(ClaimRow.robot == robot, ClaimRow.holder == holder))
