# SPDX-License-Identifier: Apache-2.0
"""What is known of the robots that a rollout or an experiment moves, and the orders that it gave them.

Read at every step, also for ten thousand robots: columns, not rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.steering.reconcile import Given, Robot
from vla_fleet.storage.tables import CommandRow, RobotRow, VersionRow

Online = Callable[[float], bool]
"""Whether a robot that was seen then is connected."""
ManifestUrl = Callable[[str, str], str]
"""Of a version's manifest, by name and version."""
_EXPIRED_S = 1.0
"""Long ago: an order that a robot has not begun it refuses."""


async def read_robots(session: AsyncSession, holder: str, names: Select[Any], online: Online) -> dict[str, Robot]:
    """Return robots by name, with the orders that ``holder`` gave them."""
    given: dict[str, list[Given]] = {}
    columns = (
        CommandRow.robot, CommandRow.order, CommandRow.created_s, CommandRow.updated_s, CommandRow.robot_time_s,
        CommandRow.state, CommandRow.robot_state, CommandRow.error_code,
    )  # fmt: skip
    own = select(*columns).where(CommandRow.created_by == holder).order_by(CommandRow.number)
    for robot, order, *more in await session.execute(own):
        given.setdefault(robot, []).append(Given(protocol.ORDER.validate_python(order), *more))
    others = select(CommandRow.robot).where(
        CommandRow.final.is_(False), CommandRow.created_by != holder, CommandRow.robot.in_(names)
    )
    busy = set(await session.scalars(others))
    rows = select(RobotRow.name, RobotRow.last_seen_s, RobotRow.status).where(RobotRow.name.in_(names))
    return {
        name: robot_of(name, status, online=online(seen_s), busy=name in busy, given=tuple(given.get(name, ())))
        for name, seen_s, status in await session.execute(rows)
    }


def robot_of(name: str, status: dict[str, Any], **more: Any) -> Robot:
    """Return a robot as its newest status describes it."""
    return Robot(
        name, managed=bool(status.get("state")), blocked=frozenset(status.get("blocked", ())),
        committed=status.get("committed_version", ""), digest=status.get("committed_digest", ""),
        adapted=status.get("adapted_digest", ""),
        trying=bool(status.get("trial_version")) or status.get("active_digest") != status.get("committed_digest"),
        experiment=status.get("experiment", ""), status_s=status.get("time_s", 0.0), **more,
    )  # fmt: skip


async def expire(session: AsyncSession, holder: str) -> None:
    """Let robots refuse orders that they have not begun."""
    unfinished = CommandRow.created_by == holder, CommandRow.final.is_(False)
    await session.execute(update(CommandRow).where(*unfinished).values(expires_s=_EXPIRED_S))


async def updates(
    session: AsyncSession, model: str, versions: Iterable[str], url: ManifestUrl
) -> dict[str, protocol.ModelUpdate]:
    """Return the orders that install versions of a model, retired ones too: robots go back to them. Unknown ones are left out."""
    query = select(VersionRow.version, VersionRow.digest).where(
        VersionRow.name == model, VersionRow.version.in_(versions)
    )
    return {
        version: protocol.ModelUpdate(
            name=model, version=version, manifest_url=url(model, version), manifest_sha256=digest, allow_older=True
        )
        for version, digest in await session.execute(query)
    }
