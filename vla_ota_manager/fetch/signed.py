# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a manifest where a trust root is configured: the keys that signed its version (TUF).

``tuf.ngclient`` decides; here is what it stands on: the manager's own HTTP client, and a file of the store. What was verified is
kept as one file, written in one step: after a crash a robot knows what it knew before a refresh, or after it. Signed metadata lie
beside the models' folders (``../../trust/`` of a manifest), wherever that is: nobody has to be trusted with the place.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from vla_checkpoint import CheckpointError
from vla_checkpoint.files import read_bytes
from vla_checkpoint.repository.metadata import FOLDER, SIGNED_AT, target_path
from vla_ota_manager.errors import ConfigError, FetchError, OutdatedTrustError, TrustError
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.http import Cancelled
from vla_ota_manager.fetch.source import Url, join_url, parse_url
from vla_ota_manager.records import Ref, utc_text
from vla_ota_manager.store.decode import decode, parse
from vla_ota_manager.store.filesystem import Filesystem

FILE = "trust.json"
"""What this robot has verified, in its store."""
_PLACE = f"../../{FOLDER}/"
_BEHIND_S = 3600.0
"""A clock may be so much behind the server's when it signed."""
_MAX_ROOT_BYTES = 512_000
_MAX_KEPT_BYTES = 32 << 20
_KEPT_NAME = re.compile(r"(root_history/)?[A-Za-z0-9%_.~-]{1,200}\.json")
_LIMITS = UpdaterConfig(max_delegations=8, targets_max_length=5_000_000, snapshot_max_length=500_000)
_log = logging.getLogger("vla_ota_manager")


class SignedVersions:
    """What the keys behind a trust root say; for one manager.

    Args:
        root: path of the trust root, a signed root of TUF.
        keep: where what was verified is kept.
        filesystem: writes that file.
        fetcher: fetches metadata.
        wall_clock: seconds since 1970 UTC.

    Raises:
        ConfigError: PARAMETER_INVALID: the trust root cannot be used.
    """

    def __init__(
        self, root: Path, keep: Path, filesystem: Filesystem, fetcher: Fetcher, wall_clock: Callable[[], float]
    ) -> None:
        self._root = _read_root(root)
        self._keep, self._fs, self._fetcher, self._wall_clock = keep, filesystem, fetcher, wall_clock

    def check(
        self, ref: Ref, manifest: bytes, url: Url, received: Received, cancelled: Cancelled, *, once: bool = False
    ) -> None:
        """Refuse a manifest that is not signed as this version by what the repository says now.

        Args:
            ref: what the manifest says it is.
            manifest: its bytes.
            url: where it came from.
            received: counts the payload.
            cancelled: asked several times a second.
            once: a server that does not answer is not asked again.

        Raises:
            TrustError: TRUST_SIGNATURE, TRUST_ROLLBACK, TRUST_METADATA, TRUST_UNKNOWN_TARGET; as OutdatedTrustError
                TRUST_EXPIRED, TRUST_CLOCK.
            FetchError, CancelledError: see ``Fetcher.manifest``.
        """
        found = self.find(target_path(ref.name, ref.version), join_url(url, _PLACE), received, cancelled, once=once)
        if found is None:
            raise TrustError("TRUST_UNKNOWN_TARGET", "is not signed, or was taken back", str(ref))
        try:
            found.verify_length_and_hashes(manifest)
        except LengthOrHashMismatchError as e:
            raise TrustError(
                "TRUST_UNKNOWN_TARGET", f"another manifest is signed as this version: {e}", str(ref)
            ) from e

    def check_again(self, ref: Ref, manifest: bytes, url: Url, cancelled: Cancelled) -> str:
        """Refuse likewise what was taken back since it was checked; return why nobody could be asked, "" if somebody was."""
        place = join_url(url, _PLACE)
        if place.is_file and not place.path.is_dir():
            return f"{place.text} is not there"  # a stick that was pulled out
        try:
            self.check(ref, manifest, url, Received(), cancelled, once=True)
        except FetchError as e:
            return str(e)
        return ""

    def signs(self, ref: Ref) -> bool:
        """Whether a version is signed by what was last verified. True also where that cannot be told from the disk alone."""
        try:
            targets = Metadata[Targets].from_bytes(self.kept()["targets.json"].encode()).signed
        except (KeyError, RepositoryError, OSError):
            return True  # nothing was verified yet, or the disk fails: a way back must not
        found = targets.targets.get(target_path(ref.name, ref.version))
        return targets.delegations is not None or (found is not None and found.hashes.get("sha256") == ref.digest)

    def find(
        self, path: str, base: Url, received: Received, cancelled: Cancelled, *, once: bool = False
    ) -> TargetFile | None:
        """Refresh what this robot knows from the metadata at ``base``, and return a target; None = there is none.

        What was verified is kept, also if what came after it was refused.
        """
        kept = self.kept()
        with tempfile.TemporaryDirectory(prefix="vla_trust_") as name:
            folder = Path(name)
            _unpack(kept, folder)
            try:
                with self._refusals(base):
                    lines = _Lines(self._fetcher, received, cancelled, once)
                    updater = Updater(name, base.text, fetcher=lines, config=_LIMITS, bootstrap=self._root)
                    updater.refresh()
                    self._check_clock(folder)
                    return updater.get_targetinfo(path)
            finally:
                verified = _pack(folder)
                if verified != kept:
                    self._fs.write_file(self._keep, json.dumps(verified).encode(), "trust")

    def kept(self) -> dict[str, str]:
        """Return the metadata that were verified before, by file name."""
        if not self._keep.exists():
            return {}
        try:
            found: dict[str, str] = decode(dict[str, str], parse(read_bytes(self._keep, _MAX_KEPT_BYTES)), "")
            if all(map(_KEPT_NAME.fullmatch, found)):
                return found
        except (CheckpointError, ValueError):
            pass
        _log.warning("%s is damaged: trust begins anew with the trust root", self._keep)
        return {}

    def _check_clock(self, folder: Path) -> None:
        """Refuse to go by a clock that is behind the moment of a signature: what expires would not."""
        timestamp = Metadata[Timestamp].from_file(str(folder / "timestamp.json")).signed
        signed_s, now_s = timestamp.unrecognized_fields.get(SIGNED_AT), self._wall_clock()
        if isinstance(signed_s, int) and not isinstance(signed_s, bool) and now_s < signed_s - _BEHIND_S:
            what = f"is {utc_text(now_s)}, but timestamp.json was signed at {utc_text(signed_s)}: set the clock (NTP)"
            raise OutdatedTrustError("TRUST_CLOCK", what, "this robot's clock")

    @contextmanager
    def _refusals(self, base: Url) -> Iterator[None]:
        """Turn the library's errors into codes."""
        try:
            yield
        except ExpiredMetadataError as e:
            now = utc_text(self._wall_clock())
            what = f"{e} by this robot's clock, {now}: if that is right, they have to be signed again"
            raise OutdatedTrustError("TRUST_EXPIRED", what, base.text) from e
        except UnsignedMetadataError as e:
            raise TrustError("TRUST_SIGNATURE", str(e), base.text) from e
        except BadVersionNumberError as e:
            raise TrustError("TRUST_ROLLBACK", str(e), base.text) from e
        except DownloadHTTPError as e:
            raise TrustError("TRUST_METADATA", f"signed metadata is missing: {e}", base.text) from e
        except (RepositoryError, DownloadLengthMismatchError) as e:
            raise TrustError("TRUST_METADATA", str(e), base.text) from e


class _Lines(FetcherInterface):
    """The manager's HTTP client: allowed sources, bounds, retries, cancellation."""

    def __init__(self, fetcher: Fetcher, received: Received, cancelled: Cancelled, once: bool) -> None:
        self._fetcher, self._received, self._cancelled, self._once = fetcher, received, cancelled, once

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a file of at most ``max_length`` bytes."""
        try:
            return self._fetcher.manifest(parse_url(url), self._received, self._cancelled, max_length, once=self._once)
        except FetchError as e:
            if e.code == "NOT_FOUND":
                raise DownloadHTTPError(e.message, 404) from e
            if e.code == "MANIFEST_TOO_LARGE":
                raise DownloadLengthMismatchError(e.message) from e
            raise

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, _LIMITS.targets_max_length)


def _read_root(path: Path) -> bytes:
    try:
        data = read_bytes(path, _MAX_ROOT_BYTES)
        root = Metadata[Root].from_bytes(data)
        if not isinstance(root.signed, Root):
            raise RepositoryError(f"it is {root.signed.type!r}, not 'root'")
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except (CheckpointError, RepositoryError) as e:
        raise ConfigError("PARAMETER_INVALID", f"is no signed root: {e}", f"trust_root: {path}") from e
    return data


def _unpack(kept: Mapping[str, str], folder: Path) -> None:
    for name, text in kept.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _pack(folder: Path) -> dict[str, str]:
    """Return what the library keeps in its folder; ``root.json`` is only another name of one of the roots."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
