# SPDX-License-Identifier: Apache-2.0
"""From a draft to YAML for people: every value with what is known of it, ``TODO`` with what belongs there."""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml

from vla_contract.draft import ChannelDraft, Draft, ObservationDraft, OutputDraft, Said
from vla_policy_node.contract.open_values import TODO, meaning
from vla_ros.plain import printable

_COLUMN = 48
_HEAD = """\
# Robot contract, drafted by vla-contract init from {sources}.
# {todo} = a person who knows this robot has to fill it in; `vla-contract check FILE` lists what is left. No limit was guessed.
# Copy nothing from another robot without thinking: this file is what keeps this one from hurting somebody.
"""
_LIMITS = {"velocity": ("velocity", "acceleration"), "effort": ("effort", "effort_rate")}


def write(draft: Draft, sources: str) -> str:
    """Return the contract's text; ``sources``: what it was drafted from, in words."""
    lines = [_HEAD.format(sources=printable(sources), todo=TODO)]
    lines += [_line(0, "robot_type", _text(draft.robot_type)), _line(0, "fps", draft.fps), "", "observations:"]
    for observation in draft.observations:
        lines += _observation(observation)
    if not draft.observations:
        lines.append(_line(2, "observation.state", Said(), "nothing that could be one was seen"))
    lines += [f"# {printable(note)}" for note in draft.notes]
    lines += ["", "actions:", "  action:"]
    for output in draft.outputs:
        lines += _output(output)
    lines += ["", "safety:", "  motion_enabled:"]
    lines += [_line(4, key, Said()) for key in ("required", "timeout_s")]
    lines += [_line(2, "observation_max_age_ms", Said()), "  channels:"]
    lines += _channels(draft.channels)
    return "\n".join(lines) + "\n"


def _line(indent: int, key: str, said: Said, note: str = "") -> str:
    text = f"{' ' * indent}{_key(key)}: {said.value or TODO}"
    words = "; ".join(filter(None, [said.note or note, "" if said.value else meaning(key)]))
    return f"{text:<{_COLUMN}}# {printable(words)}" if words else text


def _key(key: str) -> str:
    return key if key.startswith("- ") else _quoted(key)


def _quoted(name: str) -> str:
    """Return a name as YAML reads it, on one line."""
    text = str(yaml.safe_dump(name, width=1000).removesuffix("\n...\n").strip())
    return json.dumps(name) if "\n" in text else text


def _item(indent: int, said: Said) -> str:
    text = f"{' ' * indent}- {_scalar(said)}"
    return f"{text:<{_COLUMN}}# {printable(said.note)}" if said.note else text


def _scalar(said: Said) -> str:
    """Names come from outside: quoted where YAML would take them for something else."""
    return TODO if said.value is None else _quoted(said.value)


def _observation(draft: ObservationDraft) -> list[str]:
    lines = [f"  {_key(draft.key)}:", "    channel:"]
    lines += [_line(6, "topic", _text(draft.topic)), _line(6, "type", draft.type), "    align:"]
    lines += ["      strategy: hold", _line(6, "timeline", draft.timeline)]
    if draft.resize is not None:
        size = draft.resize
        words = size.note if size.value else meaning("resize")
        return [*lines, f"{f'    apply: [resize: {size.value or TODO}]':<{_COLUMN}}# {words}"]
    return [*lines, "    select:", *(_item(6, said) for said in draft.select)]


def _output(draft: OutputDraft) -> list[str]:
    head = _line(8, "topic", _text(draft.topic))
    lines = ["    - channel:", head, _line(8, "type", draft.type), "      select:"]
    return [*lines, *(_item(8, said) for said in draft.select)]


def _text(said: Said) -> Said:
    return Said(None if said.value is None else _scalar(said), said.note)


def _channels(channels: Sequence[ChannelDraft]) -> list[str]:
    """Write the channels; those of a kind share what is said once."""
    lines: list[str] = []
    first: dict[tuple[str | None, str | None, bool], str] = {}
    for channel in channels:
        kind = channel.unit.value, channel.mode.value, channel.is_gripper
        if kind in first:
            lines += _alike(channel, first[kind])
            continue
        shared = sum((c.unit.value, c.mode.value, c.is_gripper) == kind for c in channels) > 1
        anchor = f"kind_{len(first) + 1}" if shared else ""
        first[kind] = anchor
        lines += _channel(channel, anchor)
    return lines


def _channel(channel: ChannelDraft, anchor: str) -> list[str]:
    bounds, rate = _LIMITS.get(channel.mode.value or "", ("position", "velocity"))
    lines = [f"{f'    - &{anchor}':<{_COLUMN}}# what others take with `<<: *{anchor}`"] if anchor else []
    own = _own(channel, [("unit", channel.unit), ("mode", channel.mode)])
    lines += own if anchor else [own[0].replace("      ", "    - ", 1), *own[1:]]
    lines.append(f"      limits: &{anchor}_limits" if anchor else "      limits:")
    lines += [_line(8, bounds, _bounds(channel)), _line(8, rate, _rate(channel)), _line(8, "step", Said())]
    lines += [_line(6, key, Said()) for key in ("hold", "max_decel", "hold_timeout_s", "rest_step")]
    if channel.measured is None:
        lines.append(_line(6, "downstream_timeout_ms", Said()))
    return lines


def _own(channel: ChannelDraft, more: Sequence[tuple[str, Said]] = ()) -> list[str]:
    measured = [("measured", channel.measured)] if channel.measured is not None else []
    return [_line(6, key, _text(said)) for key, said in [("name", channel.name), *more, *measured]]


def _alike(channel: ChannelDraft, anchor: str) -> list[str]:
    bounds = _LIMITS.get(channel.mode.value or "", ("position", "velocity"))[0]
    said = _bounds(channel)
    own = _line(8, bounds, said) if said.value or said.note else f"        {bounds}: {TODO}"
    limits = [f"        <<: *{anchor}_limits", own]
    return [f"    - <<: *{anchor}", *_own(channel), "      limits:", *limits]


def _bounds(channel: ChannelDraft) -> Said:
    limit = channel.limit
    if limit is None or channel.mode.value in _LIMITS:
        return Said(note=channel.data)
    note = f"[{limit.unit}] robot description: the joint's stops; narrow it to where the task is"
    return Said(f"[{limit.low:g}, {limit.high:g}]", "; ".join(filter(None, [note, channel.data])))


def _rate(channel: ChannelDraft) -> Said:
    known = channel.limit is not None and channel.limit.velocity > 0 and channel.mode.value not in _LIMITS
    return Said(note=f"the description allows {channel.limit.velocity:g}" if known and channel.limit else "")
