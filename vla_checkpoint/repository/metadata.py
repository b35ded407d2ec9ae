# SPDX-License-Identifier: Apache-2.0
"""What a repository says: which versions there are, and until when that holds.

One target stands for one version: ``<name>/<version>/manifest.json`` with its length and SHA-256. The manifest lists the SHA-256
of every file, so it pins them all.

A repository is a set of files that robots fetch: ``N.root.json``, ``N.targets.json``, ``N.snapshot.json``, ``timestamp.json``.
:class:`Repository` holds them in memory; who keeps them (a folder, the fleet server's database) reads and writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from vla_checkpoint import MANIFEST_NAME, limits, load_manifest
from vla_checkpoint.errors import TrustKeyError
from vla_checkpoint.files import read_bytes, write_atomically
from vla_checkpoint.repository.keys import load_roots, load_signers

FOLDER = "trust"
"""Where robots look for these files: beside the models' folders."""
SIGNED_AT = "x-vla-signed"
"""Field of timestamp.json: when it was signed [s since 1970 UTC]. A robot's clock that is behind it is wrong."""
VALID_DAYS = {"targets": 365, "snapshot": 30, "timestamp": 7}
"""How long what is signed holds. It is signed again when half of that is over."""
_KEPT = 8
"""Older targets and snapshots that stay for robots which have just read the timestamp before."""
_MAX_BYTES = 5_000_000
"""Largest file that a robot reads [bytes]: about 20,000 versions."""
_FILE = re.compile(r"(?:([1-9][0-9]{0,8})\.(root|targets|snapshot)|timestamp)\.json")


def target_path(name: str, version: str) -> str:
    """Return the name of a version's target."""
    return f"{name}/{version}/{MANIFEST_NAME}"


class Repository:
    """The files of a repository, in memory.

    Args:
        files: what is published now, by name; empty for a new one.
        roots: the whole chain of roots (``keys.load_roots``).
    """

    def __init__(self, files: Mapping[str, bytes], roots: Mapping[str, bytes]) -> None:
        others = {
            name: data for name, data in files.items() if not name.endswith("root.json")
        }  # of another chain, perhaps
        self.files = {**others, **roots}
        latest = max(roots, key=lambda name: int(name.partition(".")[0]))
        self.root: Root = Metadata[Root].from_bytes(roots[latest]).signed

    def verified_targets(self) -> dict[str, TargetFile]:
        """Return what is signed now, by path; raise TrustKeyError TRUST_TARGETS if the keys of the root did not sign it."""
        found = self._latest("targets")
        if found is None:
            return {}
        try:
            self.root.verify_delegate("targets", found.signed_bytes, found.signatures)
        except RepositoryError as e:
            raise TrustKeyError("TRUST_TARGETS", "targets", str(e)) from e
        return dict(found.signed.targets)

    def sign(self, signers: Iterable[Signer], targets: Mapping[str, TargetFile] | None, now: datetime) -> bool:
        """Bring everything up to date; return whether a file changed.

        Args:
            signers: those of them that the root names for a role sign it.
            targets: what there is now; None = as it was.
            now: what decides how long it holds, UTC.

        Raises:
            TrustKeyError: TRUST_KEYS: a role has to be signed, and too few of its keys are here.
        """
        before = dict(self.files)
        signers, now = list(signers), now.replace(microsecond=0)
        old = self._latest("targets")
        wanted = dict(targets) if targets is not None else (old.signed.targets if old is not None else {})
        if old is None or old.signed.targets != wanted or self._is_due("targets", old, now):
            self._publish("targets", Targets(targets=wanted), signers, now)
        meta = {"targets.json": self._entry("targets")}
        snapshot = self._latest("snapshot")
        if snapshot is None or snapshot.signed.meta != meta or self._is_due("snapshot", snapshot, now):
            self._publish("snapshot", Snapshot(meta=meta), signers, now)
        entry = self._entry("snapshot")
        timestamp = self._latest("timestamp")
        if timestamp is None or timestamp.signed.snapshot_meta != entry or self._is_due("timestamp", timestamp, now):
            fresh = Timestamp(snapshot_meta=entry)
            fresh.unrecognized_fields[SIGNED_AT] = int(now.timestamp())
            self._publish("timestamp", fresh, signers, now)
        self._prune()
        return self.files != before

    def can_sign(self, role: str, signers: Iterable[Signer]) -> bool:
        """Whether enough keys of a role are among the signers."""
        entry = self.root.roles[role]
        return len({signer.public_key.keyid for signer in signers} & set(entry.keyids)) >= entry.threshold

    def take_targets(self, data: bytes) -> None:
        """Take targets that somebody else has signed; ``sign`` then says that they are the newest.

        Raises:
            TrustKeyError: TRUST_TARGETS: they are not what follows the newest, or not signed as the root demands.
        """
        try:
            metadata = Metadata[Targets].from_bytes(data)
            if not isinstance(metadata.signed, Targets):
                raise RepositoryError(f"they are {metadata.signed.type!r}")
            self.root.verify_delegate("targets", metadata.signed_bytes, metadata.signatures)
        except RepositoryError as e:
            raise TrustKeyError("TRUST_TARGETS", "targets", str(e)) from e
        expected = self._newest("targets") + 1
        if metadata.signed.version != expected:
            what = (
                f"they are version {metadata.signed.version}, {expected} follows: somebody else was faster, sign again"
            )
            raise TrustKeyError("TRUST_TARGETS", "targets", what)
        self.files[f"{expected}.targets.json"] = data

    def sign_targets(self, signers: Iterable[Signer], targets: Mapping[str, TargetFile], now: datetime) -> bytes:
        """Sign the targets that follow the newest, and nothing else; return them. Raises TrustKeyError TRUST_KEYS."""
        self._publish("targets", Targets(targets=dict(targets)), list(signers), now.replace(microsecond=0))
        return self.files[f"{self._newest('targets')}.targets.json"]

    def expiry(self) -> dict[str, datetime]:
        """Return until when each role holds, for those that are there."""
        kinds = {"targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}
        found = {role: self._latest(role) for role, kind in kinds.items()}
        times = {role: metadata.signed.expires for role, metadata in found.items() if metadata is not None}
        return {"root": self.root.expires, **times}

    def _publish(self, role: str, signed: Targets | Snapshot | Timestamp, signers: list[Signer], now: datetime) -> None:
        signed.version = self._version(role) + 1
        signed.expires = now + timedelta(days=VALID_DAYS[role])
        metadata: Metadata[Any] = Metadata(signed)
        entry = self.root.roles[role]
        for signer in signers:
            if signer.public_key.keyid in entry.keyids:
                metadata.sign(signer, append=True)
        if len(metadata.signatures) < entry.threshold:
            what = f"{len(metadata.signatures)} of its keys are here, {entry.threshold} must sign"
            raise TrustKeyError("TRUST_KEYS", role, what)
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        self.files[name] = metadata.to_bytes()

    def _latest(self, role: str) -> Metadata[Any] | None:
        name = "timestamp.json" if role == "timestamp" else f"{self._newest(role)}.{role}.json"
        data = self.files.get(name)
        try:
            return Metadata.from_bytes(data) if data is not None else None
        except RepositoryError as e:
            raise TrustKeyError("TRUST_TARGETS", name, f"cannot be read; remove it, and sign again: {e}") from e

    def _is_due(self, role: str, metadata: Metadata[Any], now: datetime) -> bool:
        """Whether a role has to be signed again: half of its time is over, or the root names other keys by now."""
        if metadata.signed.expires - now < timedelta(days=VALID_DAYS[role]) / 2:
            return True
        try:
            self.root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError:
            return True
        return False

    def _entry(self, role: str) -> MetaFile:
        version = self._newest(role)
        return MetaFile.from_data(version, self.files[f"{version}.{role}.json"], ["sha256"])

    def _version(self, role: str) -> int:
        if role != "timestamp":
            return self._newest(role)
        timestamp = self._latest(role)
        return timestamp.signed.version if timestamp is not None else 0

    def _newest(self, role: str) -> int:
        found = [_FILE.fullmatch(name) for name in self.files]
        return max((int(match[1]) for match in found if match is not None and match[2] == role), default=0)

    def _prune(self) -> None:
        for role in ("targets", "snapshot"):
            newest = self._newest(role)
            for name in [name for name in self.files if (m := _FILE.fullmatch(name)) is not None and m[2] == role]:
                if int(name.partition(".")[0]) < newest - _KEPT:
                    del self.files[name]


def target(path: str, manifest: bytes) -> TargetFile:
    """Return the target of a manifest."""
    return TargetFile.from_data(path, manifest, ["sha256"])


def next_targets(
    files: Mapping[str, str], folder: Path, add: Mapping[str, bytes], remove: Iterable[str], now: datetime
) -> bytes | None:
    """Sign, with the keys of a folder, what a repository says from now on; None = it says so already.

    Args:
        files: what the repository has, by name. Nobody has to be trusted with it: the targets in it must be signed.
        folder: keys and roots.
        add: manifests of versions by target path.
        remove: target paths.
        now: UTC.

    Raises:
        TrustKeyError: TRUST_KEYS; TRUST_TARGETS: the targets in ``files`` are not signed by this folder's keys.
    """
    repository = Repository({name: text.encode() for name, text in files.items()}, load_roots(folder))
    before = repository.verified_targets()
    after = {**before, **{path: target(path, data) for path, data in add.items()}}
    for path in remove:
        after.pop(path, None)
    if after == before and before:
        return None
    return repository.sign_targets(load_signers(folder).values(), after, now)


def sign_tree(tree: Path, roots: Mapping[str, bytes], signers: Iterable[Signer], now: datetime) -> Repository:
    """Sign every version of a folder that a static server serves (``<name>/<version>/manifest.json``), into ``tree/trust``.

    Run it after each change, and every few days: what is signed expires.

    Raises:
        CheckpointError: TRUST_KEYS; or a manifest cannot be read.
    """
    folder = tree / FOLDER
    files = _files_of(folder)
    repository = Repository(files, roots)
    targets = {}
    for path in sorted(tree.glob(f"*/*/{MANIFEST_NAME}")):
        manifest = load_manifest(path.parent)
        name = target_path(manifest.name, manifest.version)
        targets[name] = target(name, read_bytes(path, limits.MANIFEST_BYTES))
    repository.sign(signers, targets, now)
    folder.mkdir(exist_ok=True)
    # timestamp.json last: what it leads to is there before it
    for name in sorted(repository.files, key=lambda name: name == "timestamp.json"):
        if files.get(name) != repository.files[name]:
            write_atomically(folder / name, repository.files[name])
    for name in files.keys() - repository.files.keys():
        (folder / name).unlink()
    return repository


def read_folder(folder: Path, roots: Mapping[str, bytes]) -> Repository:
    """Return the repository whose files are in a folder."""
    return Repository(_files_of(folder), roots)


def _files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: read_bytes(path, _MAX_BYTES) for path in folder.glob("*.json") if _FILE.fullmatch(path.name)}


def utc_now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(timezone.utc)
