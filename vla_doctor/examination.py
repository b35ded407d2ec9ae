# SPDX-License-Identifier: Apache-2.0
"""The whole examination: look, listen, judge. ROS is behind ``ros/doctor.py``."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.manifest import load_manifest
from vla_doctor import machine, nodes, storage, topics, worker
from vla_doctor.findings import Finding, ok, problem
from vla_doctor.seen import Need, NodeSeen, Samples, needs, with_defaults
from vla_doctor.settings import DoctorSettings
from vla_ota_manager.config import OtaConfig
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.decoding import Decoder
from vla_policy_node.errors import ContractError
from vla_policy_node.worker.memory import available_bytes
from vla_recorder.settings import RecorderSettings
from vla_ros.interfaces import UnknownTypeError

if TYPE_CHECKING:
    from vla_doctor.ros.doctor import Doctor

_LOOKS = 2
"""How often the graph is looked at, where it grows meanwhile."""
_RECORDER = "recorder"
_FIRST_MESSAGE_S = 3.0
"""Longest wait for the first message of a topic that somebody publishes [s]."""


@dataclass
class _Names:
    """Full names in the namespace that is examined."""

    namespace: str
    policy: str
    manager: str
    recorder: str


@dataclass
class _Input:
    """A topic of the contract that is being listened to."""

    need: Need
    name: str
    samples: Samples = field(default_factory=Samples)


def examine(robot: Doctor, settings: DoctorSettings) -> list[Finding]:
    """Examine everything; takes ``settings.seconds`` and the time of discovery and of starting an interpreter.

    A graph that has grown meanwhile was not yet discovered when its nodes were looked for: it is looked at once more.
    """
    robot.discover(() if settings.before_start else (_base(settings.policy_node), _base(settings.ota_manager)))
    for left in range(_LOOKS, 0, -1):
        before = Counter(robot.node_names())
        findings, policy, manager, contract = _look(robot, settings)
        if left == 1 or Counter(robot.node_names()) <= before:
            break
        robot.stop_listening()
    findings += machine.check_clock(time.time())
    return findings + _judge_machine(settings, policy, manager, contract)


def _look(robot: Doctor, settings: DoctorSettings) -> tuple[list[Finding], NodeSeen, NodeSeen, Contract | None]:
    """Ask the nodes, listen to the topics and judge both."""
    names, findings = _locate(robot, settings)
    policy = _ask(robot, names.policy, PolicyNodeConfig, lifecycle=True)
    manager = _ask(robot, names.manager, OtaConfig)
    if (policy.parameters or {}).get("use_sim_time"):
        robot.use_sim_time()
    contract, more = _contract(settings, policy)
    findings += more
    inputs, more = _listen_to_inputs(robot, contract, names)
    findings += more
    policy_samples = _listen_to_status(robot, policy, "vla_ota/msg/PolicyStatus")
    manager_samples = _listen_to_status(robot, manager, "vla_ota/msg/ModelStatus")

    # Connections take their time: the silence before the first message is not the publisher's.
    published = [i.samples for i in inputs if robot.topic(i.name).publishers]
    robot.wait(_FIRST_MESSAGE_S, lambda: all(samples.arrivals_s for samples in published))
    for samples in published:
        samples.since_s = time.monotonic()
    robot.wait(settings.seconds)

    until_s = time.monotonic()
    policy = _with_status(robot, policy, policy_samples)
    manager = _with_status(robot, manager, manager_samples)
    findings += _judge_topics(robot, contract, inputs, names, policy, until_s, settings)
    listened_s, early = settings.seconds, settings.before_start
    findings += nodes.check_policy_node(policy, listened_s=listened_s, before_start=early)
    findings += nodes.check_manager(manager, listened_s=listened_s, before_start=early)
    findings += nodes.check_agreement(policy, manager, contract)
    findings += nodes.check_recorder(_ask(robot, names.recorder, RecorderSettings))
    largest = max((i.samples.largest_bytes for i in inputs), default=0)
    findings += machine.check_middleware(robot.rmw, os.environ, largest)
    return findings, policy, manager, contract


def _locate(robot: Doctor, settings: DoctorSettings) -> tuple[_Names, list[Finding]]:
    """Return the nodes' names: in the doctor's namespace, or where the only policy node is."""
    base = _base(settings.policy_node)
    namespace, everybody, findings = robot.namespace, sorted(set(robot.node_names())), []
    if settings.policy_node.startswith("/"):
        namespace = settings.policy_node.rpartition("/")[0] or "/"
    elif _join(namespace, base) not in everybody and namespace == "/":
        elsewhere = [name.rpartition("/")[0] for name in everybody if _base(name) == base]
        if len(elsewhere) == 1:
            namespace = elsewhere[0]
            findings.append(ok("namespace", f"{namespace}, the only one with a {base}"))
        elif elsewhere:
            choices = ", ".join(elsewhere)
            findings.append(problem("NAMESPACE_UNCLEAR", "namespace", f"{base} runs in {choices}", choices=choices))
    others = (_join(namespace, name) for name in (base, settings.ota_manager, _RECORDER))
    return _Names(namespace, *others), findings


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _join(namespace: str, name: str) -> str:
    return name if name.startswith("/") else f"{namespace.rstrip('/')}/{name}"


def _ask(robot: Doctor, name: str, settings: type[Any], *, lifecycle: bool = False) -> NodeSeen:
    count = robot.node_names().count(name)
    if not count:
        return NodeSeen(name)
    wanted = [f.name for f in dataclasses.fields(settings)] + ["use_sim_time"]
    state = robot.lifecycle(name) if lifecycle else ""
    return NodeSeen(name, count, robot.parameters(name, wanted), state, subscribed=robot.subscribed_by(name))


def _contract(settings: DoctorSettings, policy: NodeSeen) -> tuple[Contract | None, list[Finding]]:
    file = settings.contract or (policy.parameters or {}).get("contract") or ""
    if not file:
        return None, [problem("CONTRACT_UNKNOWN", "contract", "none was named")]
    try:
        contract = load_contract(file)
    except ContractError as e:
        return None, [problem("CONTRACT_BROKEN", "contract", f"{e.code}: {e}", file=file)]
    if (policy.parameters or {}).get("shadow_only"):
        contract = contract.in_shadow()
    parts = f"{len(contract.observations)} observations, {len(contract.channels)} channels, {contract.rate_hz:g} Hz"
    return contract, [ok("contract", f"{file}: {contract.name}, {parts}")]


def _listen_to_inputs(robot: Doctor, contract: Contract | None, names: _Names) -> tuple[list[_Input], list[Finding]]:
    inputs: list[_Input] = []
    findings = []
    for need, source in needs(contract) if contract else []:
        name = robot.full_name(need.topic, _base(names.policy), names.namespace)
        try:
            samples = robot.listen(name, need.type, None if source is None else Decoder(source).read)
        except UnknownTypeError as e:
            package = need.type.partition("/")[0].replace("_", "-")
            what = f"{need.what} {name}"
            findings.append(problem("MESSAGE_TYPE_UNKNOWN", what, str(e), package=package))
            continue
        inputs.append(_Input(need, name, samples))
    return inputs, findings


def _listen_to_status(robot: Doctor, node: NodeSeen, kind: str) -> Samples:
    return robot.listen_to_status(f"{node.name}/status", kind) if node.count else Samples()


def _with_status(robot: Doctor, node: NodeSeen, samples: Samples) -> NodeSeen:
    if not node.count:
        return node
    return dataclasses.replace(node, status=robot.topic(f"{node.name}/status", samples))


def _judge_topics(
    robot: Doctor,
    contract: Contract | None,
    inputs: list[_Input],
    names: _Names,
    policy: NodeSeen,
    until_s: float,
    settings: DoctorSettings,
) -> list[Finding]:
    findings = []
    for entry in inputs:
        alike = robot.topics_of_type(entry.need.type, published=True)
        seen = robot.topic(entry.name, entry.samples)
        findings += topics.check_input(entry.need, seen, policy, until_s, alike)
    if (policy.parameters or {}).get("shadow_only"):
        return [*findings, ok("commands", f"{policy.name} commands nothing: shadow_only")]
    for output in contract.outputs if contract else ():
        name = robot.full_name(output.topic, _base(names.policy), names.namespace)
        alike = robot.topics_of_type(output.type, published=False)
        commanding = policy.lifecycle == "active"
        namespace, _, node = names.policy.rpartition("/")
        control = f"{namespace}/_{node}_control"
        seen = robot.topic(name)
        others = tuple(s for s in seen.subscriptions if s.node != names.recorder)  # it only looks on
        seen = dataclasses.replace(seen, subscriptions=others)
        findings += topics.check_output(output, seen, control, commanding=commanding, alike=alike)
    return findings


def _judge_machine(
    settings: DoctorSettings, policy: NodeSeen, manager: NodeSeen, contract: Contract | None
) -> list[Finding]:
    ours, theirs = with_defaults(PolicyNodeConfig, policy.parameters), with_defaults(OtaConfig, manager.parameters)
    folder = settings.store_dir or theirs["store_dir"] or ours["store_dir"]
    store = Path(folder).expanduser() if folder else None
    probe = worker.probe_worker(policy.parameters)
    findings = worker.check_worker(probe, policy.parameters)
    findings += worker.check_worker_host(ours["worker_host"], ours["worker_tls"])
    bundle = max(storage.largest_bundle(store) if store else 0, _bundle_size(ours["model_path"]))
    findings += machine.check_memory(
        available_bytes(),
        0 if ours["worker_host"] else bundle,
        probe.peak_bytes,
        _resident(policy),
        settings.memory_reserve_bytes,
        generations=1 if ours["load_in_place"] else 2,
    )
    priority = ours["fifo_priority"]
    findings += machine.check_privileges(machine.probe_privileges(priority), priority)
    if store is None:
        return [*findings, problem("STORE_UNNAMED", "store", "no store_dir was named")]
    return findings + storage.check_store(store, manager.parameters, contract, before_start=settings.before_start)


def _bundle_size(path: str) -> int:
    try:
        return load_manifest(path).total_bytes if path else 0
    except (CheckpointError, OSError):
        return 0


def _resident(policy: NodeSeen) -> int:
    """Return how many generations the policy node has loaded."""
    status = policy.status.samples.last if policy.status is not None else None
    if status is None:
        return 0
    prepared = "" if status.load_in_place else status.prepared_digest
    return len({d for d in (status.active_digest, status.standby_digest, prepared) if d})
