# SPDX-License-Identifier: Apache-2.0
"""The A/B test manager: what people ask of experiments, and the loop that carries them out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_evidence.log.records import header_line
from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError, InputError, MissingError
from vla_fleet.experiments.design import Design, Plan, Unit, arms, judge_for, plan_for
from vla_fleet.experiments.evidence import State
from vla_fleet.experiments.steps import Steps, holder, joining
from vla_fleet.registry.registry import Registry, Version
from vla_fleet.robots.claims import claim
from vla_fleet.robots.commands import Commands
from vla_fleet.robots.directory import Directory
from vla_fleet.rollouts.rollouts import RolloutInfo, Rollouts
from vla_fleet.rollouts.settings import RolloutRequest
from vla_fleet.steering import evidence, loop
from vla_fleet.steering.members import ManifestUrl, Online
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import ExperimentRobotRow, ExperimentRow, RobotRow

_LEAST_EPISODES = 20
"""Of A, for its success rate and the fleet's pace to be read from the outcomes."""


_Meant = tuple[Version, Version, list[RobotRow]]


class ABTestManager:
    """Plans, runs and ends A/B tests."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        directory: Directory,
        commands: Commands,
        rollouts: Rollouts,
        clock: Clock,
        url: ManifestUrl,
        online: Online,
    ) -> None:
        self._database, self._registry, self._directory, self._clock = database, registry, directory, clock
        self._rollouts, self._turn = rollouts, asyncio.Lock()
        self._steps = Steps(database, commands, clock, url, online)

    # -- before -------------------------------------------------------------------------------------------------------------

    async def plan(self, design: Design) -> Plan:
        """Say what an experiment would take, without beginning it; raises as :meth:`create`."""
        a, _, robots = await self._meant(design)
        rate, per_day = await self._pace(design, a.version, [robot.name for robot in robots])
        return await asyncio.to_thread(plan_for, design, len(robots), rate, per_day)

    async def create(self, design: Design, who: str) -> str:
        """Begin an experiment; return its id.

        Raises:
            FleetError: MODEL_NOT_FOUND, MODELS_DIFFER, VERSIONS_EQUAL, ROBOT_NOT_FOUND, NO_ROBOTS, EPISODE_ARMS_MISSING,
                ROBOTS_TOO_FEW, RATE_UNKNOWN, ROBOT_TAKEN, or the code of a figure that cannot be.
        """
        plan, (a, b, robots) = await self.plan(design), await self._meant(design)
        name, names = f"e-{secrets.token_hex(4)}", [robot.name for robot in robots]
        drawn = {robot: "AB"[v] for robot, v in arms(name, names).items()} if design.unit is Unit.ROBOT else {}
        row = ExperimentRow(
            id=name, model=a.name, a=a.version, b=b.version, design=design.model_dump(mode="json"),
            plan=plan.model_dump(), state=State.RUNNING.value, created_s=self._clock.now(), created_by=who, lines=0,
        )  # fmt: skip
        async with self._database.begin() as session:
            row.taken = await evidence.newest(session)
            session.add(row)
            evidence.append(session, row, header_line(*judge_for(design, plan, name, names)))
            await claim(session, names, holder(row))
            session.add_all(joining(row, robot, drawn.get(robot, ""), row.created_s) for robot in names)
            about = {"a": a.version, "b": b.version, "model": a.name, "unit": design.unit.value, "robots": names}
            self._database.log(session, who, "experiment.create", name, **about)
        return name

    async def _meant(self, design: Design) -> _Meant:
        a, b = await self._registry.find(design.a), await self._registry.find(design.b)
        if a.name != b.name:
            raise InputError("MODELS_DIFFER", f"{a.name} and {b.name} are different models; compare versions of one")
        if a.version == b.version:
            raise InputError("VERSIONS_EQUAL", f"both are {a.name} {a.version}")
        known = await self._directory.robots()
        if unknown := sorted(set(design.robots) - {robot.name for robot in known}):
            raise MissingError("ROBOT_NOT_FOUND", f"no robot {unknown[0]!r} has enrolled")
        chosen = [r for r in known if r.name in design.robots or design.invites(r.group, r.tags)]
        if not chosen:
            raise InputError("NO_ROBOTS", "name robots, or a group or a tag that has some")
        unable = [robot.name for robot in chosen if not robot.status.get("episode_arms")]
        if design.unit is Unit.EPISODE and unable:
            text = f"{unable[0]} does not report that it can run another version in each episode; draw by robot"
            raise ConflictError("EPISODE_ARMS_MISSING", text)
        return a, b, chosen

    async def _pace(self, design: Design, a: str, robots: Sequence[str]) -> tuple[float, float]:
        """Return A's success rate and the episodes of a robot a day: as the person says, or as these robots did lately."""
        if design.rate is not None and design.per_day is not None:
            return design.rate, design.per_day
        async with self._database.begin() as session:
            found = await evidence.history(session, dict.fromkeys(robots, a), self._clock.now())
        if found.episodes < _LEAST_EPISODES or found.per_hour is None:
            text = f"{found.episodes} known outcomes of {a} on these robots in two weeks are too few: give rate and per_day"
            raise InputError("RATE_UNKNOWN", text)
        rate = round((found.successes + 0.5) / (found.episodes + 1.0), 3)
        return design.rate or rate, design.per_day or 24.0 * found.per_hour

    # -- while it runs ------------------------------------------------------------------------------------------------------

    async def experiments(self) -> list[ExperimentRow]:
        """Return every experiment, newest first."""
        async with self._database.begin() as session:
            rows = await session.scalars(select(ExperimentRow).order_by(ExperimentRow.created_s.desc()))
            return list(rows.all())

    async def experiment(self, name: str) -> tuple[ExperimentRow, list[ExperimentRobotRow], dict[str, int]]:
        """Return one experiment, its robots, and how many outcomes had each fate."""
        async with self._database.begin() as session:
            row = await _get(session, name)
            query = select(ExperimentRobotRow).where(ExperimentRobotRow.experiment == name)
            robots = list((await session.scalars(query.order_by(ExperimentRobotRow.robot))).all())
            return row, robots, await evidence.counts(session, name)

    async def course(self, name: str, most: int = 200) -> evidence.Course:
        """Return how the evidence of an experiment came to be what it is: at most ``most`` verdicts."""
        async with self._database.begin() as session:
            return await evidence.course(session, name, most)

    async def lines(self, name: str) -> list[str]:
        """Return the lines of the experiment's log, as ``vla-evidence replay`` reads them."""
        async with self._database.begin() as session:
            await _get(session, name)
            return await evidence.log_lines(session, name)

    async def stop(self, name: str, reason: str, who: str) -> None:
        """End an experiment by a person's decision; its robots go back to A. One that has ended already stays as it is."""
        async with self._turn, self._database.begin() as session:
            row = await _get(session, name, lock=True)
            if row.state == State.RUNNING:
                await self._steps.end(session, row, State.STOPPED, f"{who}: {reason or 'no reason given'}", who)

    async def promote(self, name: str, target: str, who: str) -> RolloutInfo:
        """Begin a rollout of the winner; the same again gives the same rollout.

        Args:
            name: of an experiment that B has won.
            target: as of a rollout; empty: the experiment's group or tag.
            who: asks for it.

        Raises:
            FleetError: EXPERIMENT_NOT_FOUND, NOT_WON, TARGET_INVALID; as :meth:`Rollouts.create`.
        """
        async with self._turn:
            row, _, _ = await self.experiment(name)
            if row.rollout:
                return await self._rollouts.show(row.rollout)
            if row.state != State.WIN_B:
                raise ConflictError("NOT_WON", f"{name} is {row.state}: only a B that has won is promoted")
            request = RolloutRequest(
                model=f"{row.model}@{row.b}", target=target or _target(Design(**row.design)), reason=f"has won {name}"
            )
            return await self._rollouts.create(request, who, experiment=name)

    # -- the loop -----------------------------------------------------------------------------------------------------------

    async def run(self, every_s: float, leads: Callable[[], Awaitable[bool]]) -> None:
        """Carry experiments out until cancelled, also those that ran before a restart."""
        await loop.run(self.step, self._clock, every_s, leads)

    async def step(self) -> None:
        """Take one step of every experiment."""
        await loop.step_each(await self._steps.open_ones(), self._steps.step, self._turn)


def _target(design: Design) -> str:
    """Return whom a rollout is for, if it is for those that the experiment was for."""
    if design.robots or (design.group and design.tag):
        raise InputError("TARGET_INVALID", "a rollout is for a group, a tag or all: say which one")
    return f"group:{design.group}" if design.group else f"tag:{design.tag}"


async def _get(session: AsyncSession, name: str, *, lock: bool = False) -> ExperimentRow:
    row = await session.get(ExperimentRow, name, with_for_update={"key_share": True} if lock else None)
    if row is None:
        raise MissingError("EXPERIMENT_NOT_FOUND", f"there is no experiment {name!r}")
    return row
