# SPDX-License-Identifier: Apache-2.0
"""``state.json``: what must be known after a restart.

An adapter that passed its validation is OFFERED, then on TRIAL, then COMMITTED. It is over when it is REJECTED before it acts,
ROLLED_BACK, or DROPPED, because it does not pass on a new base or because another adapter took its place.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_checkpoint.files import write_atomically

LOG = logging.getLogger("vla_adaptation")

OFFERED, TRIAL, COMMITTED = "OFFERED", "TRIAL", "COMMITTED"
REJECTED, ROLLED_BACK, DROPPED = "REJECTED", "ROLLED_BACK", "DROPPED"
IN_USE = (OFFERED, TRIAL, COMMITTED)
FILE = "state.json"


@dataclass
class Adapter:
    """The newest adapter that passed its validation."""

    name: str
    version: str
    digest: str
    base_version: str
    base_digest: str
    folder: str
    standing: str = OFFERED
    trained_on: list[str] = field(default_factory=list)
    episodes: int = 0
    corrections: int = 0
    uploaded: bool = False
    upload_refused: str = ""
    """Why the server will never take it."""
    asked: int = 0
    """How often ota_manager took its offer and then said no more of it."""

    @property
    def update_id(self) -> str:
        """Of its offer."""
        return f"adaptation-{self.digest[:16]}-{self.asked}"


@dataclass
class Work:
    """The job under way; see ``job.Job``."""

    kind: Literal["train", "carry"]
    corrected: list[str] = field(default_factory=list)
    """Corrected episodes that it takes in: once it has an answer, another one is for new ones."""
    run_s: float = 0.0
    """Without its pauses [s]."""
    deaths: int = 0
    """Processes of it that ended without an answer."""


@dataclass
class State:
    """The document."""

    adapter: Adapter | None = None
    work: Work | None = None
    seen: list[str] = field(default_factory=list)
    """Corrected episodes that jobs have given an answer to."""
    refused: int = 0
    """Episodes that the last job could not use."""
    validation: str = ""
    code: str = ""
    message: str = ""

    def save(self, folder: Path) -> None:
        """Replace the file. Raises FileError."""
        write_atomically(folder / FILE, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())


def load(folder: Path) -> State:
    """Return what the last process saved; a damaged file is put aside."""
    path = folder / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        adapter, work = document.pop("adapter"), document.pop("work")
        return State(adapter=Adapter(**adapter) if adapter else None, work=Work(**work) if work else None, **document)
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, TypeError, KeyError) as e:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        text = f"ADAPTATION_STATE: {path} cannot be read ({e}); it is put aside as {aside.name}, adaptation begins anew"
        LOG.error("%s", text)
        return State(code="ADAPTATION_STATE", message=text)
