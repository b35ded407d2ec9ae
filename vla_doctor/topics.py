# SPDX-License-Identifier: Apache-2.0
"""Whether the topics of the contract carry what it promises, and nobody else commands the robot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from vla_doctor.findings import Finding, ok, problem
from vla_doctor.seen import Endpoint, Need, NodeSeen, TopicSeen
from vla_policy_node.contract.model import Output

_FUTURE_S = 0.5
"""Stamps further ahead of ROS time are refused by the policy node [s]."""
_OFF_S = 1.0
"""Stamps that nobody uses yet may be off by so much without a warning [s]."""


def check_input(
    need: Need, topic: TopicSeen, policy: NodeSeen, until_s: float, alike: Sequence[str] = ()
) -> list[Finding]:
    """Judge a topic that the policy node listens to.

    Args:
        need: what the contract says of it.
        topic: what was seen of it.
        policy: the policy node, if it runs.
        until_s: end of listening, monotonic [s].
        alike: other topics of the wanted type that have publishers, for the hint.
    """
    what = f"{need.what} {topic.name}"
    found = [*_check_subscribed(what, topic, policy), *_check_publishers(what, need, topic, alike)]
    usable = [
        p for p in topic.publishers if p.type == need.type and not _conflict(p, need.reliability, need.durability)
    ]
    if usable:
        found += _check_flow(what, need, topic, until_s)
    return found


def _check_subscribed(what: str, topic: TopicSeen, policy: NodeSeen) -> list[Finding]:
    if policy.lifecycle in ("active", "inactive") and policy.subscribed and topic.name not in policy.subscribed:
        return [problem("POLICY_NOT_SUBSCRIBED", what, f"{policy.name} does not subscribe to it")]
    return []


def _check_publishers(what: str, need: Need, topic: TopicSeen, alike: Sequence[str]) -> list[Finding]:
    if not topic.publishers:
        hint = f"; published with this type: {', '.join(sorted(alike)[:5])}" if alike else ""
        return [problem("TOPIC_MISSING", what, "nobody publishes it", topic=need.topic, hint=hint)]
    found = []
    for p in topic.publishers:
        if p.type != need.type:
            text = f"{p.node} publishes {p.type}, the contract wants {need.type}"
            found.append(problem("TOPIC_TYPE", what, text, found=p.type, expected=need.type, node=p.node))
        elif conflict := _conflict(p, need.reliability, need.durability):
            wanted, offered = getattr(need, conflict), getattr(p, conflict)
            names = {"policy": conflict, "topic": need.topic, "node": p.node, "fit": offered, "other": wanted}
            text = f"policy_node asks for {wanted}, {p.node} offers {offered}"
            found.append(problem("TOPIC_QOS", what, text, **names))
    if len(topic.publishers) > 1 and not found:
        nodes = _names(topic.publishers)
        found.append(problem("TOPIC_PUBLISHERS", what, f"{len(topic.publishers)} publishers: {nodes}", nodes=nodes))
    return found


def _conflict(publisher: Endpoint, reliability: str, durability: str) -> str:
    """Return the policy by which a subscription does not match this publisher; empty if it does.

    DDS: what is asked for must not be stronger than what is offered.
    """
    if reliability == "reliable" and publisher.reliability == "best_effort":
        return "reliability"
    if durability == "transient_local" and publisher.durability == "volatile":
        return "durability"
    return ""


def _check_flow(what: str, need: Need, topic: TopicSeen, until_s: float) -> list[Finding]:
    samples, nodes = topic.samples, _names(topic.publishers)
    if not samples.arrivals_s:
        return [problem("TOPIC_SILENT", what, "no message came", nodes=nodes)]
    found = []
    gap_s, limit_s = samples.longest_gap_s(until_s), need.max_gap_s
    rate = f"{samples.rate_hz:.1f} Hz, longest silence {gap_s * 1e3:.0f} ms, allowed {limit_s * 1e3:.0f} ms"
    if samples.rate_hz * limit_s < 1.0 and gap_s > limit_s:
        found.append(problem("TOPIC_SLOW", what, rate, nodes=nodes, needed_hz=1.0 / limit_s))
    elif gap_s > limit_s:
        found.append(problem("TOPIC_GAPS", what, rate, nodes=nodes))
    code, reason = samples.complaint
    if code:
        found.append(problem("MESSAGE_UNUSABLE", what, f"{code}: {reason}", topic=topic.name))
    found += _check_stamps(what, need, topic)
    if need.what == "motion_enabled" and samples.last is not None and not samples.last.data:
        found.append(problem("MOTION_DISABLED", what, f"{nodes} says false", nodes=nodes))
    return found or [ok(what, rate)]


def _check_stamps(what: str, need: Need, topic: TopicSeen) -> list[Finding]:
    ages, nodes = topic.samples.ages_s, _names(topic.publishers)
    if need.timeline == "header" and topic.samples.unstamped:
        return [problem("STAMP_ZERO", what, "header.stamp is zero", nodes=nodes)]
    if not ages:
        return []
    age_s = statistics.median(ages)
    text = f"stamps lie {abs(age_s) * 1e3:.0f} ms in the {'past' if age_s >= 0 else 'future'} on arrival"
    if need.timeline == "receive":
        return [problem("STAMP_OFF", what, text)] if abs(age_s) > _OFF_S else []
    if age_s < -_FUTURE_S:
        return [problem("STAMP_FUTURE", what, text)]
    if age_s > need.max_gap_s:
        return [problem("STAMP_OLD", what, f"{text}, allowed {need.max_gap_s * 1e3:.0f} ms")]
    return []


def check_output(
    output: Output, topic: TopicSeen, control: str, *, commanding: bool, alike: Sequence[str] = ()
) -> list[Finding]:
    """Judge a command topic.

    Args:
        output: what the contract says of it.
        topic: what was seen of it.
        control: full name of the policy node's control process, the only node that may publish it.
        commanding: the policy node is active, so its control process must publish.
        alike: other topics of this type that have subscriptions, for the hint.
    """
    what, found = f"command {topic.name}", []
    foreign = [p for p in topic.publishers if p.node != control]
    ours = len(topic.publishers) - len(foreign)
    if foreign:
        nodes = _names(foreign)
        found.append(problem("COMMAND_FOREIGN_PUBLISHER", what, f"{nodes} publishes it too", nodes=nodes))
    if ours > 1:
        found.append(
            problem("COMMAND_FOREIGN_PUBLISHER", what, f"{ours} nodes named {control} publish it", nodes=control)
        )
    if commanding and not ours:
        found.append(problem("COMMAND_NO_PUBLISHER", what, f"{control} does not publish it"))
    if not topic.subscriptions:
        hint = f"; listened to with this type: {', '.join(sorted(alike)[:5])}" if alike else ""
        found.append(problem("COMMAND_UNHEARD", what, "nobody subscribes to it", hint=hint))
    offered = Endpoint(control, output.type, output.qos.reliability, output.qos.durability)
    for s in topic.subscriptions:
        found += _check_listener(what, output.topic, s, offered)
    listeners = _names(topic.subscriptions)
    return found or [ok(what, f"{control if ours else 'nobody yet'} -> {listeners}")]


def _check_listener(what: str, topic: str, listener: Endpoint, offered: Endpoint) -> list[Finding]:
    if listener.type != offered.type:
        text = f"{listener.node} listens for {listener.type}, the contract has {offered.type}"
        names = {"found": listener.type, "expected": offered.type, "node": listener.node}
        return [problem("TOPIC_TYPE", what, text, **names)]
    conflict = _conflict(offered, listener.reliability, listener.durability)
    if not conflict:
        return []
    wanted, ours = getattr(listener, conflict), getattr(offered, conflict)
    names = {"policy": conflict, "topic": topic, "node": listener.node, "fit": wanted, "other": ours}
    return [problem("TOPIC_QOS", what, f"{listener.node} asks for {wanted}, policy_node offers {ours}", **names)]


def _names(endpoints: Iterable[Endpoint]) -> str:
    return ", ".join(sorted({e.node for e in endpoints}))
