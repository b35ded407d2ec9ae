# SPDX-License-Identifier: Apache-2.0
"""What must have happened, each as a pure function of what was seen: an empty list, or what is wrong in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_sim.demo.journal import Killed, RollbackReply, at_s
from vla_sim.demo.report import END_STATES, OPERATOR, Evidence, holds, missed, rollbacks, swaps

WARM_LIMIT_S = 1.0
COMMAND_TIMEOUT_S = 0.5
"""After so long without a command the simulated arm stops following (``sim_robot``'s ``command_timeout_s``)."""
VERDICTS = ("SCORES_WORSE", "SUCCESS_WORSE", "HARD_LIMIT")
SENSOR_HOLD = "OBSERVATION_STALE"
"""The policy's inputs were late, which a busy machine does to the simulator; it says nothing about updates."""
UPDATE_PATH = ("CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL")
SHORT_PATH = ("CHECKING", "FETCHING", "TRIAL")
"""What is heard for certain of an update whose manager was started again: events are not latched."""
_STAMP_SLACK_S = 0.1  # two processes stamp the two sides of one moment

Check = Callable[[Evidence], list[str]]


def _events(evidence: Evidence, version: str) -> list[ModelEvent]:
    """Transitions of a version's update."""
    ids = {offer.update_id for offer in evidence.journal.all(ModelUpdate) if offer.version == version}
    return [event for event in evidence.journal.all(ModelEvent) if event.update_id in ids]


def committed(version: str, from_version: str, path: Sequence[str] = UPDATE_PATH) -> Check:
    """The version was fetched, verified, swapped in, tried and committed, and replaced ``from_version``."""

    def check(evidence: Evidence) -> list[str]:
        ids = {offer.update_id for offer in evidence.journal.all(ModelUpdate) if offer.version == version}
        seen = {event.to_state for event in _events(evidence, version)}
        seen |= {status.state_name for status in evidence.journal.all(ModelStatus) if status.update_id in ids}
        problems = [f"{version} was not in {state}" for state in (*path, "COMMITTED") if state not in seen]
        found = [row for row in swaps(evidence) if row["to"] == version]
        if [row["from"] for row in found] != [from_version]:
            what = ", ".join(f"{row['from'] or 'nothing'} -> {version}" for row in found) or "none"
            problems.append(f"expected one swap {from_version or 'nothing'} -> {version}, reported: {what}")
        problems += [
            f"the swap to {version} reports no bytes downloaded" for row in found if not row["bytes_downloaded"]
        ]
        return problems

    return check


def refused(version: str, keeps: str) -> Check:
    """The version was rejected with a code and never acted, and the robot went on with another one."""

    def check(evidence: Evidence) -> list[str]:
        events = _events(evidence, version)
        ends = [event for event in events if event.to_state in END_STATES]
        if not ends or ends[-1].to_state != "REJECTED":
            return [f"{version} was not rejected but ended as {ends[-1].to_state if ends else 'nothing'}"]
        problems = _went_on(evidence, at_s(events[0]), at_s(ends[-1]), keeps, f"while {version} was refused")
        if not (ends[-1].error_code and ends[-1].message):
            problems.append(f"{version} was rejected without code or reason")
        if any(report.to_version == version for report in evidence.journal.all(SwapReport)):
            problems.append(f"{version} was rejected and acted all the same")
        return problems

    return check


def undone_by_itself(version: str, back_to: str) -> Check:
    """The version acted, was judged bad, and the robot went back without a download while it was still warm; it is blocked."""

    def check(evidence: Evidence) -> list[str]:
        path = [event.to_state for event in _events(evidence, version)]
        problems = [f"{version} was not in {state}" for state in (*UPDATE_PATH, "ROLLING_BACK") if state not in path]
        if "COMMITTED" in path or path[-1:] != ["ROLLED_BACK"]:
            problems.append(f"{version} ended as {path[-1] if path else 'nothing'}, not as ROLLED_BACK")
        if not any(version in status.blocked for status in evidence.journal.all(ModelStatus)):
            problems.append(f"{version} is not blocked")
        return problems + _way_back(evidence, version, back_to, VERDICTS)

    return check


def undone_by_a_person(version: str, back_to: str) -> Check:
    """An operator's empty request took the robot back, warm and without a download; nothing is blocked by that."""

    def check(evidence: Evidence) -> list[str]:
        replies = [r.reply for r in evidence.journal.all(RollbackReply) if r.reply.from_version == version]
        problems = [f"ota_manager/rollback: {r.error_code} {r.message}" for r in replies if not r.success]
        if not replies:
            problems.append(f"nobody asked for a rollback of {version}")
        last = evidence.journal.last(ModelStatus)
        if last is not None and version in last.blocked:
            problems.append(f"{version} is blocked though a person asked for the rollback")
        return problems + _way_back(evidence, version, back_to, (OPERATOR, "OPERATOR_ROLLBACK"))

    return check


def _way_back(evidence: Evidence, version: str, back_to: str, causes: Sequence[str]) -> list[str]:
    found = [row for row in rollbacks(evidence) if row["from"] == version]
    if [row["to"] for row in found] != [back_to]:
        what = ", ".join(row["to"] for row in found) or "none"
        return [f"expected one rollback {version} -> {back_to}, reported: {what}"]
    (row,) = found
    problems = {
        f"{version} was rolled back for {row['cause']!r}, not for one of {', '.join(causes)}": row["cause"]
        not in causes,
        f"the rollback of {version} had to load {back_to} again": not row["warm"],
        f"the rollback of {version} took {row['duration_s']:.2f} s, at most {WARM_LIMIT_S:g} s expected": (
            row["duration_s"] >= WARM_LIMIT_S
        ),
        f"the rollback of {version} downloaded {row['bytes_downloaded']} bytes": row["bytes_downloaded"] > 0,
    }
    return [problem for problem, found in problems.items() if found]


def resumed(version: str) -> Check:
    """The manager was killed in the middle of this version's download; every byte was sent once, and the arm never noticed."""

    def check(evidence: Evidence) -> list[str]:
        kills = [kill.at_s for kill in evidence.journal.all(Killed) if kill.what == "ota_manager"]
        if len(kills) != 1:
            return [f"the manager was killed {len(kills)} times, not once"]
        before = [event.to_state for event in _events(evidence, version) if at_s(event) <= kills[0]]
        problems = []
        if before[-1:] != ["FETCHING"]:
            problems.append(f"the manager was killed in {before[-1] if before else 'nothing'}, not in FETCHING")
        for path, size in evidence.blobs[version].items():
            if (sent := evidence.server.served[path]) != size:
                problems.append(f"{path} has {size} bytes, {sent} were sent")
        back = [at_s(s) for s in evidence.journal.all(ModelStatus) if at_s(s) > kills[0]]
        # A new manager may be heard late: it was surely there when its first swap happened.
        back += [at_s(report) for report in evidence.journal.all(SwapReport) if at_s(report) > kills[0]]
        if not back:
            return [*problems, "the manager did not come back"]
        return problems + _went_on(evidence, kills[0], min(back), "", "without its manager")

    return check


def recovered(version: str) -> Check:
    """The acting worker was killed; the robot held, the version acted again, and an episode succeeded afterwards."""

    def check(evidence: Evidence) -> list[str]:
        kills = [kill.at_s for kill in evidence.journal.all(Killed) if kill.what == "worker"]
        if len(kills) != 1:
            return [f"a worker was killed {len(kills)} times, not once"]
        found = [hold for hold in holds(evidence) if hold["at_s"] >= kills[0] - _STAMP_SLACK_S]
        problems = [] if found else ["no hold was reported after the active worker was killed"]
        for hold in found:
            if hold["duration_s"] is None:
                problems.append(f"the hold {hold['cause']} did not end")
            elif hold["recovered_version"] != version:
                problems.append(f"{hold['recovered_version']} acts after the hold, not {version}")
        reports = evidence.journal.all(SwapReport)
        if not any(report.cause == "WORKER_LOST" and report.to_version == version for report in reports):
            problems.append("no SwapReport says WORKER_LOST")
        back_s = kills[0] + sum(hold["duration_s"] or 0.0 for hold in found)
        outcomes = evidence.journal.all(EpisodeOutcome)
        if not any(o.success and o.version == version and at_s(o) > back_s for o in outcomes):
            problems.append(f"no episode succeeded with {version} after the loss of its worker")
        return problems

    return check


def undisturbed(evidence: Evidence) -> list[str]:
    """No swap and no rollback starved a tick, no tick was missed but for stalls of the machine, the arm was always commanded."""
    problems = [
        f"{row['from'] or 'nothing'} -> {row['to']}: {row['missed_ticks']} ticks missed, {row['starved_ticks']} starved"
        for row in [*swaps(evidence), *rollbacks(evidence)]
        if row["starved_ticks"] or row["missed_ticks"]
    ]
    begun_s = min((at_s(status) for status in evidence.journal.all(PolicyStatus)), default=0.0)
    problems += [
        f"{span['missed_ticks']} ticks that the witness did not miss, in the {span['end_s'] - span['begin_s']:.2f} s up to"
        f" {span['end_s'] - begun_s:.2f} s after the first status"
        for span in missed(evidence)
        if span["missed_ticks"]
    ]
    held = [(hold["at_s"], hold["at_s"] + (hold["duration_s"] or math.inf)) for hold in holds(evidence)]
    commands = evidence.journal.commands
    for begin_s, end_s in pairwise(commands):
        inside = any(begin <= end_s and begin_s <= end for begin, end in held)
        if end_s - begin_s > COMMAND_TIMEOUT_S and not inside:
            problems.append(f"the arm got no command for {end_s - begin_s:.2f} s")
    return problems if commands else [*problems, "the arm got no command at all"]


def ends_with(version: str) -> Check:
    """The version acts and is committed at the end."""

    def check(evidence: Evidence) -> list[str]:
        policy, model = evidence.journal.last(PolicyStatus), evidence.journal.last(ModelStatus)
        running = policy.active_version if policy and policy.state == PolicyStatus.STATE_RUNNING else "nothing"
        kept = model.committed_version if model else "nothing"
        problems = [] if running == version else [f"{running} acts at the end, not {version}"]
        return problems if kept == version else [*problems, f"{kept} is committed at the end, not {version}"]

    return check


def _went_on(evidence: Evidence, begin_s: float, end_s: float, version: str, when: str) -> list[str]:
    """The loop ticked on with this version (empty: whatever it was) and never starved."""
    statuses = evidence.journal.all(PolicyStatus)
    before = [s for s in statuses if at_s(s) < begin_s][-1:]
    span = before + [s for s in statuses if begin_s <= at_s(s) <= end_s]
    if len(span) < 2:
        return [f"policy_node reported nothing {when}"]
    first, last = span[0], span[-1]
    problems = []
    stopped = {s.hold_reason or f"state {s.state}" for s in span if s.state != PolicyStatus.STATE_RUNNING} - {
        SENSOR_HOLD
    }
    if stopped:
        problems.append(f"the policy did not act all the time {when}: {', '.join(sorted(stopped))}")
    acting = sorted({s.active_version for s in span})
    if acting != [version or first.active_version]:
        problems.append(f"{', '.join(acting)} acted {when}")
    if last.ticks <= first.ticks:
        problems.append(f"the control loop did not tick {when}")
    if starved := last.starved_ticks - first.starved_ticks:
        problems.append(f"{starved} ticks starved {when}")
    return problems
