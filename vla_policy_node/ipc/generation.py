# SPDX-License-Identifier: Apache-2.0
"""A loaded generation as other processes see it: what it is, and the memory and descriptors through which it is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import chunk_layout, request_layout

CHUNK_SLOTS = 8
REQUEST_SLOTS = 8


@dataclass(frozen=True)
class GenerationHandle:
    """One worker's chunk and request arenas and its wake-up.

    Ask for a chunk: write a record to the request arena (one writer: the control process), then add 1 to ``eventfd``.
    The answer appears as the newest record of the chunk arena (one writer: the worker) and carries the request's number.
    Descriptors are this process's own: :meth:`from_message` gives the receiver its own copies.
    """

    id: int  # counts up from 1 in one node process, never reused
    version: str
    digest: str
    horizon: int  # H
    execute: int  # actions meant to be executed before the next chunk takes over, 1 <= execute <= H
    action_dim: int  # A
    chunk_slots: int
    request_slots: int
    chunk_fd: int
    request_fd: int
    eventfd: int

    @property
    def fds(self) -> tuple[int, int, int]:
        """Descriptors in the order in which :meth:`from_message` expects them."""
        return self.chunk_fd, self.request_fd, self.eventfd

    def to_message(self) -> tuple[dict[str, Any], tuple[int, int, int]]:
        """Return what :meth:`Channel.send` needs: JSON fields and descriptors (which are copied on sending)."""
        fields = asdict(self)
        for name in ("chunk_fd", "request_fd", "eventfd"):
            del fields[name]
        return fields, self.fds

    @classmethod
    def from_message(cls, fields: dict[str, Any], fds: Sequence[int]) -> GenerationHandle:
        """Rebuild a handle from received fields and the descriptors that came with them."""
        chunk_fd, request_fd, eventfd = fds
        return cls(**fields, chunk_fd=chunk_fd, request_fd=request_fd, eventfd=eventfd)

    def attach_chunks(self) -> Arena:
        """Map the chunk arena. The arena owns ``chunk_fd`` from then on and closes it in :meth:`Arena.close`."""
        return Arena.attach(chunk_layout(self.horizon, self.action_dim), self.chunk_slots, self.chunk_fd)

    def attach_requests(self) -> Arena:
        """Map the request arena. The arena owns ``request_fd`` from then on and closes it in :meth:`Arena.close`."""
        return Arena.attach(request_layout(), self.request_slots, self.request_fd)

    def attached(self) -> tuple[Arena, Arena]:
        """Map the request and the chunk arena once more, each with a descriptor of its own."""
        chunks = chunk_layout(self.horizon, self.action_dim)
        return (
            Arena.attach(request_layout(), self.request_slots, os.dup(self.request_fd)),
            Arena.attach(chunks, self.chunk_slots, os.dup(self.chunk_fd)),
        )
