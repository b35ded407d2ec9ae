# SPDX-License-Identifier: Apache-2.0
"""The bundles of a replay, each in a worker process as on the robot."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.errors import WorkerError
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import CHUNK_ERRORS
from vla_policy_node.worker.api import Generation, WorkerConfig
from vla_policy_node.worker.pool import WorkerPool

Chunk = npt.NDArray[np.float32]
_POLL_S = 0.0005


class Bundles:
    """Loaded bundles that answer the newest observation of an arena. Use as a context manager.

    Raises what :meth:`WorkerPool.prepare` and :meth:`Contract.check_bundle` raise.
    """

    def __init__(self, paths: list[Path], contract: Contract, observation: Arena, config: WorkerConfig) -> None:
        self._pool = WorkerPool(config, observation, contract.features, lambda event: None)
        self.generations: list[Generation] = []
        self._arenas: list[tuple[Arena, Arena]] = []
        self._asked = 0
        self._pool.start()
        try:
            for path in paths:
                generation = self._pool.prepare(path)
                contract.check_bundle(generation.manifest, generation.spec)
                self._arenas.append(generation.handle.attached())
                self.generations.append(generation)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bundles:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
        for arenas in self._arenas:
            for arena in arenas:
                arena.close()
        self._arenas.clear()

    def ask(self) -> list[Chunk]:
        """Return the chunk of each bundle, float32 ``[H, C]``, for the newest observation.

        Raises WorkerError: WORKER_DIED, or why a policy gave no chunk (POLICY_FAILED, WRONG_SHAPE, NAN).
        """
        self._asked += 1
        for generation, (requests, _) in zip(self.generations, self._arenas, strict=True):
            requests.write({"request": self._asked, "tick": 0, "reset": int(self._asked == 1)})
            os.eventfd_write(generation.handle.eventfd, 1)
        answers = zip(self.generations, self._arenas, strict=True)
        return [self._answer(generation, chunks) for generation, (_, chunks) in answers]

    def _answer(self, generation: Generation, chunks: Arena) -> Chunk:
        manifest = generation.manifest
        what = f"{manifest.name} {manifest.version}"
        while True:
            alive = generation.alive  # before the look: its last answer counts
            record = chunks.read()
            if record is not None and int(record[1]["request"]) == self._asked:
                error = CHUNK_ERRORS[int(record[1]["error"])]
                if error:
                    raise WorkerError(error, f"{what} gave no chunk")
                actions: Chunk = record[1]["actions"]
                return actions
            if not alive:
                raise WorkerError("WORKER_DIED", f"{what}: its worker ended, or owed a chunk for too long")
            time.sleep(_POLL_S)
