# SPDX-License-Identifier: Apache-2.0
"""What the node knows of its workers: configuration, generations, events and the reasons for which a bundle was not loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vla_checkpoint.manifest import Manifest
from vla_policy_node.errors import WorkerError
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.policies.base import PolicySpec

HOST_LOST, HOST_LOST_STATUS = "WORKER_HOST_LOST", 3
"""How a worker that only speaks to a host ends when the line is lost."""


@dataclass(frozen=True)
class Remote:
    """Where policies run, if not here; the worker then only speaks to it."""

    host: str
    """``name:port`` of a ``vla_ota_worker_host``."""
    tls: str
    """Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``."""
    silence_s: float = 1.0
    """A line on which nothing was heard for so long is lost [s]."""


@dataclass(frozen=True)
class WorkerConfig:
    """How workers are started and judged."""

    worker_python: str = ""
    """Interpreter; empty = the node's own. It needs numpy, and what its policies import."""
    paths: tuple[str, ...] = ()
    """Folders added to the workers' PYTHONPATH."""
    policy_modules: Mapping[str, str] = field(default_factory=dict)
    """Policy type → module; goes before entry points of group ``vla_ota.policies`` and ``vla_policy_node.policies.<type>``."""
    imports: tuple[str, ...] = ("torch",)
    """Modules imported ahead for all workers; those that are not there are left out."""
    device: str = "cpu"
    """Handed to the policy's ``load``."""
    threads: int = 1
    """Threads of the policy's computations (OpenMP, MKL, OpenBLAS)."""
    generations: int = 2
    """In memory at a time: the active one and one more; 1 = another one is loaded in place of the active one."""
    load_timeout_s: float = 300.0
    """Longest preparation [s]."""
    inference_timeout_s: float = 5.0
    """A worker that owes a chunk this long is hung, and is killed [s]."""
    observation_max_age_s: float = 1.0
    """An older observation is answered with OBSERVATION_STALE [s]."""
    nice: int = 10
    """Nice level of imports, loading, golden replay and shadow, 0 to 19. Otherwise inference runs at the node's own level."""
    spare: bool = True
    """Keep a worker waiting with its imports done."""
    spare_delay_s: float = 5.0
    """Wait after a preparation before the next spare is started, so that a swap goes undisturbed [s]."""
    memory_reserve_bytes: int = 256 << 20
    """Memory that must stay available beyond a new generation's weights [bytes]."""
    remote: Remote | None = None
    """``None``: policies run in the workers."""


@dataclass(frozen=True)
class Timings:
    """What a preparation took."""

    load_s: float = 0.0
    """Reading weights into memory, comparing them with the manifest meanwhile, and building the policy [s]."""
    digest_s: float = 0.0
    """Comparing the bundle's other files with the manifest [s]."""
    golden_s: float = 0.0
    """Replaying the golden observations [s]; 0 without golden file."""
    warm_up_s: float = 0.0
    """Warm-up inferences [s]."""
    inference_ms: float = 0.0
    """The shortest inference of golden observations and warm-up [ms]."""
    spare_used: bool = False
    """Whether a spare worker was waiting."""
    golden_difference: float = 0.0
    """Largest absolute difference of a golden chunk, of whatever channel, in its unit; 0 without golden file."""


@dataclass(frozen=True, eq=False)
class Generation:
    """A loaded bundle in a worker process; compared by identity, ended by ``WorkerPool.release``."""

    handle: GenerationHandle
    manifest: Manifest
    spec: PolicySpec
    timings: Timings
    pid: int
    _alive: Callable[[], bool]
    _died_code: Callable[[], str]
    _kill: Callable[[], None]
    _end_shadow: Callable[[], None]

    @property
    def id(self) -> int:
        """Number of the generation, as in ``GenerationHandle.id``."""
        return self.handle.id

    @property
    def alive(self) -> bool:
        """False once its process has ended."""
        return self._alive()

    @property
    def died_code(self) -> str:
        """Once it is not alive: WORKER_DIED, or WORKER_HOST_LOST if it was the line to a host."""
        return self._died_code()

    def kill(self) -> None:
        """End its process at once; a LOST event follows."""
        self._kill()

    def end_shadow(self) -> None:
        """From now on it answers at the node's own level and on the robot's newest observation; returns when it does.

        Raises PrepareError WORKER_DIED, WORKER_HOST_LOST, LOAD_TIMEOUT.
        """
        self._end_shadow()


@dataclass(frozen=True)
class WorkerEvent:
    """Something happened in a worker. Delivered on the pool's watcher thread: take note, and return at once."""

    kind: Literal["LOST", "CHUNK_ERROR", "SPARE_READY", "LOG"]
    message: str
    pid: int
    generation: Generation | None = None
    """LOST and CHUNK_ERROR: the generation concerned."""
    code: str = ""
    """LOST: WORKER_DIED, WORKER_HUNG or WORKER_HOST_LOST. CHUNK_ERROR: one of ``ipc.layouts.CHUNK_ERRORS``."""


class PrepareError(WorkerError):
    """A bundle was not loaded; every other generation goes on as before.

    ``code`` is one of docs/errors.md, or that of the exception that the policy's ``load`` raised.
    """
