# SPDX-License-Identifier: Apache-2.0
"""A contract of which some values are known and the others are not yet."""

from __future__ import annotations

from dataclasses import dataclass

from vla_contract.seen import JointLimit


@dataclass(frozen=True)
class Said:
    """A value, and what is known about it."""

    value: str | None = None  # as it stands in YAML; None = a person has to fill it in
    note: str = ""  # where the value comes from, or what there is to choose from


@dataclass(frozen=True)
class ObservationDraft:
    """One feature with its topic."""

    key: str
    topic: Said
    type: Said
    timeline: Said
    select: tuple[Said, ...] = ()  # of numbers
    resize: Said | None = None  # of a picture


@dataclass(frozen=True)
class OutputDraft:
    """One command topic."""

    topic: Said
    type: Said
    select: tuple[Said, ...]


@dataclass(frozen=True)
class ChannelDraft:
    """One number of a command."""

    name: Said
    unit: Said
    mode: Said
    measured: Said | None  # None = the channel needs none
    limit: JointLimit | None = None
    data: str = ""  # range of its values in the dataset, for people

    @property
    def is_gripper(self) -> bool:
        """Whether it is unlike the arm's joints, to judge by its name."""
        return any(word in (self.name.value or "").lower() for word in ("grip", "finger", "jaw", "knuckle", "hand"))


@dataclass(frozen=True)
class Draft:
    """The whole contract."""

    robot_type: Said
    fps: Said
    observations: tuple[ObservationDraft, ...]
    outputs: tuple[OutputDraft, ...]
    channels: tuple[ChannelDraft, ...]
    notes: tuple[str, ...] = ()  # what else was seen
