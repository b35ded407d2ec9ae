# SPDX-License-Identifier: Apache-2.0
"""Which name of one side is meant by which of the other, where there is only one way."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from vla_contract.draft import Said
from vla_contract.seen import Topic

A = TypeVar("A")
B = TypeVar("B")


def find_joint(name: str, joints: Collection[str]) -> str | None:
    """Return the joint of that name; ``shoulder_pan`` is also ``shoulder_pan_joint`` where there is only one such."""
    if name in joints:
        return name
    alike = [joint for joint in joints if _plain(joint) == _plain(name)]
    return alike[0] if len(alike) == 1 else None


def _plain(joint: str) -> str:
    return re.sub(r"_joint$", "", joint.lower())


def only_pairs(left: Sequence[A], right: Sequence[B], fit: Callable[[A, B], bool]) -> list[tuple[A, B]]:
    """Return the pairs that fit and of which neither side fits anything else."""
    fits = [(a, b) for a in left for b in right if fit(a, b)]
    return [
        (a, b) for a, b in fits if sum(x is a for x, _ in fits) == 1 and sum(y is b for _, y in fits) == 1
    ]  # fmt: skip


def relative(name: str, namespace: str) -> str:
    """Return a full topic name as a contract of a policy in ``namespace`` should have it."""
    below = namespace.rstrip("/") + "/"
    return name.removeprefix(below) if name.startswith(below) else name


def choices(topics: Collection[Topic]) -> str:
    """Return what there is to choose from, in words; empty if there is nothing."""
    return "one of " + ", ".join(sorted(t.name for t in topics)) if topics else ""


def timeline(topic: Topic | None) -> Said:
    """Return how the ages of a topic's messages are to be counted."""
    if topic is None or not topic.rate_hz:
        return Said()
    return Said("header" if topic.stamped else "receive")
