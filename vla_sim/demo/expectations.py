# SPDX-License-Identifier: Apache-2.0
"""What must have happened, each as a pure function of what was seen: an empty list, or what is wrong in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_sim.demo.journal import Killed, RollbackReply, at_s
from vla_sim.demo.report import OPERATOR, Evidence, holds, missed, rollbacks, swaps

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


def _wrong(problems: Mapping[str, object]) -> list[str]:
    """Return the texts whose condition is true."""
    return [text for text, found in problems.items() if found]


def _events(evidence: Evidence, version: str) -> list[ModelEvent]:
    """Transitions of a version's update."""
    ids = {offer.update_id for offer in evidence.journal.all(ModelUpdate) if offer.version == version}
    return [event for event in evidence.journal.all(ModelEvent) if event.update_id in ids]


def committed(version: str, from_version: str, path: Sequence[str] = UPDATE_PATH) -> Check:
    """The version was fetched, verified, swapped in, tried and committed, and replaced ``from_version``."""

    def check(evidence: Evidence) -> list[str]:
        events = _events(evidence, version)
        ids = {event.update_id for event in events}
        seen = {event.to_state for event in events}
        seen |= {status.state_name for status in evidence.journal.all(ModelStatus) if status.update_id in ids}
        found = [row for row in swaps(evidence) if row["to"] == version]
        ways = [row["from"] for row in found]
        return _wrong(
            {f"{version} was not in {state}": state not in seen for state in (*path, "COMMITTED")}
            | {
                f"{version} replaced {ways}, not {from_version!r} alone": ways != [from_version],
                f"the swap to {version} reports no bytes downloaded": not all(row["bytes_downloaded"] for row in found),
            }
        )

    return check


def refused(version: str, keeps: str, codes: Sequence[str] = ()) -> Check:
    """The version was rejected with a code (one of ``codes``, if given) and never acted; the robot went on with another one."""

    def check(evidence: Evidence) -> list[str]:
        events = _events(evidence, version)
        if not events or events[-1].to_state != "REJECTED":
            return [f"{version} was not rejected but ended as {events[-1].to_state if events else 'nothing'}"]
        acted = any(report.to_version == version for report in evidence.journal.all(SwapReport))
        return _went_on(evidence, at_s(events[0]), at_s(events[-1]), keeps, f"while {version} was refused") + _wrong(
            {
                f"{version} was rejected without code or reason": not (events[-1].error_code and events[-1].message),
                f"{version} was rejected and acted all the same": acted,
                f"{version} was rejected for {events[-1].error_code}": codes and events[-1].error_code not in codes,
            }
        )

    return check


def undone_by_itself(version: str, back_to: str) -> Check:
    """The version acted, was judged bad, and the robot went back without a download while it was still warm; it is blocked."""

    def check(evidence: Evidence) -> list[str]:
        path = [event.to_state for event in _events(evidence, version)]
        blocked = any(version in status.blocked for status in evidence.journal.all(ModelStatus))
        return _way_back(evidence, version, back_to, VERDICTS) + _wrong(
            {f"{version} was not in {state}": state not in path for state in (*UPDATE_PATH, "ROLLING_BACK")}
            | {
                f"{version} was committed": "COMMITTED" in path,
                f"{version} did not end as ROLLED_BACK": path[-1:] != ["ROLLED_BACK"],
                f"{version} is not blocked": not blocked,
            }
        )

    return check


def undone_by_a_person(version: str, back_to: str) -> Check:
    """An operator's empty request took the robot back, warm and without a download; nothing is blocked by that."""

    def check(evidence: Evidence) -> list[str]:
        replies = [asked.reply for asked in evidence.journal.all(RollbackReply)]
        last = evidence.journal.last(ModelStatus)
        return _way_back(evidence, version, back_to, (OPERATOR, "OPERATOR_ROLLBACK")) + _wrong(
            {f"ota_manager/rollback: {reply.error_code} {reply.message}": not reply.success for reply in replies}
            | {
                f"nobody asked for a rollback of {version}": version not in [reply.from_version for reply in replies],
                f"{version} is blocked though a person asked for the rollback": last and version in last.blocked,
            }
        )

    return check


def _way_back(evidence: Evidence, version: str, back_to: str, causes: Sequence[str]) -> list[str]:
    found = [row for row in rollbacks(evidence) if row["from"] == version]
    if [row["to"] for row in found] != [back_to]:
        return [f"expected one rollback {version} -> {back_to}, reported: {[row['to'] for row in found]}"]
    (row,) = found
    return _wrong(
        {
            f"{version} was rolled back for {row['cause']!r}, not for one of {', '.join(causes)}": row["cause"]
            not in causes,
            f"the rollback of {version} had to load {back_to} again": not row["warm"],
            f"the rollback of {version} took {row['duration_s']:.2f} s": row["duration_s"] >= WARM_LIMIT_S,
            f"the rollback of {version} downloaded {row['bytes_downloaded']} bytes": row["bytes_downloaded"],
        }
    )


def _killed_s(evidence: Evidence, what: str) -> float:
    """Return when the demo killed a process; infinity if it did not."""
    return next((kill.at_s for kill in evidence.journal.all(Killed) if kill.what == what), math.inf)


def resumed(version: str) -> Check:
    """The manager was killed in the middle of this version's download; every byte was sent once, and the arm never noticed."""

    def check(evidence: Evidence) -> list[str]:
        killed_s, sent = _killed_s(evidence, "ota_manager"), evidence.server.served
        before = [event.to_state for event in _events(evidence, version) if at_s(event) <= killed_s]
        # A new manager may be heard late: it was surely there when its first swap happened.
        signs = [*evidence.journal.all(ModelStatus), *evidence.journal.all(SwapReport)]
        back_s = min((at_s(sign) for sign in signs if at_s(sign) > killed_s), default=math.inf)
        return _went_on(evidence, killed_s, back_s, "", "without its manager") + _wrong(
            {
                f"the manager was killed in {before[-1:]}, not in FETCHING": before[-1:] != ["FETCHING"],
                "the manager did not come back": back_s == math.inf,
            }
            | {
                f"{path} has {size} bytes, {sent[path]} were sent": sent[path] != size
                for path, size in evidence.blobs[version].items()
            }
        )

    return check


def recovered(version: str) -> Check:
    """The acting worker was killed; the robot held, the version acted again, and an episode succeeded afterwards."""

    def check(evidence: Evidence) -> list[str]:
        killed_s = _killed_s(evidence, "worker")
        found = [hold for hold in holds(evidence) if hold["at_s"] >= killed_s - _STAMP_SLACK_S]
        back_s = killed_s + sum(hold["duration_s"] or 0.0 for hold in found)
        reports = [r for r in evidence.journal.all(SwapReport) if r.cause == "WORKER_LOST" and r.to_version == version]
        outcomes = [o for o in evidence.journal.all(EpisodeOutcome) if o.version == version and at_s(o) > back_s]
        return _wrong(
            {
                "no hold was reported after the active worker was killed": not found,
                "a hold did not end": None in [hold["duration_s"] for hold in found],
                f"not {version} acts after the hold": {hold["recovered_version"] for hold in found} - {version, ""},
                "no SwapReport says WORKER_LOST": not reports,
                f"no episode succeeded with {version} after the loss of its worker": not any(
                    o.success for o in outcomes
                ),
            }
        )

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
        acts = policy.active_version if policy and policy.state == PolicyStatus.STATE_RUNNING else "nothing"
        kept = model.committed_version if model else "nothing"
        return _wrong(
            {
                f"{acts} acts at the end, not {version}": acts != version,
                f"{kept} is committed at the end, not {version}": kept != version,
            }
        )

    return check


def _went_on(evidence: Evidence, begin_s: float, end_s: float, version: str, when: str) -> list[str]:
    """The loop ticked on with this version (empty: whatever it was) and never starved."""
    statuses = evidence.journal.all(PolicyStatus)
    before = [status for status in statuses if at_s(status) < begin_s][-1:]
    span = before + [status for status in statuses if begin_s <= at_s(status) <= end_s]
    if len(span) < 2:
        return [f"policy_node reported nothing {when}"]
    first, last = span[0], span[-1]
    stopped = {s.hold_reason or f"state {s.state}" for s in span if s.state != PolicyStatus.STATE_RUNNING} - {
        SENSOR_HOLD
    }
    acting = {status.active_version for status in span}
    starved = last.starved_ticks - first.starved_ticks
    return _wrong(
        {
            f"the policy did not act all the time {when}: {', '.join(sorted(stopped))}": stopped,
            f"{', '.join(sorted(acting))} acted {when}": acting != {version or first.active_version},
            f"the control loop did not tick {when}": last.ticks <= first.ticks,
            f"{starved} ticks starved {when}": starved,
        }
    )
