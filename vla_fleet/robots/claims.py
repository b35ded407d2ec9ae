# SPDX-License-Identifier: Apache-2.0
"""One experiment or rollout at a time decides which version of a model a robot runs. The table's primary key holds it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.errors import ConflictError
from vla_fleet.storage.tables import ClaimRow, RolloutRobotRow, RolloutRow


async def claim(session: AsyncSession, model: str, robots: Sequence[str], holder: str) -> None:
    """Claim robots for a holder, all or none of them.

    Raises:
        ConflictError: ROBOT_TAKEN.
    """
    await _refuse_in_rollout(session, model, robots)
    query = select(ClaimRow).where(ClaimRow.model == model, ClaimRow.robot.in_(robots)).order_by(ClaimRow.robot)
    taken = await session.scalar(query.limit(1))
    if taken is not None:
        raise ConflictError("ROBOT_TAKEN", f"{taken.robot} takes part in {taken.holder}; end that first")
    session.add_all(ClaimRow(robot=robot, model=model, holder=holder) for robot in robots)
    try:
        await session.flush()
    except IntegrityError as e:  # somebody else was faster
        raise ConflictError("ROBOT_TAKEN", "a robot was claimed at the same moment; look and try again") from e


async def release(session: AsyncSession, robot: str, holder: str) -> None:
    """Let go of a robot."""
    await session.execute(delete(ClaimRow).where(ClaimRow.robot == robot, ClaimRow.holder == holder))


async def _refuse_in_rollout(session: AsyncSession, model: str, robots: Sequence[str]) -> None:
    query = select(RolloutRobotRow.robot, RolloutRow.id).join(RolloutRow, RolloutRow.id == RolloutRobotRow.rollout)
    active = RolloutRow.active.is_not(None), RolloutRow.name == model, RolloutRobotRow.robot.in_(robots)
    taken = (await session.execute(query.where(*active).limit(1))).first()
    if taken is not None:
        raise ConflictError("ROBOT_TAKEN", f"{taken.robot} takes part in rollout {taken.id}; end that first")
