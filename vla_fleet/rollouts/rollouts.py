# SPDX-License-Identifier: Apache-2.0
"""What people, and other parts of the server, do with rollouts."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer
from sqlalchemy.orm.exc import StaleDataError

from vla_evidence.canary.by_robot import too_few_words
from vla_evidence.canary.config import FEWEST_ROBOTS, CanaryConfig, Unit
from vla_evidence.log.records import header_line, to_json
from vla_evidence.log.rollout import Rollout
from vla_evidence.planning.feasible import Feasibility, feasible
from vla_evidence.simulate.report import finite
from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError, InputError, MissingError
from vla_fleet.registry.registry import Registry
from vla_fleet.robots.claims import claim
from vla_fleet.robots.commands import Commands
from vla_fleet.rollouts.engine import Engine, State, Whole, by, unit_of
from vla_fleet.rollouts.settings import RolloutRequest
from vla_fleet.steering import evidence, loop
from vla_fleet.steering.evidence import Judged
from vla_fleet.steering.members import ManifestUrl, Online
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import ExperimentRow, LogRow, RobotRow, RolloutRow

_RUNS, _FEWEST_RUNS, _ROBOT_RUNS = 100, 20, 10_000
"""Simulated rollouts of a forecast; where robots are drawn a run takes longer the more there are, so there are fewer."""
_MOST_EPISODES = 200_000
"""Of a simulated rollout; more would only make it more certain."""


class RobotStanding(BaseModel):
    """How a robot stands in a rollout."""

    robot: str
    standing: str
    detail: str
    origin: str
    online: bool


class HistoryLine(BaseModel):
    """Who moved a rollout, when and why."""

    time_s: float
    who: str
    action: str
    why: str


class RolloutInfo(BaseModel):
    """A rollout as people see it."""

    id: str
    model: str
    version: str
    target: str
    state: str
    paused: bool
    stage: int
    stages: list[dict[str, Any]]
    stage_since_s: float
    unit: str
    judge: str
    created_s: float
    created_by: str
    ended_s: float
    verdict: dict[str, Any]
    """Of the judge: decision, message, code, missing, figures; empty before the first."""
    warnings: list[str] = []
    robots: list[RobotStanding] = []
    outcomes: dict[str, int] = {}
    history: list[HistoryLine] = []


class Forecast(BaseModel):
    """What a rollout would do in this fleet, before it begins."""

    model: str
    version: str
    robots: int
    unit: str
    per_hour: float
    figures: dict[str, Any]
    text: str
    warnings: list[str]


class Rollouts:
    """Creates rollouts, steers them, shows them, and runs them."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        commands: Commands,
        clock: Clock,
        url: ManifestUrl,
        online: Online,
    ) -> None:
        self._database, self._registry, self._commands, self._clock = database, registry, commands, clock
        self._engine = Engine(database, commands, clock, url, online)
        self._turn, self._forecasting = asyncio.Lock(), asyncio.Lock()

    # -- running ------------------------------------------------------------------------------------------------------------

    async def run(self, every_s: float, leads: Callable[[], Awaitable[bool]]) -> None:
        """Step every rollout until cancelled."""
        await loop.run(self.step, self._clock, every_s, leads)

    async def step(self) -> None:
        """Move every active rollout on once."""
        async with self._database.begin() as session:
            ids = list(await session.scalars(select(RolloutRow.id).where(RolloutRow.active.is_not(None))))
        await loop.step_each(ids, self._engine.step, self._turn)

    # -- creating -----------------------------------------------------------------------------------------------------------

    async def forecast(self, request: RolloutRequest, per_hour: float | None = None, drop: float = 0.10) -> Forecast:
        """Simulate the rollout in this fleet, with the judge itself.

        Args:
            request: the rollout.
            per_hour: episodes that a robot does an hour; None: as many as the fleet did lately.
            drop: of the success rate, that makes a version bad.

        Raises:
            FleetError: as :meth:`create`; RATE_UNKNOWN.
        """
        version = await self._registry.find(request.model)
        async with self._database.begin() as session:
            robots, unit, config, past = await self._plan(session, request, version.digest)
        per_hour = past.per_hour if per_hour is None else per_hour
        if not per_hour:
            raise InputError(
                "RATE_UNKNOWN", "these robots have not reported episodes yet: say how many each does an hour"
            )
        runs = _RUNS if unit is Unit.EPISODE else max(_FEWEST_RUNS, min(_RUNS, _ROBOT_RUNS // len(robots)))
        hours = sum(stage.duration_s for stage in config.stages) / 3600.0
        simulated = min(per_hour, _MOST_EPISODES / (len(robots) * max(hours, 1.0)))
        config = replace(config, deadline_s=math.inf, latency_limit_s=None)  # how long episodes take is not simulated
        async with self._forecasting:
            found: Feasibility = await asyncio.to_thread(feasible, config, len(robots), simulated, drop=drop, runs=runs)
        return Forecast(
            model=version.name, version=version.version, robots=len(robots), unit=unit.value, per_hour=per_hour,
            figures=finite(asdict(found)), text=str(found), warnings=_warnings(unit, len(robots)),
        )  # fmt: skip

    async def create(self, request: RolloutRequest, who: str, experiment: str = "") -> RolloutInfo:
        """Begin a rollout.

        Args:
            request: what is asked for.
            who: asks for it.
            experiment: whose winner it is; it notes the rollout in the same transaction.

        Raises:
            FleetError: MODEL_NOT_FOUND, NO_ROBOTS, ROBOT_TAKEN, ROLLOUT_ACTIVE, TARGET_INVALID, STAGES_INVALID,
                WINDOW_INVALID, TIME_ZONE_UNKNOWN.
        """
        version, now_s = await self._registry.find(request.model), self._clock.now()
        rollout = f"r-{secrets.token_hex(4)}"
        try:
            async with self._turn, self._database.begin() as session:
                robots, unit, config, past = await self._plan(session, request, version.digest)
                row = RolloutRow(
                    id=rollout, name=version.name, version=version.version, digest=version.digest, target=request.target,
                    active=f"{version.name} {request.target}", settings=request.model_dump(mode="json"),
                    stages=to_json(config.to_json()["stages"]), unit=unit.value, history=to_json(past.by_robot),
                    state=State.INSTALLING.value, paused=False, stage=0, stage_since_s=now_s, judged_stage=-1,
                    judged_since_s=0.0, created_s=now_s, created_by=who, ended_s=0.0, lines=0, verdict={}, verdict_s=0.0,
                    taken=await evidence.newest(session),
                )  # fmt: skip
                session.add(row)
                await session.flush()
                evidence.append(session, row, header_line("canary", rollout, {"config": config.to_json()}))
                await claim(session, robots, by(row))
                await self._engine.join(session, await self._engine.load(session, rollout))
                detail = {"model": version.name, "version": version.version, "target": request.target}
                self._database.log(session, who, "rollout.create", rollout, why=request.reason, **detail)
                if experiment:
                    (await session.get_one(ExperimentRow, experiment)).rollout = rollout
                    self._database.log(session, who, "experiment.promote", experiment, rollout=rollout)
        except IntegrityError as e:
            raise ConflictError("ROLLOUT_ACTIVE", f"a rollout of {version.name} to {request.target} is active") from e
        return await self.show(rollout)

    async def _plan(
        self, session: AsyncSession, request: RolloutRequest, digest: str
    ) -> tuple[list[str], Unit, CanaryConfig, evidence.History]:
        request.check()
        rows = await session.execute(select(RobotRow.name, RobotRow.group, RobotRow.tags, RobotRow.status))
        meant: dict[str, dict[str, Any]] = {r.name: r.status for r in rows if request.means(r.group, r.tags)}
        statuses = {
            name: status
            for name, status in meant.items()
            if digest not in (status.get("committed_digest"), status.get("adapted_digest"))
        }
        if not statuses:
            why = f"every robot of {request.target} runs it already" if meant else f"no robot is in {request.target}"
            raise MissingError("NO_ROBOTS", why)
        unit = unit_of(statuses.values())
        origins = {name: status.get("committed_version", "") for name, status in statuses.items()}
        past = await evidence.history(session, origins, self._clock.now())
        return list(statuses), unit, request.judge_config(unit, past.successes, past.episodes, past.latencies_s), past

    # -- steering -----------------------------------------------------------------------------------------------------------

    async def pause(self, rollout: str, who: str, why: str = "") -> RolloutInfo:
        """Give no order and begin no stage until :meth:`resume`. The judge goes on, and harm is rolled back."""
        return await self._set_paused(rollout, who, why, paused=True)

    async def resume(self, rollout: str, who: str, why: str = "") -> RolloutInfo:
        """Go on after :meth:`pause`."""
        return await self._set_paused(rollout, who, why, paused=False)

    async def _set_paused(self, rollout: str, who: str, why: str, *, paused: bool) -> RolloutInfo:
        async with self._steer(rollout) as (session, whole, _):
            if whole.row.paused == paused:
                raise ConflictError("ROLLOUT_STATE", f"{rollout} is {'paused already' if paused else 'not paused'}")
            whole.row.paused = paused
            self._database.log(session, who, f"rollout.{'pause' if paused else 'resume'}", rollout, why=why)
        return await self.show(rollout)

    async def approve(self, rollout: str, who: str, why: str) -> RolloutInfo:
        """Let the next stage begin although the judge did not say so. The decision is in the evidence log."""
        async with self._steer(rollout) as (session, whole, _):
            row = whole.row
            if row.state not in (State.JUDGING.value, State.ASKING.value):
                raise ConflictError("ROLLOUT_STATE", f"{rollout} is {row.state}: there is nothing to approve")
            if row.paused:
                raise ConflictError("ROLLOUT_STATE", f"{rollout} is paused: resume it first")
            judged = await self._engine.judges.open(session, row)
            if row.verdict.get("decision") == "ROLLBACK":
                raise ConflictError("ROLLOUT_HARM", "harm was found: abort this rollout; another one may begin")
            judged.judgement.decide(who, "advance", why, self._clock.now() - row.created_s)
            if row.judged_stage < row.stage:  # the stage is installed, and is to be judged now
                row.state = State.INSTALLING.value
                self._database.log(session, who, "rollout.approve", rollout, why=why)
            else:
                await self._engine.next_stage(session, whole, judged, who, why)
            self._engine.judges.store(session, row, judged)
        return await self.show(rollout)

    async def abort(self, rollout: str, who: str, why: str, *, keep: bool = False) -> RolloutInfo:
        """End a rollout: every robot goes back, or (``keep``) stays with what it has committed."""
        async with self._steer(rollout) as (session, whole, robots):
            row = whole.row
            if row.state == State.ROLLING_BACK.value:
                raise ConflictError("ROLLOUT_STATE", f"{rollout} is rolled back already")
            if keep:
                robots += await self._engine.stay(session, whole, who, why)
            else:
                judged = await self._engine.judges.open(session, row)
                self._decide_back(row, judged, who, why)
                self._engine.judges.store(session, row, judged)
                robots += await self._engine.begin_back(session, whole, who, why)
        return await self.show(rollout)

    def _decide_back(self, row: RolloutRow, judged: Judged[Rollout], who: str, why: str) -> None:
        now_s = self._clock.now() - row.created_s
        judged.judgement.decide(who, "rollback", why, now_s)
        if row.judged_stage >= 0:
            row.verdict = to_json(judged.judgement.verdict(now_s))

    @asynccontextmanager
    async def _steer(self, rollout: str) -> AsyncIterator[tuple[AsyncSession, Whole, list[str]]]:
        """Give what a person needs to change an active rollout; what they changed is there whole, or not at all."""
        robots: list[str] = []
        try:
            async with self._turn, self._database.begin() as session:
                # a step of another server is waited for, and waits for this
                row = await session.get(RolloutRow, rollout, with_for_update={"key_share": True})
                if row is None:
                    raise MissingError("ROLLOUT_NOT_FOUND", f"there is no rollout {rollout!r}")
                if row.active is None:
                    raise ConflictError("ROLLOUT_STATE", f"{rollout} has ended: {row.state}")
                yield session, await self._engine.load(session, rollout), robots
        except StaleDataError as e:
            self._engine.judges.forget(rollout)
            raise ConflictError("ROLLOUT_CHANGED", f"{rollout} has moved on just now: look again") from e
        except BaseException:
            self._engine.judges.forget(rollout)
            raise
        await self._commands.hint(robots)

    # -- looking ------------------------------------------------------------------------------------------------------------

    async def all(self) -> list[RolloutInfo]:
        """Return every rollout without its robots, newest first."""
        async with self._database.begin() as session:
            query = select(RolloutRow).options(defer(RolloutRow.history))
            rows = await session.scalars(query.order_by(RolloutRow.created_s.desc()))
            return [_info(row) for row in rows]

    async def show(self, rollout: str) -> RolloutInfo:
        """Return one rollout with its robots and its history."""
        async with self._database.begin() as session:
            if await session.get(RolloutRow, rollout) is None:
                raise MissingError("ROLLOUT_NOT_FOUND", f"there is no rollout {rollout!r}")
            whole = await self._engine.load(session, rollout)
            info = _info(whole.row)
            info.warnings = _warnings(Unit(whole.row.unit), len(whole.members))
            info.robots = [
                RobotStanding(
                    robot=robot.name, standing=look.standing.value, detail=look.detail, origin=robot.origin, online=robot.online
                )
                for robot, look in whole.looks(self._clock.now())
            ]  # fmt: skip
            info.outcomes = await evidence.counts(session, rollout)
            lines = await session.scalars(select(LogRow).where(LogRow.subject == rollout).order_by(LogRow.id))
            info.history = [
                HistoryLine(time_s=line.time_s, who=line.who, action=line.action, why=str(line.detail.get("why", "")))
                for line in lines
            ]
        return info

    async def course(self, rollout: str, most: int = 200) -> evidence.Course:
        """Return how the evidence of a rollout came to be what it is: at most ``most`` verdicts."""
        async with self._database.begin() as session:
            return await evidence.course(session, rollout, most)

    async def log(self, rollout: str) -> list[str]:
        """Return the evidence log's lines, for ``vla-evidence replay``."""
        async with self._database.begin() as session:
            if await session.get(RolloutRow, rollout) is None:
                raise MissingError("ROLLOUT_NOT_FOUND", f"there is no rollout {rollout!r}")
            return await evidence.log_lines(session, rollout)


def _info(row: RolloutRow) -> RolloutInfo:
    return RolloutInfo(
        id=row.id, model=row.name, version=row.version, target=row.target, state=row.state, paused=row.paused,
        stage=row.stage, stages=row.stages, stage_since_s=row.stage_since_s, unit=row.unit,
        judge=str(row.settings["judge"]), created_s=row.created_s, created_by=row.created_by, ended_s=row.ended_s,
        verdict=row.verdict,
    )  # fmt: skip


def _warnings(unit: Unit, robots: int) -> list[str]:
    if unit is Unit.ROBOT and robots < FEWEST_ROBOTS:
        return [f"{too_few_words(robots)}; a person decides after each stage"]
    return []
