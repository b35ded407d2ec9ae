"""A journal and a server as they are after a demo in which everything went as it should; tests then take something away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vla_sim.demo.expectations import Evidence
from vla_sim.demo.journal import (
    POLICY_HOLDING,
    POLICY_RUNNING,
    EpisodeOutcome,
    Journal,
    Killed,
    ModelEvent,
    ModelStatus,
    Offer,
    PolicyStatus,
    Record,
    RollbackReply,
    SwapReport,
    from_message,
)
from vla_sim.demo.server import CheckpointServer, Request

SIZE = 1_000_000
BLOBS: Mapping[str, Mapping[str, int]] = {
    v: {f"/blobs/sha256/{v}": SIZE} for v in ("1.0.0", "1.1.0", "1.1.1", "1.2.0", "1.3.0", "1.4.0")
}
TO_TRIAL = ("CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL")


class Teller:
    """Writes records down, one second after the other."""

    def __init__(self, server: CheckpointServer) -> None:
        self.server = server
        self.records: list[Record] = []
        self.now_s = 1_800_000_000.0
        self.ticks = 0
        self.active, self.committed, self.blocked = "", "", ""

    def tell(self, kind: Any, **fields: Any) -> None:
        """A record of now, fields that are not given are zero, empty or false."""
        values = {name: _EMPTY[type_](fields) for name, type_ in kind.__annotations__.items() if name != "at_s"}
        self.records.append(from_message(kind, SimpleNamespace(**{**values, **fields}), self.now_s))

    def second(self) -> None:
        """A second passes; both nodes report."""
        self.now_s += 1.0
        self.ticks += 50
        self.policy(POLICY_RUNNING if self.active else POLICY_HOLDING, "" if self.active else "NO_POLICY")
        self.manager("IDLE")

    def policy(self, state: int, reason: str) -> None:
        self.tell(
            PolicyStatus, state=state, active_version=self.active, hold_reason=reason, ticks=self.ticks, control_rate_hz=50.0
        )  # fmt: skip

    def manager(self, state: str, update_id: str = "", downloaded: int = 0) -> None:
        self.tell(
            ModelStatus,
            state_name=state, update_id=update_id, committed_version=self.committed, bytes_downloaded=downloaded,
            blocked=(self.blocked,) if self.blocked else (),
        )  # fmt: skip

    def send(self, version: str, size: int, first: int = 0) -> None:
        path = f"/blobs/sha256/{version}"
        self.server.note_request(Request(self.now_s, path, 206 if first else 200, first))
        self.server.note_sent(path, size, self.now_s)

    def event(self, version: str, state: str, code: str = "", update_id: str | None = None) -> None:
        self.now_s += 0.2
        name = f"u-{version}" if update_id is None else update_id
        self.tell(ModelEvent, update_id=name, to_state=state, version=version, error_code=code, message="why")

    def offer(self, version: str) -> None:
        self.tell(Offer, update_id=f"u-{version}", version=version)

    def update(self, version: str, states: tuple[str, ...] = TO_TRIAL) -> None:
        for state in states:
            self.event(version, state)
            if state == "FETCHING":
                self.send(version, SIZE)
            self.second()
            self.manager(state, f"u-{version}", downloaded=SIZE)
        self.swap(version, "UPDATE")

    def swap(self, version: str, cause: str, **fields: Any) -> None:
        self.now_s += 0.3
        self.tell(SwapReport, from_version=self.active, to_version=version, cause=cause, at="CHUNK", **fields)
        self.active = version
        self.policy(POLICY_RUNNING, "")

    def commit(self, version: str) -> None:
        self.committed = version
        self.event(version, "COMMITTED")
        self.second()

    def roll_back(self, version: str, code: str, update_id: str | None = None) -> None:
        self.event(self.active, "ROLLING_BACK", code, update_id)
        self.swap(version, "ROLLBACK", warm=True)
        self.committed = version


_EMPTY = {
    "str": lambda _: "",
    "int": lambda _: 0,
    "float": lambda _: 0.0,
    "bool": lambda _: False,
    "tuple[str, ...]": lambda _: (),
    "tuple[int, ...]": lambda _: (),
}


def tell_story(folder: Path) -> tuple[list[Record], CheckpointServer]:
    """Everything that is reported when the story goes well."""
    server = CheckpointServer(folder, 1e6)
    told = Teller(server)
    told.second()
    for version in ("1.0.0", "1.1.0"):
        told.offer(version)
        told.update(version)
        told.commit(version)

    told.offer("1.1.1")
    for state in ("CHECKING", "FETCHING"):
        told.event("1.1.1", state)
        told.second()
    told.send("1.1.1", SIZE)
    told.event("1.1.1", "REJECTED", "BLOB_DIGEST_MISMATCH")

    told.offer("1.2.0")
    told.update("1.2.0")
    told.second()
    told.second()
    told.roll_back("1.1.0", "SCORES_WORSE")
    told.blocked = "1.2.0"
    told.event("1.2.0", "ROLLED_BACK", "SCORES_WORSE")
    told.second()

    told.offer("1.3.0")
    told.update("1.3.0")
    told.commit("1.3.0")
    told.tell(
        RollbackReply, success=True, from_version="1.3.0", to_version="1.1.0", duration_s=0.3, warm=True, message="done"
    )
    told.roll_back("1.1.0", "", "")
    told.event("1.1.0", "ROLLED_BACK", update_id="")
    told.second()

    told.offer("1.4.0")
    for state in ("CHECKING", "FETCHING"):
        told.event("1.4.0", state)
        told.second()
    told.send("1.4.0", 400_000)
    told.now_s += 0.5
    told.tell(Killed, what="ota_manager")
    told.second()
    told.send("1.4.0", SIZE - 400_000, first=400_000)
    told.event("1.4.0", "SWAPPING")
    told.event("1.4.0", "TRIAL")
    told.manager("TRIAL", "u-1.4.0", downloaded=SIZE)
    told.swap("1.4.0", "UPDATE")
    told.commit("1.4.0")

    told.tell(Killed, what="worker")
    told.now_s += 0.1
    told.policy(POLICY_HOLDING, "WORKER_LOST")
    told.now_s += 1.5
    told.swap("1.4.0", "WORKER_LOST")
    told.second()
    told.tell(EpisodeOutcome, version="1.4.0", success=True, known=True)
    told.second()
    return told.records, server


def evidence(records: list[Record], server: CheckpointServer, commands: int = 4000) -> Evidence:
    """What the checks look at."""
    journal = Journal()
    for record in records:
        journal.add(record)
    journal.commands = commands
    return Evidence(journal, server, BLOBS)
