# SPDX-License-Identifier: Apache-2.0
"""The work of CHECKING, FETCHING and VERIFYING: a bundle gets from its offer onto the disk, complete and verified.

Nothing here touches ``state.json``: each step takes a record and returns the one that it leads to. The pipeline saves it; the
prefetcher (``prefetch.py``) keeps it in memory. What a step has put on the disk is found there by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vla_checkpoint import (
    MANIFEST_NAME,
    CancelledCheckError,
    CheckpointError,
    Manifest,
    limits,
    parse_version,
    sha256_bytes,
    verify_bundle,
)
from vla_checkpoint.delta import MIN_BYTES, Offer
from vla_checkpoint.files import read_bytes
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError, OtaError, RefusedError, StoreError
from vla_ota_manager.fetch import trust
from vla_ota_manager.fetch.deltas import Deltas
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import Url, join_url, parse_url
from vla_ota_manager.records import Ref, Update
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.damage import find_damage
from vla_ota_manager.store.state import UpdateRecord
from vla_ota_manager.store.store import Store
from vla_ros.fault import Fault
from vla_ros.plain import redacted

if TYPE_CHECKING:
    from vla_ota_manager.fetch.signed import SignedVersions

_S = UpdateState
STEPS = (_S.CHECKING, _S.FETCHING, _S.VERIFYING)
"""States whose work is here."""


@dataclass(frozen=True)
class Callbacks:
    """What a step calls while it works, in the same thread."""

    interrupted: Callable[[], bool]
    """Asked several times a second; true ends the step with CancelledError."""
    show: Callable[[str], None]
    """Takes remarks for people."""
    on_fetched: Callable[[int, int], None]
    """Takes how much of the files to be fetched is on disk, and how much was received over all attempts [bytes]."""
    on_verified: Callable[[float], None]
    """Takes the share that is verified, 0 to 1."""


class Acquirer:
    """Does one step for any record. Keeps only which update has repaired its bundle already."""

    def __init__(self, config: OtaConfig, store: Store, fetcher: Fetcher, wall_clock: Callable[[], float]) -> None:
        self._config, self._store, self._fetcher, self._wall_clock = config, store, fetcher, wall_clock
        self._repaired = ("", "")
        self._deltas = Deltas(store.blobs, fetcher)
        self._signed = _signed_versions(config, store, fetcher, wall_clock)

    def step(self, record: UpdateRecord, callbacks: Callbacks) -> tuple[UpdateRecord, str]:
        """Do the work of the record's state, one of ``STEPS``; return what it leads to, and why, in words.

        Raises:
            OtaError, CheckpointError: see :func:`end_of`; CancelledError when ``interrupted`` says so.
        """
        steps = {_S.CHECKING: self._check, _S.FETCHING: self._fetch, _S.VERIFYING: self._verify}
        return steps[record.state](record, callbacks)

    # -- CHECKING -----------------------------------------------------------------------------------------------------------

    def _check(self, record: UpdateRecord, callbacks: Callbacks) -> tuple[UpdateRecord, str]:
        update = record.update
        self.refuse_expired(update)
        url = parse_url(update.manifest_url)
        own = self._is_own(url)
        if self._signed is None or own:
            trust.check_offer(update)
        # that it is the robot's own is said by the place alone: what is on the disk may be of another place, and taken back
        data = None if own and self._signed is not None else self._manifest_on_disk(update.manifest_sha256)
        received = Received()
        if data is None:
            self._fetcher.check(url)
            callbacks.show(f"fetching {redacted(url.text)}")
            data = self._fetcher.manifest(url, received, callbacks.interrupted)
        trust.check_manifest(update, data)
        manifest = Manifest.parse(data)
        ref = Ref(manifest.name, manifest.version, manifest.digest)
        if self._signed is not None and not (own and manifest.base is not None):
            callbacks.show(f"checking who signed {ref}")
            self._signed.check(ref, data, url, received, callbacks.interrupted)
            self._refuse_older(update, ref)
        self.refuse_unsuitable(update, manifest)
        self._refuse_overtaken(url, manifest)
        known = replace(record, ref=ref, bytes_downloaded=record.bytes_downloaded + received.count)
        if self._store.has(ref) and self._repaired != _repair_of(known):
            return replace(known, state=_S.VERIFYING), "already on disk"
        message = ""
        if os.path.lexists(self._store.path_of(ref)):
            with _cancellable():
                self._store.refuse_conflict(ref, callbacks.interrupted)
                message = f"{ref} is damaged on disk and will be repaired"
                callbacks.show(message)
                self._salvage(manifest, callbacks)
        self._store.fs.write_file(self._manifest_path(ref.digest), data, "manifest")
        return self._to_fetch(known, manifest), message

    def _to_fetch(self, record: UpdateRecord, manifest: Manifest) -> UpdateRecord:
        present = self._present(manifest)
        total = sum(_blobs(manifest).values()) - present
        return replace(record, state=_S.FETCHING, bytes_present=present, bytes_total=total)

    def _manifest_on_disk(self, sha256: str) -> bytes | None:
        """Return the manifest of that digest if a version on disk has it, whatever has become of its other files."""
        for folder in self._store.folders() if sha256 else ():
            with suppress(CheckpointError):
                data = read_bytes(folder / MANIFEST_NAME, limits.MANIFEST_BYTES)
                if sha256_bytes(data) == sha256:
                    return data
        return None

    def refuse_expired(self, update: Update) -> None:
        """Raise ``RefusedError`` for an offer whose time is over."""
        if update.expires_s and self._wall_clock() > update.expires_s:
            raise RefusedError("UPDATE_EXPIRED", "the offer has expired", update.update_id)

    def refuse_unsuitable(self, update: Update, manifest: Manifest) -> None:
        """Raise ``RefusedError`` for a bundle that is not what was offered, is not for this robot, or is blocked."""
        config = self._config
        for field, wanted, found, code in (
            ("name", update.name or config.model_name, manifest.name, "NAME_MISMATCH"),
            ("name", config.model_name, manifest.name, "NAME_MISMATCH"),
            ("version", update.version, manifest.version, "VERSION_MISMATCH"),
            ("robot_type", config.robot_type, manifest.robot_type, "ROBOT_TYPE_MISMATCH"),
        ):
            if wanted and wanted != found:
                raise RefusedError(code, f"the manifest says {found!r}, {wanted!r} is wanted", field)
        base = manifest.base
        if base is not None and not self._store.has(Ref(base.name, base.version, base.digest)):
            raise RefusedError(
                "BASE_MISSING", f"is {base.name} {base.version} ({base.digest}): install it first", "base"
            )
        if config.channels:
            found_channels = [(channel.name, f"{channel.name}:{channel.unit}") for channel in manifest.action.channels]
            fits = len(found_channels) == len(config.channels)
            if not fits or not all(
                wanted in names for wanted, names in zip(config.channels, found_channels, strict=True)
            ):
                described = [names[1] for names in found_channels]
                raise RefusedError(
                    "CHANNELS_MISMATCH", f"has {described}, the robot {list(config.channels)}", "channels"
                )
        if manifest.total_bytes > config.max_bundle_bytes:
            what = f"{manifest.total_bytes} bytes, at most {config.max_bundle_bytes} are accepted"
            raise RefusedError("BUNDLE_TOO_LARGE", what, "max_bundle_bytes")
        self.refuse_blocked(Ref(manifest.name, manifest.version, manifest.digest))

    def _refuse_older(self, update: Update, ref: Ref) -> None:
        """Refuse to act with what is older than what is committed, unless somebody means that: signed, it may be known as bad."""
        committed = self._store.state.committed
        if committed is None or committed.name != ref.name or not update.activate or update.allow_older:
            return
        if parse_version(ref.version) < parse_version(committed.version):
            what = f"is older than the committed {committed.version}: roll back to it, or offer it with allow_older"
            raise RefusedError("VERSION_OLDER", what, str(ref))

    def _is_own(self, url: Url) -> bool:
        """Whether this robot made what is there: an adapter, which is trusted as the robot's disk is."""
        folder = self._config.adapter_dir
        return bool(folder) and url.is_file and url.path.resolve().is_relative_to(Path(folder).resolve())

    def _refuse_overtaken(self, url: Url, manifest: Manifest) -> None:
        """Raise ``RefusedError`` for an adapter of the robot's own that waited while another base was committed."""
        committed, base = self._store.state.committed, manifest.base
        if committed is None or base is None or not self._is_own(url):
            return
        data = self._manifest_on_disk(committed.digest)
        below = Manifest.parse(data).base if data is not None else None
        if base.digest not in (committed.digest, below.digest if below is not None else ""):
            text = f"was trained on {base.version}, but {committed.version} is committed by now"
            raise RefusedError("BASE_CHANGED", text, "base")

    def refuse_blocked(self, ref: Ref) -> None:
        """Raise ``RefusedError`` for a version that a verdict has rolled back."""
        block = self._store.state.blocks(ref.name, ref.version, ref.digest)
        if block is not None:
            raise RefusedError(
                "VERSION_BLOCKED", f"was rolled back: {block.reason}; unblock_model allows it again", str(ref)
            )

    # -- before the swap ----------------------------------------------------------------------------------------------------

    def refuse_withdrawn(self, record: UpdateRecord, callbacks: Callbacks) -> None:
        """Raise ``TrustError`` if an installed version is no longer signed. Who cannot be reached is not waited for."""
        ref, url = ref_of(record), parse_url(record.update.manifest_url)
        if self._signed is None:
            return
        data = read_bytes(self._store.path_of(ref) / MANIFEST_NAME, limits.MANIFEST_BYTES)
        if self._is_own(url) and Manifest.parse(data).base is not None:
            return
        if silence := self._signed.check_again(ref, data, url, callbacks.interrupted):
            callbacks.show(f"{ref} goes on, though it is not known whether it was taken back: {silence}")

    def is_signed(self, ref: Ref) -> bool:
        """Whether a version is signed by what the registry last said; nobody is asked. Without a trust root every one is."""
        return self._signed is None or self._signed.signs(ref)

    # -- FETCHING -----------------------------------------------------------------------------------------------------------

    def _fetch(self, record: UpdateRecord, callbacks: Callbacks) -> tuple[UpdateRecord, str]:
        ref = ref_of(record)
        manifest = self._saved_manifest(ref.digest)
        if manifest is None:
            return replace(record, state=_S.CHECKING), "the manifest is gone from the disk"
        self.refuse_expired(record.update)
        blobs = _blobs(manifest)
        offers = self._deltas.saved(ref.digest)
        self._store.blobs.release({*blobs, ref.digest, *(offer.sha256 for offer in offers or ())})
        missing = {sha256: size for sha256, size in blobs.items() if not self._store.blobs.claim(sha256, size)}
        # bytes that an earlier process wrote and could not put into the record any more; a delta's are fewer than what it made
        fetched_before = 0 if offers else self._present(manifest) - record.bytes_present
        received = Received(max(record.bytes_downloaded, fetched_before))
        if offers is None and max(missing.values(), default=0) >= MIN_BYTES and any(self._store.folders()):
            url = parse_url(record.update.manifest_url)
            offers = self._deltas.fetch(url, ref.digest, received, callbacks.interrupted)
        chosen = self._deltas.choose(offers or (), missing)
        self._make_room({**missing, **{offer.sha256: offer.size for offer in chosen.values()}})
        self._download(record, manifest, missing, chosen, received, callbacks)
        after = replace(record, state=_S.VERIFYING, bytes_downloaded=received.count)
        return after, f"{len(missing)} of {len(blobs)} files fetched"

    def _make_room(self, missing: dict[str, int]) -> None:
        need = sum(size - self._store.blobs.info(sha256, size).size for sha256, size in missing.items())
        for attempt in (1, 2):
            free = self._store.fs.free_bytes(self._store.root)
            if free - need >= self._config.min_free_bytes:
                return
            if attempt == 1:
                self._store.retain(self._config.keep_versions)
        what = f"{need} bytes needed and {self._config.min_free_bytes} to stay free, {free} are free"
        raise StoreError("DISK_FULL", what, str(self._store.root))

    def _download(
        self,
        record: UpdateRecord,
        manifest: Manifest,
        missing: dict[str, int],
        deltas: dict[str, Offer],
        received: Received,
        callbacks: Callbacks,
    ) -> None:
        """Fetch what is missing; ``received`` counts the payload over all attempts [bytes]."""
        base = parse_url(record.update.manifest_url)
        done_before = record.bytes_total - sum(missing.values())
        paths = {entry.sha256: entry.path for entry in manifest.files}
        for sha256, size in missing.items():

            def on_progress(offset: int, done: int = done_before) -> None:
                callbacks.on_fetched(done + offset, received.count)

            if not self._make_of_delta(deltas.get(sha256), base, paths[sha256], size, received, on_progress, callbacks):
                callbacks.show(f"fetching {paths[sha256]}")
                urls = self._places(base, sha256, paths[sha256])
                self._fetcher.blob(urls, sha256, size, received, on_progress, callbacks.interrupted)
            done_before += size
        callbacks.on_fetched(record.bytes_total, received.count)

    def _make_of_delta(
        self,
        offer: Offer | None,
        base: Url,
        path: str,
        size: int,
        received: Received,
        on_progress: Callable[[int], None],
        callbacks: Callbacks,
    ) -> bool:
        """Make a file of a delta if one was chosen; false = it has to be fetched whole."""
        if offer is None:
            return False
        callbacks.show(f"fetching a delta of {offer.size} bytes for {path}")
        try:
            url = join_url(base, f"../../blobs/sha256/{offer.sha256}")
            self._fetcher.check(url)
        except FetchError:
            return False
        problem = self._deltas.use(offer, size, url, received, on_progress, callbacks.interrupted)
        if problem:
            callbacks.show(f"the delta for {path} is of no use, it is fetched whole: {problem}")
        return not problem

    def _places(self, base: Url, sha256: str, path: str) -> list[Url]:
        """Return where a blob may be: where a registry keeps it, and beside the manifest, as in a plain folder."""
        places, refusal = [], None
        for reference in (f"../../blobs/sha256/{sha256}", quote(path)):
            try:
                url = join_url(base, reference)
                self._fetcher.check(url)
                places.append(url)
            except FetchError as e:  # a manifest may lie too high for the first, or only its own folder be allowed
                refusal = e
        if not places and refusal is not None:
            raise refusal
        return places

    def _present(self, manifest: Manifest) -> int:
        """Return how much of a bundle's blobs is on disk, finished or partial [bytes]."""
        blobs = self._store.blobs
        total = 0
        for sha256, size in _blobs(manifest).items():
            total += size if blobs.blob(sha256).exists() else blobs.info(sha256, size).size
        return total

    def _manifest_path(self, digest: str) -> Path:
        return self._store.blobs.partial_dir / f"{digest}.manifest"

    def _saved_manifest(self, digest: str) -> Manifest | None:
        """Return the manifest of a bundle that is being put together."""
        try:
            manifest = Manifest.parse(self._manifest_path(digest).read_bytes())
        except (OSError, CheckpointError):
            return None
        return manifest if manifest.digest == digest else None

    # -- VERIFYING ----------------------------------------------------------------------------------------------------------

    def _verify(self, record: UpdateRecord, callbacks: Callbacks) -> tuple[UpdateRecord, str]:
        ref = ref_of(record)
        manifest = self._saved_manifest(ref.digest)
        if manifest is not None:
            if not all(self._store.blobs.claim(sha256, size) for sha256, size in _blobs(manifest).items()):
                return replace(record, state=_S.FETCHING), "a file is gone from the disk"
            with self._store.staged(manifest) as staged:
                if damage := self._verify_folder(staged, record, callbacks):
                    with _cancellable():
                        self._salvage(manifest, callbacks)
                    return self._to_fetch(record, manifest), damage
                self._store.install(staged, manifest)
            self._fetcher.arrived.clear()  # a version that is verified once more is read once more
        elif not self._store.has(ref):
            return replace(record, state=_S.CHECKING), "the manifest is gone from the disk"
        elif damage := self._verify_folder(self._store.path_of(ref), record, callbacks):
            return replace(record, state=_S.CHECKING), damage
        self._store.note_change(self._store.path_of(ref))
        return replace(record, state=_S.INSTALLED), f"{ref} is complete and verified"

    def _verify_folder(self, folder: Path, record: UpdateRecord, callbacks: Callbacks) -> str:
        """Check a bundle. Return what the disk has damaged of it, to be repaired once an update; empty = it is good."""
        done, total, digest = 0, 1, ref_of(record).digest

        def progress(count: int) -> None:
            nonlocal done
            done += count
            callbacks.on_verified(min(1.0, done / total))

        with _cancellable():
            try:
                with suppress(OSError):  # it is for the progress only
                    total = max(1, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
                verify_bundle(
                    folder,
                    expected_digest=digest,
                    scan_values=self._config.scan_values,
                    arrived=self._fetcher.arrived,
                    progress=progress,
                    cancel=callbacks.interrupted,
                )
            except CancelledCheckError:
                raise
            except CheckpointError:
                damage = next(find_damage(folder, digest=digest, cancel=callbacks.interrupted), "")
                if not damage or self._repaired == _repair_of(record):
                    raise  # it is what was published, or the disk damages it again
                self._repaired = _repair_of(record)
                return f"damaged on disk and will be repaired: {damage}"
        return ""

    def _salvage(self, manifest: Manifest, callbacks: Callbacks) -> None:
        """Hold on to every file of a damaged bundle that is intact under any name, and let go of the others, to be fetched."""
        folder = self._store.path_of(Ref(manifest.name, manifest.version, manifest.digest))
        for entry in manifest.files:
            self._store.blobs.rescue(entry.sha256, entry.size, folder / entry.path, callbacks.interrupted)


def _signed_versions(
    config: OtaConfig, store: Store, fetcher: Fetcher, wall_clock: Callable[[], float]
) -> SignedVersions | None:
    if not config.trust_root:
        return None
    from vla_ota_manager.fetch import signed  # cryptography is loaded only where somebody needs it

    return signed.SignedVersions(
        Path(config.trust_root).expanduser(), store.root / signed.FILE, store.fs, fetcher, wall_clock
    )


@contextmanager
def _cancellable() -> Iterator[None]:
    try:
        yield
    except CancelledCheckError as e:
        raise CancelledError("CANCELLED", "stopped on request") from e


def _repair_of(record: UpdateRecord) -> tuple[str, str]:
    return record.update.update_id, ref_of(record).digest


def end_of(error: OtaError | CheckpointError) -> tuple[UpdateState, str, str]:
    """Return how an update ends that met this error, its code and its message: REJECTED if the bundle is at fault."""
    if isinstance(error, CheckpointError):
        return _S.REJECTED, error.code, str(error)
    return (_S.REJECTED if error.fault is Fault.BUNDLE else _S.FAILED), error.code, error.message


def ref_of(record: UpdateRecord) -> Ref:
    """Return the bundle of an update that is past CHECKING."""
    if record.ref is None:
        raise OtaError("STATE_CORRUPT", "an update past CHECKING names no bundle", record.update.update_id)
    return record.ref


def _blobs(manifest: Manifest) -> dict[str, int]:
    return {entry.sha256: entry.size for entry in manifest.files}
