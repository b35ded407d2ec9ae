# SPDX-License-Identifier: Apache-2.0
"""Every problem the doctor knows: how bad it is, what it means, what to do.

``python -m vla_doctor.catalog`` writes docs/doctor.md.
Names in braces are filled in by the check that found the problem.
"""

from __future__ import annotations

import string
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A problem. ``level`` is WARN or FAIL."""

    level: str
    meaning: str
    remedy: str


_GHOST = "a node killed just now stays in the graph for up to 20 s: look again then"

RULES = {
    # -- contract
    "CONTRACT_UNKNOWN": Rule(
        "FAIL",
        "No contract was named and no policy node runs that could be asked for its own; topics were not checked.",
        "give --contract FILE, or start policy_node",
    ),
    "CONTRACT_BROKEN": Rule(
        "FAIL",
        "The robot contract cannot be read or does not say what it must; the text names file and key.",
        "correct that key in {file}; the commented example is config/sim_arm.contract.yaml",
    ),
    # -- a recorded list of topics (--topics)
    "TOPICS_UNREADABLE": Rule(
        "FAIL", "The recorded list of topics cannot be read.", "record it on the robot: ros2 topic list -t > topics.txt"
    ),
    "NAMESPACE_DIFFERS": Rule(
        "FAIL",
        "The list has the contract's topics, all of them, in another namespace than the policy's.",
        "start the policy there (ros2 launch … namespace:={namespace}, doctor --namespace {namespace}), "
        "or write full names into the contract",
    ),
    # -- topics that the policy needs
    "MESSAGE_TYPE_UNKNOWN": Rule(
        "FAIL",
        "The contract names a message type that is not installed here.",
        "install the package (apt install ros-$ROS_DISTRO-{package}) and source the workspace again",
    ),
    "TOPIC_MISSING": Rule(
        "FAIL",
        "Nobody publishes a topic that the contract needs.",
        "start its driver, or correct `topic` in the contract, or remap policy_node (-r {topic}:=NAME){hint}",
    ),
    "TOPIC_TYPE": Rule(
        "FAIL",
        "Both sides of a topic use different message types: nothing flows.",
        "set `type: {found}` in the contract if that is the topic you mean, or let {node} use {expected}",
    ),
    "TOPIC_QOS": Rule(
        "FAIL",
        "Publisher and subscription are incompatible: nothing flows.",
        "set `qos: {{{policy}: {fit}}}` for {topic} in the contract, or let {node} use {other}",
    ),
    "TOPIC_SILENT": Rule(
        "FAIL",
        "A topic has a publisher, but no message came while the doctor listened.",
        "look why {nodes} does not publish (its log, its device); across machines: firewall, ROS_DOMAIN_ID, discovery range",
    ),
    "TOPIC_SLOW": Rule(
        "FAIL",
        "Messages come too seldom: between two of them the observation becomes too old and the robot holds.",
        "raise the rate of {nodes} above {needed_hz:.3g} Hz, or `align.tolerance_ms` / `safety.observation_max_age_ms` "
        "(`motion_enabled.timeout_s`) in the contract if the robot is slow enough for that",
    ),
    "TOPIC_GAPS": Rule(
        "WARN",
        "The mean rate suffices, but one silence was longer than the contract allows: the robot would have held.",
        "look for load or a bad link at {nodes}; listen longer (--seconds 30) to see how often it happens",
    ),
    "TOPIC_PUBLISHERS": Rule(
        "WARN",
        "Several nodes publish one observation: the policy sees them in turn.",
        "stop all but one of {nodes}, or give them topics of their own",
    ),
    "MESSAGE_UNUSABLE": Rule(
        "FAIL",
        "Messages of the right type do not hold what the contract promises (joint names, picture encoding, numbers).",
        "make `select` and `type` of {topic} in the contract say what the message holds (ros2 topic echo --once {topic})",
    ),
    "STAMP_ZERO": Rule(
        "FAIL",
        "The contract ages this observation by its stamp, but the stamp is zero.",
        "let {nodes} fill header.stamp, or set `align.timeline: receive`",
    ),
    "STAMP_OLD": Rule(
        "FAIL",
        "Stamps are older on arrival than the contract allows: every observation counts as stale.",
        "synchronise the clocks of both computers (chrony), look at use_sim_time on both sides, or set `align.timeline: receive`",
    ),
    "STAMP_FUTURE": Rule(
        "FAIL",
        "Stamps lie in the future: ages computed from them mean nothing.",
        "synchronise the clocks of both computers (chrony) and look at use_sim_time on both sides",
    ),
    "STAMP_OFF": Rule(
        "WARN",
        "Stamps differ from ROS time by more than a second. This contract ages by arrival, so they do no harm yet.",
        "synchronise the clocks or look at use_sim_time before anything relies on these stamps",
    ),
    "POLICY_NOT_SUBSCRIBED": Rule(
        "WARN",
        "The running policy node does not listen to this topic: it was started with other remappings or another contract.",
        "give the doctor the same remappings (-r) and contract as policy_node",
    ),
    "MOTION_DISABLED": Rule(
        "WARN",
        "`motion_enabled` says false: nothing is commanded, which may be just what is wanted.",
        "release the robot (emergency stop, enabling switch) where {nodes} gets its flag from; then call resume",
    ),
    # -- commands
    "COMMAND_FOREIGN_PUBLISHER": Rule(
        "FAIL",
        "Somebody else commands the robot beside the policy node's control process.",
        "stop {nodes} or give it another topic; if it is an old control process: " + _GHOST,
    ),
    "COMMAND_NO_PUBLISHER": Rule(
        "FAIL",
        "policy_node is active, but its control process does not publish this command.",
        "look at policy_node's log for the control process; check that the doctor has the same remappings (-r)",
    ),
    "COMMAND_UNHEARD": Rule(
        "FAIL",
        "Nobody listens to a command topic: the robot will not move.",
        "start the robot's controller, or correct `topic` in the contract's actions{hint}",
    ),
    # -- nodes
    "NAMESPACE_UNCLEAR": Rule(
        "FAIL",
        "Several policy nodes run, none of them in the doctor's namespace.",
        "say which one: --namespace NS with one of {choices}",
    ),
    "POLICY_ABSENT": Rule(
        "FAIL",
        "No policy node runs in this namespace.",
        "start it (ros2 launch vla_ota robot.launch.py contract:=FILE), or give --namespace (or --before-start)",
    ),
    "MANAGER_ABSENT": Rule(
        "WARN",
        "No ota_manager runs in this namespace: the policy runs, but nothing updates it.",
        "start it (ros2 launch vla_ota robot.launch.py starts both)",
    ),
    "NODE_TWICE": Rule(
        "FAIL",
        "Two nodes of one name share a namespace: they answer each other's calls.",
        "stop one, or start it in a namespace of its own; " + _GHOST,
    ),
    "NODE_UNANSWERING": Rule(
        "FAIL",
        "A node is in the graph but does not answer.",
        "look at its log; if it hangs, restart it (the robot holds meanwhile)",
    ),
    "STATUS_SILENT": Rule(
        "FAIL",
        "A node's status does not come once a second: it hangs, or its messages do not get here.",
        "look at its log; is `ros2 topic echo {topic}` silent too?",
    ),
    "POLICY_UNCONFIGURED": Rule(
        "FAIL",
        "policy_node could not be, or was not yet, configured; its message says why.",
        "correct what the message names, then: ros2 lifecycle set {node} configure && ros2 lifecycle set {node} activate",
    ),
    "POLICY_FINALIZED": Rule(
        "FAIL",
        "policy_node was shut down by a lifecycle transition: it commands nothing and cannot be configured again.",
        "end its process and start it again (ros2 launch starts it again by itself, unless respawn:=false)",
    ),
    "POLICY_NOT_LOADED": Rule(
        "FAIL",
        "policy_node has no policy that could act, and an error says why.",
        "correct what the error names (docs/errors.md), then send an update that loads, or restart {node}",
    ),
    "POLICY_INACTIVE": Rule(
        "WARN", "policy_node is configured but not active: it commands nothing.", "ros2 lifecycle set {node} activate"
    ),
    "POLICY_ERROR": Rule(
        "FAIL", "The control process could not be kept alive.", "read policy_node's log, then restart it"
    ),
    "POLICY_HOLDING": Rule("WARN", "The robot holds.", "{action}"),
    "POLICY_LAST_ERROR": Rule(
        "WARN",
        "policy_node reports an error.",
        "look the code up in docs/errors.md; it goes away with the next success",
    ),
    "TICKS_MISSED": Rule(
        "WARN",
        "More than one in a thousand commands came over a period late since the node started.",
        "take load off this computer, lower the contract's rate, or allow SCHED_FIFO if a warning says that it is refused",
    ),
    "MANAGER_LAST_ERROR": Rule(
        "WARN",
        "The manager's last update or command went wrong; the robot kept its policy.",
        "look the code up in docs/errors.md; it goes away with the next success",
    ),
    "VERSION_DAMAGED": Rule(
        "WARN",
        "A version on disk is not what its manifest says: it cannot be loaded. The manager's /diagnostics name the files.",
        "send an update to that version again: it is repaired, and only what is damaged is fetched; check the disk (dmesg)",
    ),
    "RECORDINGS_NO_ROOM": Rule(
        "WARN",
        "The recorder has no room to write: the next hold leaves no recording.",
        "make room on the disk of {folder}, or lower min_free_bytes of recorder, or name another recording_dir",
    ),
    "SOURCES_EMPTY": Rule(
        "WARN",
        "`allowed_sources` is empty: every update is refused.",
        "set allowed_sources of ota_manager to your server's URL prefix, for example ['https://models.example.org/']",
    ),
    "ROBOT_TYPE_DIFFERS": Rule(
        "FAIL",
        "The manager accepts bundles for another robot type than the contract's.",
        "set robot_type of ota_manager to {robot_type!r}",
    ),
    "STORE_DIFFERS": Rule(
        "FAIL",
        "policy_node and ota_manager use different stores: after a restart the robot runs something else.",
        "give both nodes the same store_dir",
    ),
    # -- workers
    "WORKER_PYTHON_MISSING": Rule(
        "FAIL",
        "The interpreter of the workers cannot be started.",
        "set worker_python of policy_node to an interpreter that exists and has torch (a virtual environment's bin/python)",
    ),
    "WORKER_IMPORT": Rule(
        "FAIL",
        "The workers' interpreter lacks a module: no policy can be loaded.",
        "{python} -m pip install {modules}, or set worker_python to an interpreter that has them",
    ),
    "WORKER_SLOW": Rule(
        "WARN",
        "The workers' interpreter did not come up with its imports in time.",
        "start it by hand ({python} -c 'import torch') and see what it waits for",
    ),
    "WORKER_DEVICE": Rule(
        "FAIL",
        "The policy's device is not usable from the workers' interpreter.",
        "install the driver and a torch that fits it, or set `device: cpu`",
    ),
    "WORKER_PATH_MISSING": Rule(
        "FAIL", "A folder of worker_paths is not there.", "correct worker_paths of policy_node"
    ),
    "WORKER_HOST": Rule(
        "FAIL",
        "The worker host, on which this robot's policies run, does not let it in; the text says why.",
        "see {cause} in docs/errors.md: start vla_ota_worker_host there, or correct worker_host and worker_tls of policy_node",
    ),
    # -- machine
    "MEMORY_SHORT": Rule(
        "FAIL",
        "Memory does not suffice for two policies (one with load_in_place) and the reserve: an update would fail.",
        "free {missing_mib:.0f} MiB, use smaller policies, set load_in_place, or lower --memory-reserve-bytes if you know better",
    ),
    "FIFO_REFUSED": Rule(
        "WARN",
        "The control loop may not run under SCHED_FIFO: other load delays commands by milliseconds.",
        "add `{user} - rtprio {priority}` to /etc/security/limits.d/vla_ota.conf and log in again "
        "(systemd: LimitRTPRIO={priority}; Docker: --ulimit rtprio={priority})",
    ),
    "MEMLOCK_LOW": Rule(
        "WARN",
        "The control process may not lock its memory: a page fault can delay a command.",
        "add `{user} - memlock unlimited` to /etc/security/limits.d/vla_ota.conf and log in again "
        "(systemd: LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1)",
    ),
    "SHM_SEGMENT_SMALL": Rule(
        "WARN",
        "Pictures do not fit Fast DDS's shared-memory segment several times: some are lost.",
        "export FASTRTPS_DEFAULT_PROFILES_FILE=$(ros2 pkg prefix vla_ota)/share/vla_ota/config/fastdds.xml "
        "for camera drivers and policy_node",
    ),
    "DDS_PROFILE_UNREADABLE": Rule(
        "WARN",
        "The Fast DDS profile that the environment names cannot be read: Fast DDS ignores it.",
        "correct FASTRTPS_DEFAULT_PROFILES_FILE",
    ),
    "CLOCK_WRONG": Rule(
        "FAIL",
        "The wall clock is not set: signatures and updates expire by it.",
        "set the clock (chrony or systemd-timesyncd; a robot without a battery clock needs the network at start)",
    ),
    # -- store
    "STORE_UNNAMED": Rule(
        "WARN",
        "No store_dir was named: the store was not checked.",
        "give --store-dir, or start ota_manager with store_dir",
    ),
    "STORE_MISSING": Rule(
        "FAIL", "The store's folder is not there.", "start ota_manager once (it makes the folder), or correct store_dir"
    ),
    "STORE_READ_ONLY": Rule(
        "FAIL",
        "A file cannot be written and flushed in the store by this user.",
        "give {user} the folder (chown -R {user} {path}), remount the disk writable, or look for disk errors (dmesg)",
    ),
    "STORE_LAYOUT": Rule(
        "FAIL",
        "Blobs lie on another file system than the store: versions are hard links to them.",
        "put blob_dir and store_dir on one file system",
    ),
    "DISK_SHORT": Rule(
        "FAIL",
        "Less than min_free_bytes is free: no update can be fetched.",
        "free {missing_mib:.0f} MiB, or lower keep_versions or min_free_bytes of ota_manager",
    ),
    "DISK_TIGHT": Rule(
        "WARN",
        "An update of the size of the largest bundle would not fit above min_free_bytes.",
        "free {missing_mib:.0f} MiB, or lower keep_versions or min_free_bytes of ota_manager",
    ),
    "CURRENT_MISSING": Rule(
        "WARN",
        "Nothing has been committed yet: policy_node starts from model_path, or with no policy.",
        "send a first update, or set model_path of policy_node to a bundle",
    ),
    "CURRENT_BROKEN": Rule(
        "FAIL",
        "`current` does not name a complete bundle: policy_node cannot start from it.",
        "restart ota_manager (it repairs `current` from what is on disk); if it stays, install the version again; check the disk",
    ),
    "CURRENT_DIFFERS": Rule(
        "FAIL",
        "`current` names another bundle than the one state.json says is committed.",
        "restart ota_manager: it puts `current` right",
    ),
    "CURRENT_UNFIT": Rule(
        "FAIL",
        "The committed bundle does not fit the contract: policy_node refuses it.",
        "install a bundle made for this robot, or correct the contract",
    ),
    "STATE_MISSING": Rule(
        "WARN",
        "The store has versions but no state.json: what is committed, blocked and pinned is not known.",
        "start ota_manager: it makes a new state from `current`; block bad versions again",
    ),
    "STATE_CORRUPT": Rule(
        "FAIL",
        "state.json cannot be used.",
        "restart ota_manager: it rebuilds the state from state.json.old and `current` and says what it lost; check the disk",
    ),
    "PARTIALS_LEFT": Rule(
        "WARN",
        "Interrupted downloads lie in the store and no update is under way that would use them.",
        "send the update again to resume them, or let the next update's end remove them",
    ),
}


def page() -> str:
    """Return docs/doctor.md."""
    rows = "\n".join(
        f"| `{code}` | {rule.level} | {rule.meaning} | {_shown(rule.remedy)} |" for code, rule in RULES.items()
    )
    return f"""# What the doctor finds, and what to do

`ros2 run vla_ota doctor` prints a line a check, `ok|warn|FAIL  what  finding  -> what to do`, and ends with 1 if one failed.
It publishes nothing and writes nothing but an unnamed file that is gone when it is closed (to see that the store can be flushed).
Run it on the robot's computer, as the user of the nodes, with their environment: it sees its own limits, clock and folders.
At a desk `doctor --contract FILE --topics topics.txt` checks topics, types and namespace alone, against what `ros2 topic list -t`
said on the robot; `examples/` has such a list beside each robot's contract.
This page is written by `python -m vla_doctor.catalog`.

| code | | meaning | what to do |
|---|---|---|---|
{rows}
"""


def _shown(template: str) -> str:
    """Return a remedy for reading: what a check would fill in stands there in capitals."""
    words = {name: _Word(name.upper()) for _, name, _, _ in string.Formatter().parse(template) if name}
    fixed = {"hint": "", "action": "what [Why the robot holds](errors.md#why-the-robot-holds) says of its reason"}
    return template.format(**{**words, **fixed}).replace("|", "\\|")


class _Word(str):
    """Stays what it is, whatever format a number would get."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return str(self)


if __name__ == "__main__":
    sys.stdout.write(page())
