# SPDX-License-Identifier: Apache-2.0
"""The node's side of its workers: spawn, spare, prepare, watch, end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vla_policy_node.ipc.arena import Arena
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import Generation, WorkerConfig, WorkerEvent

Progress = Callable[[str, float], None]
"""Called with the state (QUEUED, LOADING, DIGEST, GOLDEN, WARM_UP, READY) and the share of the whole that is done, 0 to 1."""


class WorkerPool:
    """Worker processes of one policy node. Every method may be called from any thread."""

    def __init__(
        self,
        config: WorkerConfig,
        observation: Arena,
        features: Mapping[str, FeatureSpec],
        on_event: Callable[[WorkerEvent], None],
    ) -> None:
        raise NotImplementedError

    def start(self, policy_type: str = "") -> None:
        """Start watching, and the spare worker; ``policy_type`` is the type whose module it imports ahead."""

    def prepare(
        self,
        bundle_dir: Path,
        *,
        digest: str = "",
        on_progress: Progress = lambda state, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
        timeout_s: float | None = None,
    ) -> Generation:
        """Load a bundle in a worker of its own and prove it; blocks until it is READY.

        Raises :class:`PrepareError`; the worker is gone by then and its memory is back.
        """
        raise NotImplementedError

    def release(self, generation: Generation) -> None:
        """End a generation's worker and close its descriptors; no event follows. Harmless when repeated."""

    def generations(self) -> list[Generation]:
        """Generations not yet released, oldest first; a lost one is among them until it is released."""
        raise NotImplementedError

    def ensure_spare(self) -> None:
        """Start the spare now rather than after ``spare_delay_s`` (a swap is over)."""

    def close(self) -> None:
        """End every worker and wait for it."""
