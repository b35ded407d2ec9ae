# SPDX-License-Identifier: Apache-2.0
"""Whether a contract's topics are in a recorded list, the output of ``ros2 topic list -t``: a check at a desk, without the robot.

A list says neither who publishes nor how often: what the doctor finds on the running robot is not found here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_doctor.findings import Finding, ok, problem
from vla_doctor.seen import needs
from vla_doctor.settings import DoctorSettings
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.errors import ContractError

_LINE = re.compile(r"(/[A-Za-z0-9_/]+) \[([A-Za-z0-9_/, ]+)\]")
_MAX_BYTES = 1 << 20

Topics = Mapping[str, frozenset[str]]
"""Full name → message types."""


@dataclass(frozen=True)
class _Wanted:
    """A topic of the contract."""

    what: str
    topic: str  # as the contract has it
    type: str
    code: str  # of the finding if it is not in the list


def examine_list(full_name: Callable[[str, str], str], namespace: str, settings: DoctorSettings) -> list[Finding]:
    """Check ``settings.contract`` against ``settings.topics``.

    ``full_name(topic, namespace)`` expands and remaps a topic as the policy node does.
    """
    if not settings.contract:
        return [problem("CONTRACT_UNKNOWN", "contract", "none was named")]
    try:
        contract = load_contract(settings.contract)
    except ContractError as e:
        return [problem("CONTRACT_BROKEN", "contract", f"{e.code}: {e}", file=settings.contract)]
    try:
        listed = read_topics(settings.topics)
    except (OSError, UnicodeDecodeError, ValueError) as e:
        return [problem("TOPICS_UNREADABLE", "topics", f"{settings.topics}: {e}")]
    found = [ok("contract", f"{settings.contract}: {contract.name}, against {len(listed)} topics in {settings.topics}")]
    wanted = _wanted(contract)
    elsewhere = _elsewhere(wanted, listed, lambda topic: full_name(topic, namespace))
    if elsewhere:
        text = f"{len(wanted)} topics are looked for in {namespace}; the list has them below {elsewhere}"
        found.append(problem("NAMESPACE_DIFFERS", "namespace", text, namespace=elsewhere))
        namespace = elsewhere
    names = Path(settings.topics).name
    return found + [f for w in wanted for f in _check(w, full_name(w.topic, namespace), listed, names)]


def read_topics(file: str) -> Topics:
    """Read the output of ``ros2 topic list -t``; lines that begin with # are comments. Raises OSError, ValueError."""
    with Path(file).open("rb") as stream:
        text = stream.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"is larger than {_MAX_BYTES >> 20} MB")
    found: dict[str, frozenset[str]] = {}
    for number, line in enumerate(text.decode().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"line {number} is not `/topic [package/msg/Type]`: {line[:80]}")
        found[match[1]] = frozenset(kind.strip() for kind in match[2].split(","))
    if not found:
        raise ValueError("names no topic")
    return found


def _wanted(contract: Contract) -> list[_Wanted]:
    inputs = [_Wanted(need.what, need.topic, need.type, "TOPIC_MISSING") for need, _ in needs(contract)]
    return inputs + [_Wanted("command", o.topic, o.type, "COMMAND_UNHEARD") for o in contract.outputs]


def _elsewhere(wanted: Iterable[_Wanted], listed: Topics, full_name: Callable[[str], str]) -> str:
    """Return the one namespace that has every relative topic that is not where it should be; empty if there is none."""
    homes: set[str] | None = None
    for w in wanted:
        if w.topic.startswith(("/", "~")):
            continue
        if full_name(w.topic) in listed:
            return ""
        here = {name.removesuffix(f"/{w.topic}") for name in listed if name.endswith(f"/{w.topic}")}
        homes = here if homes is None else homes & here
    return homes.pop() if homes is not None and len(homes) == 1 else ""


def _check(wanted: _Wanted, name: str, listed: Topics, file: str) -> list[Finding]:
    what = f"{wanted.what} {name}"
    if name not in listed:
        return [problem(wanted.code, what, f"it is not in {file}", topic=wanted.topic, hint=_hint(wanted, listed))]
    if wanted.type not in listed[name]:
        kinds = ", ".join(sorted(listed[name]))
        text = f"it is {kinds} in {file}, the contract wants {wanted.type}"
        return [problem("TOPIC_TYPE", what, text, found=kinds, expected=wanted.type, node="its node")]
    return [ok(what, wanted.type)]


def _hint(wanted: _Wanted, listed: Topics) -> str:
    """Return which topics might be meant: of the same name elsewhere, or of the same type."""
    base = wanted.topic.rpartition("/")[2]
    same = [n for n in listed if n.endswith((f"/{wanted.topic.lstrip('/')}", f"/{base}"))]
    if same:
        return f"; the list has {', '.join(sorted(same)[:5])}"
    alike = sorted(n for n, kinds in listed.items() if wanted.type in kinds)
    close = difflib.get_close_matches(wanted.topic, alike, 5, 0.0)
    return f"; the list has with this type: {', '.join(close)}" if close else ""
