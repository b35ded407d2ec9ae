# SPDX-License-Identifier: Apache-2.0
"""The words of the update path as values: offers, references to bundles, statuses, events, replies."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from vla_checkpoint.errors import VersionError
from vla_checkpoint.version import parse_version
from vla_ota_manager.errors import OfferError, StoreError
from vla_ota_manager.states import UpdateState

UPDATE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LATEST_S = 253402300799.0
"""End of the year 9999, the last that has a text [s since 1970 UTC]."""
DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a folder's name on any file system; raise ``StoreError`` if it could escape the store."""
    if not NAME.fullmatch(name) or name.endswith("."):
        raise StoreError(
            "NAME_INVALID", "a model name is 1 to 128 of [A-Za-z0-9._-], not starting with . or -", repr(name)
        )
    return name


def check_version(version: str) -> str:
    """Return ``version`` if it is Semantic Versioning 2.0.0 (which has no character that could escape a folder)."""
    try:
        parse_version(version)
    except VersionError as e:
        raise StoreError("NAME_INVALID", e.reason, "version") from e
    return version


def check_digest(digest: str) -> str:
    """Return ``digest`` if it is 64 lower-case hexadecimal digits, else raise ``StoreError``."""
    if not DIGEST.fullmatch(digest):
        raise StoreError("NAME_INVALID", "not a SHA-256 of 64 lower-case hexadecimal digits", repr(digest[:80]))
    return digest


def utc_text(unix_s: float) -> str:
    """Return ``2026-11-20T08:00:00Z`` for seconds since 1970 UTC."""
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Update:
    """An offer of a version, as ModelUpdate or InstallModel bring it.

    ``expires_s`` is seconds since 1970 UTC, 0 = never. Empty ``name`` or ``version``: whatever the manifest says.
    """

    update_id: str
    manifest_url: str
    manifest_sha256: str = ""
    name: str = ""
    version: str = ""
    activate: bool = True
    urgent: bool = False
    expires_s: float = 0.0
    allow_older: bool = False

    def check(self) -> None:
        """Raise ``OfferError`` for fields that no offer can have."""
        if not UPDATE_ID.fullmatch(self.update_id):
            raise OfferError("OFFER_INVALID", "must be 1 to 128 characters of [A-Za-z0-9._:-]", "update_id")
        if self.manifest_sha256 and not DIGEST.fullmatch(self.manifest_sha256):
            raise OfferError("OFFER_INVALID", "must be 64 lower-case hexadecimal digits", "manifest_sha256")
        if not 0 < len(self.manifest_url) <= 4096:
            raise OfferError("OFFER_INVALID", "must be 1 to 4096 characters", "manifest_url")
        if not 0 <= self.expires_s <= LATEST_S:  # also NaN
            raise OfferError("OFFER_INVALID", "must be a time or 0", "expires")
        try:
            if self.name:
                check_name(self.name)
            if self.version:
                check_version(self.version)
        except StoreError as e:
            raise OfferError("OFFER_INVALID", e.reason, "name" if "name" in e.reason else "version") from e

    def to_json(self) -> dict[str, Any]:
        """Return it as state.json keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """An AnomalyScore. ``stamp_s`` by the clock that stamps scores [s]; empty version, 0 generation: unknown.

    ``boot_id``: of the policy node that was alive when it arrived; the inbox fills it in.
    """

    source: str
    value: float
    stamp_s: float
    version: str = ""
    generation: int = 0
    episode_id: str = ""
    boot_id: str = ""


@dataclass(frozen=True)
class EpisodeResult:
    """An EpisodeOutcome, with its meanings; ``boot_id`` as in :class:`Score`."""

    episode_id: str
    success: bool
    stamp_s: float
    version: str = ""
    generation: int = 0
    known: bool = True
    mixed: bool = False
    intervention: bool = False
    boot_id: str = ""


@dataclass(frozen=True)
class Ref:
    """A bundle by name, version and digest (SHA-256 of its manifest)."""

    name: str
    version: str
    digest: str

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)
        check_digest(self.digest)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class ExperimentRequest:
    """What AssignExperiment carries; see ``srv/AssignExperiment.srv``."""

    experiment: str
    robot: str = ""
    versions: tuple[str, ...] = ()
    probability: float = 0.5


@dataclass(frozen=True)
class Event:
    """One transition, as ModelEvent carries it. ``time_s``: seconds since 1970 UTC; ``name``: of the model, empty = not known."""

    time_s: float
    update_id: str
    from_state: str
    to_state: str
    version: str
    error_code: str = ""
    message: str = ""
    name: str = ""

    def to_line(self) -> str:
        """Return the line that list_models shows."""
        line = f"{utc_text(self.time_s)} {self.from_state} -> {self.to_state} {self.version} {self.error_code} {self.message}"
        return " ".join(line.split())


@dataclass(frozen=True)
class Status:
    """What the manager is doing and what the robot has: the fields of ModelStatus, with its meanings and units."""

    state: UpdateState = UpdateState.IDLE
    update_id: str = ""
    name: str = ""
    committed_version: str = ""
    committed_digest: str = ""
    previous_version: str = ""
    trial_version: str = ""
    trial_digest: str = ""
    active_version: str = ""
    active_digest: str = ""
    progress: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_downloaded: int = 0
    trial_progress: float = 0.0
    trial_message: str = ""
    versions: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    experiment: str = ""
    experiment_robot: str = ""
    experiment_digests: tuple[str, ...] = ()
    experiment_probability: float = 0.0
    trust: str = "none"
    rollback_ready: int = 0
    error_code: str = ""
    message: str = ""

    @property
    def state_name(self) -> str:
        """The state without its prefix, for example ``TRIAL``."""
        return self.state.name


@dataclass(frozen=True)
class ModelEntry:
    """One version on disk, as ModelVersion carries it. ``installed_s``: seconds since 1970 UTC."""

    ref: Ref
    size_bytes: int
    path: str
    installed_s: float
    committed: bool = False
    previous: bool = False
    active: bool = False
    on_trial: bool = False
    pinned: bool = False
    blocked: bool = False
    block_reason: str = ""


@dataclass(frozen=True)
class Reply:
    """Outcome of a command: what every service of the manager replies with."""

    success: bool
    error_code: str = ""
    message: str = ""


@dataclass(frozen=True)
class RollbackReply(Reply):
    """Reply of ``rollback``; ``duration_s`` from the request until the first action of ``to_version`` was known [s]."""

    from_version: str = ""
    to_version: str = ""
    duration_s: float = 0.0
    warm: bool = False


@dataclass(frozen=True)
class CommitReply(Reply):
    """Reply of ``commit``."""

    committed_version: str = ""


@dataclass(frozen=True)
class ListReply(Reply):
    """Reply of the commands that return lists: versions pinned or blocked afterwards, or the models on disk."""

    versions: tuple[str, ...] = ()
    models: tuple[ModelEntry, ...] = ()
    history: tuple[str, ...] = field(default=())
    free_bytes: int = 0


@dataclass(frozen=True)
class UpdateOutcome:
    """How an update stands, for InstallModel: ``final`` once nothing more will happen to it."""

    update_id: str
    state: UpdateState
    final: bool
    version: str = ""
    error_code: str = ""
    message: str = ""
    bytes_downloaded: int = 0
