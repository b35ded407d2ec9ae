# SPDX-License-Identifier: Apache-2.0
"""One update from CHECKING to SWAPPING: everything that happens before the robot notices.

Each step reads the saved record, works, and ends with a transition. So a restart goes on with the step that was under way, and
what it had already put on the disk is found there.
"""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import quote

from vla_checkpoint import CancelledCheckError, CheckpointError, DigestError, Manifest, verify_bundle
from vla_ota_manager.context import Context, log
from vla_ota_manager.errors import (
    CancelledError,
    FetchError,
    OtaError,
    PolicyError,
    RefusedError,
    StoreError,
    TrustError,
)
from vla_ota_manager.fetch import Received, pause
from vla_ota_manager.port import PrepareResult
from vla_ota_manager.records import Ref, Update
from vla_ota_manager.source import Url, join_url, parse_url
from vla_ota_manager.state import TrialRecord, UpdateRecord
from vla_ota_manager.states import PIPELINE, UpdateState

_S = UpdateState
_SAVE_PERIOD_S = 5.0
_ASK_AGAIN_S = 1.0
_UNFIT_CONTENT = frozenset(
    {"URL_INVALID", "SOURCE_NOT_ALLOWED", "REDIRECT_REFUSED", "MANIFEST_TOO_LARGE", "CONTENT_ENCODING_REFUSED"}
    | {"SIZE_MISMATCH", "BLOB_DIGEST_MISMATCH"}
)
_ASK_AGAIN = frozenset({"POLICY_ABSENT", "PREPARE_IN_PROGRESS", "TRIAL_RUNNING"})
_NOT_THE_BUNDLES_FAULT = (
    _ASK_AGAIN
    | {"CANCELLED", "PREPARE_TIMEOUT", "NOT_CONFIGURED", "CLOSED", "CONTROL_LOST", "CONTROL_UNRESPONSIVE"}
    | {"OUT_OF_MEMORY", "NO_FREE_SLOT", "WORKER_START_FAILED", "INTERNAL_ERROR"}
)
"""The update could not be carried out (FAILED); any other code is the policy node's refusal of this bundle (REJECTED)."""


class UpdatePipeline:
    """Carries the update in progress on until it ends, is interrupted, or is about to be swapped in."""

    def __init__(self, context: Context) -> None:
        self._ctx = context
        self._config = context.config
        self._store = context.store
        self._repaired = ""
        self._saved_at = 0.0

    def run(self) -> None:
        """Work on the update in progress, which must be in one of the states before SWAPPING."""
        steps = {_S.CHECKING: self._check, _S.FETCHING: self._fetch, _S.VERIFYING: self._verify}
        try:
            while (record := self._store.state.update) is not None and record.state in PIPELINE:
                if self._ctx.interrupted():
                    raise CancelledError("CANCELLED", "interrupted")
                steps.get(record.state, self._activate)(record)
        except CancelledError:
            self._interrupted()
        except (RefusedError, TrustError, CheckpointError) as e:
            self._end(_S.REJECTED, e.code, e.message if isinstance(e, OtaError) else str(e))
        except OtaError as e:
            self._end(_S.REJECTED if e.code in _UNFIT_CONTENT else _S.FAILED, e.code, e.message)
        except Exception as e:
            log.exception("an update failed in a way that nobody foresaw")
            self._end(_S.FAILED, "INTERNAL_ERROR", repr(e))

    def _interrupted(self) -> None:
        request = self._ctx.cancelled()
        if request is not None:
            self._end(_S.CANCELLED, request[0], request[1])
        # else the engine stops, or has a command to carry out first: the record says where to go on

    def _end(self, state: UpdateState, code: str, message: str) -> None:
        """Close the update. What failed or was cancelled keeps its downloads; what was rejected, or fills the disk, does not."""
        with self._ctx.transition(state, code=code, message=message, final=True):
            pass
        if state is _S.REJECTED or code == "DISK_FULL":
            self._store.blobs.release(set())
        self._store.retain(self._config.keep_versions)

    # -- CHECKING -----------------------------------------------------------------------------------------------------------

    def _check(self, record: UpdateRecord) -> None:
        update = record.update
        self._refuse_expired(record)
        self._ctx.trust.check_offer(update)
        url = parse_url(update.manifest_url)
        data = self._manifest_on_disk(update.manifest_sha256)
        received = Received()
        if data is None:
            self._ctx.show(f"fetching {update.manifest_url}")
            data = self._ctx.fetcher.manifest(url, received, self._ctx.interrupted)
        self._ctx.trust.check_manifest(update, data)
        manifest = Manifest.parse(data)
        ref = Ref(manifest.name, manifest.version, manifest.digest)
        self.refuse_unfit(update, manifest)
        state = self._store.state
        if state.committed == ref:
            end = _S.COMMITTED if update.activate else _S.INSTALLED
            with self._ctx.transition(end, message=f"{ref} is the committed version", final=True) as draft:
                draft.activation_due = draft.activation_due or update.activate
        elif self._store.has(ref):
            with self._ctx.transition(_S.VERIFYING, message="already on disk") as draft:
                _record(draft.update).ref = ref
        else:
            if self._store.path_of(ref).exists():
                raise RefusedError(
                    "VERSION_CONFLICT", "is on disk with another digest; versions are immutable", str(ref)
                )
            self._store.fs.write_file(self._manifest_path(ref.digest), data, "manifest")
            present = self._present(manifest)
            with self._ctx.transition(_S.FETCHING, version=ref.version) as draft:
                target = _record(draft.update)
                target.ref, target.bytes_present = ref, present
                target.bytes_total = sum(_blobs(manifest).values()) - present
                target.bytes_downloaded += received.count

    def _manifest_on_disk(self, sha256: str) -> bytes | None:
        for entry in self._store.installed():
            if sha256 and entry.ref.digest == sha256:
                return (entry.path / "manifest.json").read_bytes()
        return None

    def _refuse_expired(self, record: UpdateRecord) -> None:
        expires = record.update.expires_s
        if expires and self._ctx.wall_clock() > expires:
            raise RefusedError("UPDATE_EXPIRED", "the offer has expired", record.update.update_id)

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
        self._refuse_blocked(Ref(manifest.name, manifest.version, manifest.digest))

    def _refuse_blocked(self, ref: Ref) -> None:
        block = self._store.state.blocks(ref.name, ref.version, ref.digest)
        if block is not None:
            raise RefusedError(
                "VERSION_BLOCKED", f"was rolled back: {block.reason}; unblock_model allows it again", str(ref)
            )

    # -- FETCHING -----------------------------------------------------------------------------------------------------------

    def _fetch(self, record: UpdateRecord) -> None:
        ref = _ref(record)
        try:
            manifest = Manifest.parse(self._manifest_path(ref.digest).read_bytes())
        except (OSError, CheckpointError):
            manifest = None
        if manifest is None or manifest.digest != ref.digest:
            with self._ctx.transition(_S.CHECKING, message="the manifest is gone from the disk"):
                return
        self._refuse_expired(record)
        blobs = _blobs(manifest)
        self._store.blobs.release({*blobs, ref.digest})
        missing = {sha256: size for sha256, size in blobs.items() if not self._store.blobs.claim(sha256, size)}
        self._make_room(missing)
        self._download(record, manifest, missing)
        with self._ctx.transition(_S.VERIFYING, message=f"{len(missing)} of {len(blobs)} files fetched"):
            pass

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

    def _download(self, record: UpdateRecord, manifest: Manifest, missing: dict[str, int]) -> None:
        ctx, live = self._ctx, self._ctx.live
        base = parse_url(record.update.manifest_url)
        # bytes that an earlier process wrote and could not put into the record any more
        fetched_before = self._present(manifest) - record.bytes_present
        received = Received(max(record.bytes_downloaded, fetched_before))
        done_before = record.bytes_total - sum(missing.values())
        paths = {entry.sha256: entry.path for entry in manifest.files}
        for sha256, size in missing.items():

            def on_progress(offset: int, done: int = done_before) -> None:
                live.bytes_done = done + offset
                live.bytes_downloaded = received.count
                live.progress = live.bytes_done / max(1, record.bytes_total)
                self._save_count(received.count)
                ctx.report()

            ctx.show(f"fetching {paths[sha256]}")
            urls = self._places(base, sha256, paths[sha256])
            ctx.fetcher.blob(urls, sha256, size, received, on_progress, ctx.interrupted)
            done_before += size
        live.bytes_done, live.bytes_downloaded = record.bytes_total, received.count

    def _places(self, base: Url, sha256: str, path: str) -> list[Url]:
        """Return where a blob may be: where a registry keeps it, and beside the manifest, as in a plain folder."""
        places, refusal = [], None
        for reference in (f"../../blobs/sha256/{sha256}", quote(path)):
            try:
                url = join_url(base, reference)
                self._ctx.fetcher.check(url)
                places.append(url)
            except FetchError as e:  # a manifest may lie too high for the first, or only its own folder be allowed
                refusal = e
        if not places and refusal is not None:
            raise refusal
        return places

    def _save_count(self, count: int) -> None:
        if time.monotonic() - self._saved_at > _SAVE_PERIOD_S:
            self._saved_at = time.monotonic()
            with self._store.edit() as draft:
                _record(draft.update).bytes_downloaded = count

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

    def _verify(self, record: UpdateRecord) -> None:
        ref = _ref(record)
        if self._store.has(ref):
            if not self._verify_folder(self._store.path_of(ref), ref):
                return
        else:
            data = self._manifest_path(ref.digest).read_bytes() if self._manifest_path(ref.digest).exists() else b""
            if not data or not all(self._store.blobs.claim(s, n) for s, n in _blobs(Manifest.parse(data)).items()):
                with self._ctx.transition(_S.FETCHING, message="a file is gone from the disk"):
                    return
            manifest = Manifest.parse(data)
            staged = self._store.stage(manifest, data)
            if not self._verify_folder(staged, ref):
                return
            self._store.install(staged, manifest)
        with self._ctx.transition(
            _S.INSTALLED, message=f"{ref} is complete and verified", final=not record.update.activate
        ):
            pass
        self._store.blobs.release(set())
        self._store.retain(self._config.keep_versions)

    def _verify_folder(self, folder: Path, ref: Ref) -> bool:
        """Check a bundle; false if a damaged file was thrown away and the update goes back to fetch it, which it does once."""
        live, done, total = self._ctx.live, 0, 1

        def progress(count: int) -> None:
            nonlocal done
            done += count
            live.progress = min(1.0, done / total)
            self._ctx.report()

        try:
            total = max(1, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            verify_bundle(
                folder,
                expected_digest=ref.digest,
                scan_values=self._config.scan_values,
                progress=progress,
                cancel=self._ctx.interrupted,
            )
        except CancelledCheckError as e:
            raise CancelledError("CANCELLED", "stopped on request") from e
        except DigestError as e:
            if e.code != "DIGEST_FILE" or self._repaired == ref.digest:
                raise
            self._repaired = ref.digest
            self._throw_away(folder, ref, Path(e.path))
            return False
        return True

    def _throw_away(self, folder: Path, ref: Ref, damaged: Path) -> None:
        """Remove a bundle whose file hashed right when it was fetched and does not any more, and fetch that file again."""
        entry = Manifest.parse((folder / "manifest.json").read_bytes()).file(damaged.relative_to(folder).as_posix())
        installed = self._store.has(ref)
        if installed:
            self._store.uninstall(ref)
        else:
            self._store.fs.remove_tree(folder, "verify.damaged")
        if entry is not None:
            self._store.blobs.drop(entry.sha256)
        message = f"{damaged.name} is damaged on disk and fetched again"
        with self._ctx.transition(_S.CHECKING if installed else _S.FETCHING, message=message):
            pass

    # -- INSTALLED, PREPARING, SHADOW ---------------------------------------------------------------------------------------

    def _activate(self, record: UpdateRecord) -> None:
        ref = _ref(record)
        if record.state is not _S.INSTALLED:
            with self._ctx.transition(_S.INSTALLED, message="the preparation begins anew"):
                pass
        self._refuse_blocked(ref)
        deadline = time.monotonic() + self._config.policy_wait_s
        self._wait_until_possible(record, deadline)
        with self._ctx.transition(_S.PREPARING):
            pass
        while not (result := self._prepare(ref)).success:
            code = result.error_code or "PREPARE_FAILED"
            if code not in _NOT_THE_BUNDLES_FAULT:
                raise RefusedError(code, f"policy_node refuses it: {result.message}", str(ref))
            if code not in _ASK_AGAIN or time.monotonic() > deadline:
                raise PolicyError(code, result.message, "prepare_model")
            self._ctx.show(f"policy_node: {code} {result.message}; asked again")
            pause(_ASK_AGAIN_S, self._ctx.interrupted)
            self._wait_until_possible(record, deadline)
        self._wait_until_possible(record, time.monotonic() + self._config.policy_wait_s)
        with self._ctx.transition(_S.SWAPPING) as draft:
            draft.trial = TrialRecord(ref, record.update.update_id, first_install=draft.committed is None)

    def _prepare(self, ref: Ref) -> PrepareResult:
        result = self._ctx.port.prepare(
            self._store.path_of(ref),
            ref.digest,
            self._on_prepare,
            self._ctx.interrupted,
            self._config.prepare_timeout_s,
        )
        if self._ctx.interrupted():
            raise CancelledError("CANCELLED", "stopped on request")
        return result

    def _on_prepare(self, name: str, progress: float) -> None:
        if name == "SHADOW" and self._store.state.state is _S.PREPARING:
            with self._ctx.transition(_S.SHADOW):
                pass
        self._ctx.live.progress = progress
        self._ctx.show(f"policy_node: {name}")

    def _wait_until_possible(self, record: UpdateRecord, deadline: float) -> None:
        """Wait for a policy node that lives and for permission to change what it runs."""
        while True:
            self._refuse_expired(record)
            if self._ctx.interrupted():
                raise CancelledError("CANCELLED", "stopped on request")
            if self._ctx.policy() is None:
                if time.monotonic() > deadline:
                    raise PolicyError("POLICY_ABSENT", f"no status for {self._config.policy_wait_s:g} s", "policy_node")
                self._ctx.show(f"{_ref(record)} waits for policy_node, which is silent")
            elif not self._ctx.permitted():
                self._ctx.show(f"{_ref(record)} waits for update_permitted")
            else:
                return
            self._ctx.wait(0.2)


def _blobs(manifest: Manifest) -> dict[str, int]:
    return {entry.sha256: entry.size for entry in manifest.files}


def _ref(record: UpdateRecord) -> Ref:
    if record.ref is None:
        raise OtaError("STATE_CORRUPT", "an update past CHECKING names no bundle", record.update.update_id)
    return record.ref


def _record(record: UpdateRecord | None) -> UpdateRecord:
    if record is None:
        raise OtaError("STATE_CORRUPT", "no update is in progress")
    return record
