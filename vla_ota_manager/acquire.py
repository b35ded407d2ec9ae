# SPDX-License-Identifier: Apache-2.0
"""The work of CHECKING, FETCHING and VERIFYING: a bundle gets from its offer onto the disk, complete and verified.

Nothing here touches ``state.json``: each step takes a record and returns the one that it leads to. The pipeline saves it; who
fetches ahead (``ahead.py``) keeps it in memory. Whatever a step had put on the disk is found there by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from vla_checkpoint import CancelledCheckError, CheckpointError, DigestError, Manifest, verify_bundle
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError, OtaError, RefusedError, StoreError, TrustError
from vla_ota_manager.fetch import Fetcher, Received
from vla_ota_manager.records import Ref, Update
from vla_ota_manager.source import Url, join_url, parse_url
from vla_ota_manager.state import UpdateRecord
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store import Store
from vla_ota_manager.trust import Trust

_S = UpdateState
STEPS = (_S.CHECKING, _S.FETCHING, _S.VERIFYING)
"""States whose work is here."""
_UNFIT_CONTENT = frozenset(
    {"URL_INVALID", "SOURCE_NOT_ALLOWED", "REDIRECT_REFUSED", "MANIFEST_TOO_LARGE", "CONTENT_ENCODING_REFUSED"}
    | {"SIZE_MISMATCH", "BLOB_DIGEST_MISMATCH"}
)


@dataclass(frozen=True)
class Onlooker:
    """Who has the work done: called from within it, in the same thread."""

    interrupted: Callable[[], bool]
    """Asked several times a second; true ends the step with CancelledError."""
    show: Callable[[str], None]
    """Takes remarks for people."""
    on_fetched: Callable[[int, int], None]
    """Takes how much of the files to be fetched is on disk, and how much was received over all attempts [bytes]."""
    on_verified: Callable[[float], None]
    """Takes the share that is verified, 0 to 1."""


class Acquirer:
    """Does a step for any record and onlooker; keeps nothing of them but which bundle was repaired already."""

    def __init__(
        self, config: OtaConfig, store: Store, fetcher: Fetcher, trust: Trust, wall_clock: Callable[[], float]
    ) -> None:
        self._config, self._store, self._fetcher, self._trust = config, store, fetcher, trust
        self._wall_clock = wall_clock
        self._repaired = ""

    def step(self, record: UpdateRecord, onlooker: Onlooker) -> tuple[UpdateRecord, str]:
        """Do the work of the record's state, one of ``STEPS``; return what it leads to, and why, in words.

        Raises:
            OtaError, CheckpointError: see :func:`end_of`; CancelledError when the onlooker wants it.
        """
        steps = {_S.CHECKING: self._check, _S.FETCHING: self._fetch, _S.VERIFYING: self._verify}
        return steps[record.state](record, onlooker)

    # -- CHECKING -----------------------------------------------------------------------------------------------------------

    def _check(self, record: UpdateRecord, onlooker: Onlooker) -> tuple[UpdateRecord, str]:
        update = record.update
        self.refuse_expired(update)
        self._trust.check_offer(update)
        url = parse_url(update.manifest_url)
        data = self._manifest_on_disk(update.manifest_sha256)
        received = Received()
        if data is None:
            onlooker.show(f"fetching {update.manifest_url}")
            data = self._fetcher.manifest(url, received, onlooker.interrupted)
        self._trust.check_manifest(update, data)
        manifest = Manifest.parse(data)
        self.refuse_unfit(update, manifest)
        ref = Ref(manifest.name, manifest.version, manifest.digest)
        known = replace(record, ref=ref, bytes_downloaded=record.bytes_downloaded + received.count)
        if self._store.has(ref):
            return replace(known, state=_S.VERIFYING), "already on disk"
        if self._store.path_of(ref).exists():
            raise RefusedError("VERSION_CONFLICT", "is on disk with another digest; versions are immutable", str(ref))
        self._store.fs.write_file(self._manifest_path(ref.digest), data, "manifest")
        present = self._present(manifest)
        total = sum(_blobs(manifest).values()) - present
        return replace(known, state=_S.FETCHING, bytes_present=present, bytes_total=total), ""

    def _manifest_on_disk(self, sha256: str) -> bytes | None:
        for entry in self._store.installed():
            if sha256 and entry.ref.digest == sha256:
                return (entry.path / "manifest.json").read_bytes()
        return None

    def refuse_expired(self, update: Update) -> None:
        """Raise ``RefusedError`` for an offer whose time is over."""
        if update.expires_s and self._wall_clock() > update.expires_s:
            raise RefusedError("UPDATE_EXPIRED", "the offer has expired", update.update_id)

    def refuse_unfit(self, update: Update, manifest: Manifest) -> None:
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
        if manifest.kind != "full":
            raise RefusedError(
                "KIND_UNSUPPORTED", f"{manifest.kind!r} bundles are not installed by this version", "kind"
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

    def refuse_blocked(self, ref: Ref) -> None:
        """Raise ``RefusedError`` for a version that a verdict has rolled back."""
        block = self._store.state.blocks(ref.name, ref.version, ref.digest)
        if block is not None:
            raise RefusedError(
                "VERSION_BLOCKED", f"was rolled back: {block.reason}; unblock_model allows it again", str(ref)
            )

    # -- FETCHING -----------------------------------------------------------------------------------------------------------

    def _fetch(self, record: UpdateRecord, onlooker: Onlooker) -> tuple[UpdateRecord, str]:
        ref = ref_of(record)
        try:
            manifest = Manifest.parse(self._manifest_path(ref.digest).read_bytes())
        except (OSError, CheckpointError):
            manifest = None
        if manifest is None or manifest.digest != ref.digest:
            return replace(record, state=_S.CHECKING), "the manifest is gone from the disk"
        self.refuse_expired(record.update)
        blobs = _blobs(manifest)
        self._store.blobs.release({*blobs, ref.digest})
        missing = {sha256: size for sha256, size in blobs.items() if not self._store.blobs.claim(sha256, size)}
        self._make_room(missing)
        downloaded = self._download(record, manifest, missing, onlooker)
        after = replace(record, state=_S.VERIFYING, bytes_downloaded=downloaded)
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

    def _download(self, record: UpdateRecord, manifest: Manifest, missing: dict[str, int], onlooker: Onlooker) -> int:
        """Fetch what is missing; return the payload received so far, over all attempts [bytes]."""
        base = parse_url(record.update.manifest_url)
        # bytes that an earlier process wrote and could not put into the record any more
        fetched_before = self._present(manifest) - record.bytes_present
        received = Received(max(record.bytes_downloaded, fetched_before))
        done_before = record.bytes_total - sum(missing.values())
        paths = {entry.sha256: entry.path for entry in manifest.files}
        for sha256, size in missing.items():

            def on_progress(offset: int, done: int = done_before) -> None:
                onlooker.on_fetched(done + offset, received.count)

            onlooker.show(f"fetching {paths[sha256]}")
            urls = self._places(base, sha256, paths[sha256])
            self._fetcher.blob(urls, sha256, size, received, on_progress, onlooker.interrupted)
            done_before += size
        onlooker.on_fetched(record.bytes_total, received.count)
        return received.count

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

    # -- VERIFYING ----------------------------------------------------------------------------------------------------------

    def _verify(self, record: UpdateRecord, onlooker: Onlooker) -> tuple[UpdateRecord, str]:
        ref = ref_of(record)
        if self._store.has(ref):
            damaged = self._verify_folder(self._store.path_of(ref), ref, onlooker)
            if damaged:
                return replace(record, state=_S.CHECKING), damaged
        else:
            data = self._manifest_path(ref.digest).read_bytes() if self._manifest_path(ref.digest).exists() else b""
            if not data or not all(self._store.blobs.claim(s, n) for s, n in _blobs(Manifest.parse(data)).items()):
                return replace(record, state=_S.FETCHING), "a file is gone from the disk"
            manifest = Manifest.parse(data)
            with self._store.staged(manifest, data) as staged:
                damaged = self._verify_folder(staged, ref, onlooker)
                if damaged:
                    return replace(record, state=_S.FETCHING), damaged
                self._store.install(staged, manifest)
        return replace(record, state=_S.INSTALLED), f"{ref} is complete and verified"

    def _verify_folder(self, folder: Path, ref: Ref, onlooker: Onlooker) -> str:
        """Check a bundle. Return what was damaged and thrown away, to be fetched again once; empty = it is good."""
        done, total = 0, 1

        def progress(count: int) -> None:
            nonlocal done
            done += count
            onlooker.on_verified(min(1.0, done / total))

        try:
            total = max(1, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            verify_bundle(
                folder,
                expected_digest=ref.digest,
                scan_values=self._config.scan_values,
                progress=progress,
                cancel=onlooker.interrupted,
            )
        except CancelledCheckError as e:
            raise CancelledError("CANCELLED", "stopped on request") from e
        except DigestError as e:
            if e.code != "DIGEST_FILE" or self._repaired == ref.digest:
                raise
            self._repaired = ref.digest
            return self._throw_away(folder, ref, Path(e.path))
        return ""

    def _throw_away(self, folder: Path, ref: Ref, damaged: Path) -> str:
        """Remove a bundle whose file hashed right when it was fetched and does not any more; that file is fetched again."""
        entry = Manifest.parse((folder / "manifest.json").read_bytes()).file(damaged.relative_to(folder).as_posix())
        if self._store.has(ref):
            self._store.uninstall(ref)
        else:
            self._store.fs.remove_tree(folder, "verify.damaged")
        if entry is not None:
            self._store.blobs.drop(entry.sha256)
        return f"{damaged.name} is damaged on disk and fetched again"


def end_of(error: OtaError | CheckpointError) -> tuple[UpdateState, str, str]:
    """Return how an update ends that this error befell, its code and its message: REJECTED is the bundle's fault."""
    if isinstance(error, CheckpointError):
        return _S.REJECTED, error.code, str(error)
    refused = isinstance(error, RefusedError | TrustError) or error.code in _UNFIT_CONTENT
    return (_S.REJECTED if refused else _S.FAILED), error.code, error.message


def ref_of(record: UpdateRecord) -> Ref:
    """Return the bundle of an update that is past CHECKING."""
    if record.ref is None:
        raise OtaError("STATE_CORRUPT", "an update past CHECKING names no bundle", record.update.update_id)
    return record.ref


def _blobs(manifest: Manifest) -> dict[str, int]:
    return {entry.sha256: entry.size for entry in manifest.files}
