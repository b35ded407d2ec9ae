# SPDX-License-Identifier: Apache-2.0
"""What must have happened, each as a pure function of what was reported: an empty list, or what is wrong in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vla_sim.demo.journal import (
    CommandGap,
    EpisodeOutcome,
    Journal,
    Killed,
    ModelEvent,
    ModelStatus,
    Offer,
    PolicyStatus,
    RollbackReply,
    SwapReport,
)
from vla_sim.demo.report import END_STATES, SENSOR_HOLD, Rollback, Swap, holds, rollbacks, swaps, ticks_outside
from vla_sim.demo.server import CheckpointServer

WARM_LIMIT_S = 1.0
COMMAND_TIMEOUT_S = 0.5
"""After so long without a command the simulated arm stops following (``sim_robot``'s ``command_timeout_s``)."""
VERDICTS = ("SCORES_WORSE", "SUCCESS_WORSE", "HARD_LIMIT")
UPDATE_PATH = ("CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL")
SHORT_PATH = ("CHECKING", "FETCHING", "TRIAL")
"""What is heard for certain of an update whose manager was started again: events are not latched."""
NOISE_FACTOR = 3.0
"""A machine on which the loop misses ticks at all times stalls in bursts: so many times its rate is possible in a short span."""
LATE_SHARE = 0.02
"""Share of ticks that may be late while nothing is changed on the robot: that is the machine's doing, and is in the report."""
_STAMP_SLACK_S = 0.1  # two processes stamp the two sides of one moment


@dataclass(frozen=True)
class Evidence:
    """What the checks look at. ``blobs``: version → {path on the server: size [bytes]} of what only this version has."""

    journal: Journal
    server: CheckpointServer
    blobs: Mapping[str, Mapping[str, int]]

    def offer(self, version: str) -> Offer | None:
        """The offer of a version."""
        return next((o for o in self.journal.all(Offer) if o.version == version), None)

    def events(self, version: str) -> list[ModelEvent]:
        """Transitions of a version's update."""
        offer = self.offer(version)
        return [e for e in self.journal.all(ModelEvent) if offer is not None and e.update_id == offer.update_id]

    def states(self, version: str) -> list[str]:
        """States that a version's update is known to have been in: by its events, then by statuses."""
        offer = self.offer(version)
        if offer is None:
            return []
        statuses = [s.state_name for s in self.journal.all(ModelStatus) if s.update_id == offer.update_id]
        return list(dict.fromkeys([*(event.to_state for event in self.events(version)), *statuses]))

    def rollbacks(self, version: str) -> list[Rollback]:
        """Ways back from a version."""
        return [r for r in rollbacks(self.journal, self.server) if r.from_version == version]


Check = Callable[[Evidence], list[str]]


def committed(version: str, from_version: str, path: Sequence[str] = UPDATE_PATH) -> Check:
    """The version was fetched, verified, swapped in, tried and committed, and replaced ``from_version``."""

    def check(evidence: Evidence) -> list[str]:
        seen = evidence.states(version)
        problems = [f"{version} was not in {state}" for state in path if state not in seen]
        if "COMMITTED" not in seen:
            problems.append(f"{version} was not committed; its update was in {', '.join(seen) or 'no state'}")
        found = [s for s in swaps(evidence.journal) if s.to_version == version]
        if [s.from_version for s in found] != [from_version]:
            what = ", ".join(f"{s.from_version or 'nothing'} -> {version}" for s in found) or "none"
            problems.append(f"expected one swap {from_version or 'nothing'} -> {version}, reported: {what}")
        problems += [f"the swap to {version} reports no bytes downloaded" for s in found if not s.bytes_downloaded]
        return problems

    return check


def refused(version: str, keeps: str) -> Check:
    """The version was rejected with a code, never acted, and the robot went on with another one without losing a tick."""

    def check(evidence: Evidence) -> list[str]:
        events = evidence.events(version)
        ends = [e for e in events if e.to_state in END_STATES]
        if not ends or ends[-1].to_state != "REJECTED":
            return [f"{version} was not rejected but ended as {ends[-1].to_state if ends else 'nothing'}"]
        problems = (
            [] if ends[-1].error_code and ends[-1].message else [f"{version} was rejected without code or reason"]
        )
        if any(s.to_version == version for s in evidence.journal.all(SwapReport)):
            problems.append(f"{version} was rejected and acted all the same")
        span = _between(evidence.journal, events[0].at_s, ends[-1].at_s)
        problems += _went_on(span, keeps, f"while {version} was refused")
        return problems

    return check


def undone_by_itself(version: str, back_to: str) -> Check:
    """The version acted, was judged bad, and the robot went back without a download while it was still warm; it is blocked."""

    def check(evidence: Evidence) -> list[str]:
        path = [event.to_state for event in evidence.events(version)]
        problems = [f"{version} was not in {state}" for state in (*UPDATE_PATH, "ROLLING_BACK") if state not in path]
        if "COMMITTED" in path or path[-1:] != ["ROLLED_BACK"]:
            problems.append(f"{version} ended as {path[-1] if path else 'nothing'}, not as ROLLED_BACK")
        problems += _way_back(evidence, version, back_to, VERDICTS)
        if not any(version in status.blocked for status in evidence.journal.all(ModelStatus)):
            problems.append(f"{version} is not blocked")
        return problems

    return check


def undone_by_a_person(version: str, back_to: str) -> Check:
    """An operator's empty request took the robot back, warm and without a download; nothing is blocked by that."""

    def check(evidence: Evidence) -> list[str]:
        replies = [r for r in evidence.journal.all(RollbackReply) if r.from_version == version]
        problems = [f"ota_manager/rollback: {r.error_code} {r.message}" for r in replies if not r.success]
        if not replies:
            problems.append(f"nobody asked for a rollback of {version}")
        problems += _way_back(evidence, version, back_to, ("OPERATOR", "OPERATOR_ROLLBACK"))
        last = evidence.journal.last(ModelStatus)
        if last is not None and version in last.blocked:
            problems.append(f"{version} is blocked though a person asked for the rollback")
        return problems

    return check


def _way_back(evidence: Evidence, version: str, back_to: str, causes: Sequence[str]) -> list[str]:
    found = evidence.rollbacks(version)
    if [r.to_version for r in found] != [back_to]:
        what = ", ".join(r.to_version for r in found) or "none"
        return [f"expected one rollback {version} -> {back_to}, reported: {what}"]
    rollback, problems = found[0], []
    if rollback.cause not in causes:
        problems.append(f"{version} was rolled back for {rollback.cause!r}, not for one of {', '.join(causes)}")
    if not rollback.warm:
        problems.append(f"the rollback of {version} had to load {back_to} again")
    if rollback.duration_s >= WARM_LIMIT_S:
        problems.append(
            f"the rollback of {version} took {rollback.duration_s:.2f} s, at most {WARM_LIMIT_S:g} s expected"
        )
    if rollback.bytes_downloaded:
        problems.append(f"the rollback of {version} downloaded {rollback.bytes_downloaded} bytes")
    return problems


def resumed(version: str) -> Check:
    """The manager was killed in the middle of this version's download; every byte was sent once, and the arm never noticed."""

    def check(evidence: Evidence) -> list[str]:
        problems = []
        kills = [k for k in evidence.journal.all(Killed) if k.what == "ota_manager"]
        if len(kills) != 1:
            return [f"the manager was killed {len(kills)} times, not once"]
        before = [e.to_state for e in evidence.events(version) if e.at_s <= kills[0].at_s]
        if before[-1:] != ["FETCHING"]:
            problems.append(f"the manager was killed in {before[-1] if before else 'nothing'}, not in FETCHING")
        again = False
        for path, size in evidence.blobs[version].items():
            served = evidence.server.served_bytes(path)
            if served != size:
                problems.append(f"{path} has {size} bytes, {served} were sent")
            again = again or any(r.status == 206 and 0 < r.first < size for r in evidence.server.requests(path))
        if not again:
            problems.append("no download was resumed from the middle")
        spoke = [s.at_s for s in evidence.journal.all(ModelStatus) if s.at_s > kills[0].at_s]
        if not spoke:
            return [*problems, "the manager did not come back"]
        # A new manager may be heard late: it was surely there when its first swap happened.
        swaps = [r.at_s for r in evidence.journal.all(SwapReport) if r.at_s > kills[0].at_s]
        span = [s for s in _between(evidence.journal, kills[0].at_s, spoke[0]) if s.at_s < min(swaps, default=math.inf)]
        return problems + _went_on(span, "", "without its manager")

    return check


def recovered(version: str) -> Check:
    """The acting worker was killed; the robot held, the version acted again, and an episode succeeded afterwards."""

    def check(evidence: Evidence) -> list[str]:
        kills = [k for k in evidence.journal.all(Killed) if k.what == "worker"]
        if len(kills) != 1:
            return [f"a worker was killed {len(kills)} times, not once"]
        killed_s = kills[0].at_s
        found = [h for h in holds(evidence.journal) if h.at_s >= killed_s - _STAMP_SLACK_S]
        problems = []
        if not found:
            problems.append("no hold was reported after the active worker was killed")
        problems += [f"the hold {h.cause} did not end" for h in found if h.duration_s is None]
        problems += [
            f"{h.recovered_version} acts after the hold, not {version}"
            for h in found
            if h.duration_s is not None and h.recovered_version != version
        ]
        if not any(s.cause == "WORKER_LOST" and s.to_version == version for s in evidence.journal.all(SwapReport)):
            problems.append("no SwapReport says WORKER_LOST")
        back_s = killed_s + sum(h.duration_s or 0.0 for h in found)
        if not any(
            o.success and o.version == version and o.at_s > back_s for o in evidence.journal.all(EpisodeOutcome)
        ):
            problems.append(f"no episode succeeded with {version} after the loss of its worker")
        return problems

    return check


def undisturbed(evidence: Evidence) -> list[str]:
    """No swap and no rollback cost a tick, and the arm was always commanded."""
    changes: list[Swap | Rollback] = [*swaps(evidence.journal), *rollbacks(evidence.journal, evidence.server)]
    problems = [
        f"{c.from_version or 'nothing'} -> {c.to_version}: {c.missed_ticks} ticks missed, {c.starved_ticks} starved"
        for c in changes
        if c.starved_ticks or _is_to_blame(evidence.journal, c.missed_ticks, c.ticks)
    ]
    held = [(h.at_s, h.at_s + (h.duration_s or float("inf"))) for h in holds(evidence.journal)]
    for gap in evidence.journal.all(CommandGap):
        inside = any(begin <= gap.at_s + gap.duration_s and gap.at_s <= end for begin, end in held)
        if gap.duration_s > COMMAND_TIMEOUT_S and not inside:
            problems.append(f"the arm got no command for {gap.duration_s:.2f} s")
    if not evidence.journal.commands:
        problems.append("the arm got no command at all")
    return problems


def ends_with(version: str) -> Check:
    """The version acts and is committed at the end."""

    def check(evidence: Evidence) -> list[str]:
        policy, model = evidence.journal.last(PolicyStatus), evidence.journal.last(ModelStatus)
        problems = []
        if policy is None or not policy.running or policy.active_version != version:
            problems.append(f"{policy.active_version if policy else 'nothing'} acts at the end, not {version}")
        if model is None or model.committed_version != version:
            problems.append(f"{model.committed_version if model else 'nothing'} is committed at the end, not {version}")
        return problems

    return check


def _between(journal: Journal, begin_s: float, end_s: float) -> list[PolicyStatus]:
    """The statuses of a span and the one before it."""
    statuses = journal.all(PolicyStatus)
    before = [s for s in statuses if s.at_s < begin_s][-1:]
    return before + [s for s in statuses if begin_s <= s.at_s <= end_s]


def _is_to_blame(journal: Journal, missed: int, ticks: int) -> bool:
    """Whether a span missed ticks that the machine would not have missed anyway.

    One missed tick is enough, unless the loop misses ticks while nothing is changed, too: then the span's share counts.
    """
    return missed > 0 and missed > NOISE_FACTOR * ticks_outside(journal).rate * ticks


def _went_on(span: Sequence[PolicyStatus], version: str, when: str) -> list[str]:
    """The loop ticked on with this version (empty: whatever it was), starved never and was late hardly ever."""
    if len(span) < 2:
        return [f"policy_node reported nothing {when}"]
    first, last = span[0], span[-1]
    problems = []
    reasons = sorted({s.hold_reason or f"state {s.state}" for s in span if not s.running})
    if reasons not in ([], [SENSOR_HOLD]):
        problems.append(f"the policy did not act all the time {when}: {', '.join(reasons)}")
    acting = sorted({s.active_version for s in span})
    if acting != [version or first.active_version]:
        problems.append(f"{', '.join(acting)} acted {when}")
    if last.ticks <= first.ticks:
        problems.append(f"the control loop did not tick {when}")
    missed, starved = last.missed_ticks - first.missed_ticks, last.starved_ticks - first.starved_ticks
    if starved or missed > LATE_SHARE * (last.ticks - first.ticks):
        problems.append(f"{missed} ticks missed and {starved} starved {when}")
    return problems
