# SPDX-License-Identifier: Apache-2.0
"""``state.json``: everything the manager must still know after a crash, as one document with a schema number."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from vla_ota_manager.errors import OtaError, StateError
from vla_ota_manager.records import LATEST_S, Event, Ref, Update
from vla_ota_manager.states import PIPELINE, UpdateState
from vla_ota_manager.store.decode import decode, parse

_S = UpdateState
SCHEMA = 1
MAX_BYTES = 32 << 20
SEEN_SIZE = 1000
LINEAGE_SIZE = 20


@dataclass
class UpdateRecord:
    """The update in progress."""

    update: Update
    state: UpdateState = UpdateState.CHECKING
    ref: Ref | None = None
    """Known once the manifest has been accepted."""
    bytes_total: int = 0
    """To be fetched [bytes]."""
    bytes_present: int = 0
    """Of those files, on disk when the update began [bytes]."""
    bytes_downloaded: int = 0
    """Payload received so far, over all attempts [bytes]."""


@dataclass
class TrialRecord:
    """A version that was, or is about to be, given control without having proved itself."""

    ref: Ref
    update_id: str
    first_install: bool
    phase: UpdateState = UpdateState.SWAPPING
    clean: bool = False
    """The manager was shut down properly since; then its restart counts no attempt."""
    code: str = ""
    """Why it is being rolled back: code, and in words. Valid only while ROLLING_BACK."""
    reason: str = ""
    block: bool = False
    at: str = ""
    """Boundary for the rollback; empty = as configured."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What the judge had counted when it was last saved; see ``trial.py``."""


@dataclass
class RollbackRecord:
    """An operator's rollback that has been accepted and is not finished."""

    target: Ref
    reason: str
    from_version: str
    named: bool = False
    """A person named ``target``; else an older version will do where it cannot be loaded."""


@dataclass
class ExperimentRecord:
    """An experiment by episode in which this robot takes part, or took part last."""

    experiment: str
    robot: str
    """This robot's name in it."""
    a: Ref
    b: Ref
    probability: float
    """Of B."""
    code: str = ""
    """Why it is over on this robot: code, and in words. Empty: it runs."""
    reason: str = ""


@dataclass
class Block:
    """A version that a verdict rolled back."""

    ref: Ref
    reason: str
    time_s: float


@dataclass
class Outcome:
    """How an update stands or ended, kept by update_id."""

    state: UpdateState
    version: str = ""
    code: str = ""
    message: str = ""
    bytes_downloaded: int = 0
    final: bool = False


@dataclass
class State:
    """The document. Mutate it only inside ``Store.edit()``."""

    state: UpdateState = UpdateState.IDLE
    update_id: str = ""
    error_code: str = ""
    message: str = ""
    committed: Ref | None = None
    previous: Ref | None = None
    lineage: list[Ref] = field(default_factory=list)
    """What was committed before ``committed``, oldest first; its last one that is still on disk is ``previous``."""
    trial: TrialRecord | None = None
    update: UpdateRecord | None = None
    rollback: RollbackRecord | None = None
    experiment: ExperimentRecord | None = None
    activation_due: bool = False
    """The policy node has not yet confirmed that it runs ``committed`` without a lease."""
    queue: list[Update] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    """Unclean ends of trials by digest."""
    blocked: dict[str, Block] = field(default_factory=dict)
    """By digest."""
    pinned: list[Ref] = field(default_factory=list)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By digest; see ``calibration.py``."""
    history: list[Event] = field(default_factory=list)
    seen: dict[str, Outcome] = field(default_factory=dict)
    """By update_id, oldest first."""

    def note_committed(self, ref: Ref) -> None:
        """Make ``ref`` the committed version; what was committed becomes the one a rollback goes to."""
        if self.committed is not None and self.committed.digest != ref.digest:
            self.lineage = [old for old in self.lineage if old.digest not in (ref.digest, self.committed.digest)]
            self.lineage = [*self.lineage, self.committed][-LINEAGE_SIZE:]
            self.previous = self.committed
        self.committed = ref

    def note_rolled_back(self, target: Ref) -> None:
        """Make ``target`` the committed version again; a further rollback goes to the one before it, never forward."""
        digests = [old.digest for old in self.lineage]
        if target.digest in digests:
            self.lineage = self.lineage[: digests.index(target.digest)]
        self.committed = target
        self.previous = self.lineage[-1] if self.lineage else None

    def settle(self) -> None:
        """Make a state whole that was rebuilt from parts: no update without its record, and no state without what it is about."""
        busy = (_S.SWAPPING, _S.TRIAL, _S.ROLLING_BACK)
        if self.trial is None and self.rollback is None:
            if self.update is not None and self.update.state not in PIPELINE:
                self.update = None
            if self.update is None and self.state is not _S.INSTALLED and self.state in (*PIPELINE, *busy):
                self.state = _S.IDLE

    def check(self) -> None:
        """Raise ``ValueError`` or ``OfferError`` where the parts do not fit each other: nothing could go on from there."""
        trial, update, rollback = self.trial, self.update, self.rollback
        if self.committed is None and (self.previous is not None or self.lineage):
            raise ValueError("committed is nothing, but something was committed before it")
        if trial is not None and (
            trial.phase is not self.state or self.state not in (_S.SWAPPING, _S.TRIAL, _S.ROLLING_BACK)
        ):
            raise ValueError(f"trial.phase is {trial.phase.name}, state is {self.state.name}")
        if rollback is not None and (trial is not None or self.state is not _S.ROLLING_BACK):
            raise ValueError(f"rollback is under way, state is {self.state.name}")
        if update is not None:
            update.update.check()
            if update.state is not self.state:
                raise ValueError(f"update.state is {update.state.name}, state is {self.state.name}")
            if update.ref is None and update.state is not _S.CHECKING:
                raise ValueError("update.ref is missing")
        for waiting in self.queue:
            waiting.check()
        for digest, block in self.blocked.items():
            if digest != block.ref.digest:
                raise ValueError("a key of blocked is not its digest")
        for time_s in (*(event.time_s for event in self.history), *(block.time_s for block in self.blocked.values())):
            if not 0 <= time_s <= LATEST_S:
                raise ValueError(f"{time_s:g} is not a time")

    @property
    def running_experiment(self) -> ExperimentRecord | None:
        """The experiment whose draws policy_node carries out."""
        return self.experiment if self.experiment is not None and not self.experiment.code else None

    def blocks(self, name: str, version: str, digest: str) -> Block | None:
        """Return the block that covers this bundle, by digest or by name and version."""
        for key, block in self.blocked.items():
            if key == digest or (block.ref.name, block.ref.version) == (name, version):
                return block
        return None

    def downloaded(self, update_id: str) -> int:
        """Return how much has been received for an update so far [bytes]; 0 if it is not known."""
        outcome = self.seen.get(update_id)
        return outcome.bytes_downloaded if outcome is not None else 0

    def references(self) -> list[Ref]:
        """Return the versions that retention must not touch."""
        refs = [self.committed, self.previous, *self.pinned]
        refs += [record.ref for record in (self.trial, self.update) if record is not None]
        if self.rollback is not None:
            refs.append(self.rollback.target)
        if self.running_experiment is not None:
            refs += [self.running_experiment.a, self.running_experiment.b]
        return [ref for ref in refs if ref is not None]

    def to_bytes(self) -> bytes:
        """Return the document's bytes."""
        document = {"schema": SCHEMA, **asdict(self)}
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """Parse a document.

        Raises:
            StateError: STATE_CORRUPT, or STATE_TOO_NEW when a later version of this package wrote it.
        """
        try:
            document = parse(data)
            schema = document["schema"]
        except (ValueError, TypeError, KeyError) as e:
            raise StateError("STATE_CORRUPT", f"not a state document: {e}", "state.json") from e
        if type(schema) is not int or schema < 1:
            raise StateError("STATE_CORRUPT", f"schema {schema!r} is no number", "state.json")
        if schema > SCHEMA:
            raise StateError("STATE_TOO_NEW", f"schema {schema!r}; this version knows {SCHEMA}", "state.json")
        try:
            _complete(document)
            state: State = decode(State, document, "")
            state.settle()
            state.check()
        except (ValueError, OtaError) as e:
            raise StateError("STATE_CORRUPT", str(e), "state.json") from e
        return state


def _complete(document: dict[str, Any]) -> None:
    """Give a document of an earlier release the fields that it had not."""
    document.setdefault("experiment", None)
    record, queue = document.get("update"), document.get("queue")
    updates = [record.get("update")] if isinstance(record, dict) else []
    for update in (*updates, *(queue if isinstance(queue, list) else ())):
        if isinstance(update, dict):
            update.setdefault("allow_older", False)
