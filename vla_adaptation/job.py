# SPDX-License-Identifier: Apache-2.0
"""What the node asks of its training process and what that answers, as JSON files in the job's folder.

::

    <job>/job.json      the order; whatever is done below depends on it alone
          episodes/     hard links, so that the recorder may remove its own names meanwhile
          set/ work/    data set and the trainer's checkpoint: a process that was killed is followed by one that goes on there
          bundle/       the adapter
          result.json   the answer, written last
          log           what the process printed
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from vla_checkpoint.files import write_atomically

JOB, RESULT, LOG = "job.json", "result.json", "log"
_Document = TypeVar("_Document")


@dataclass(frozen=True)
class Job:
    """An order.

    Attributes:
        kind: ``train`` an adapter, or ``carry`` the one in ``adapter`` over to another base.
        base: folder of the full bundle, and its digest.
        trained_on: names of episodes that ``adapter`` has seen; it is not judged by them.
        threads, nice, max_memory_bytes: what the process may take.
    """

    kind: Literal["train", "carry"]
    base: str
    base_digest: str
    threads: int
    nice: int
    max_memory_bytes: int
    rank: int = 8
    steps: int = 400
    learning_rate: float = 1e-3
    adapter: str = ""
    trained_on: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """An answer. ``code`` is empty if the adapter passed; else it says why there is none, or why it is not good enough."""

    code: str = ""
    message: str = ""
    version: str = ""
    digest: str = ""
    validation: str = ""
    episodes: int = 0
    """Learned from."""
    corrections: int = 0
    """Those of them that an operator corrected."""
    refused: list[str] = field(default_factory=list)
    """Episodes that could not be used, each with its reason."""
    trained_on: list[str] = field(default_factory=list)


def write(path: Path, document: Any) -> None:
    """Write an order or an answer. Raises FileError."""
    write_atomically(path, (json.dumps(dataclasses.asdict(document), indent=1) + "\n").encode())


def read(path: Path, kind: type[_Document]) -> _Document | None:
    """Return an order or an answer; ``None``: there is none that can be read."""
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
