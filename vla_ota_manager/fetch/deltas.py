# SPDX-License-Identifier: Apache-2.0
"""A file made of one on the disk and a delta, where a registry offers one. Whatever goes wrong, the file is fetched whole.

What the delta makes is hashed before it becomes a blob, as a download is: a delta can waste its own bytes, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from vla_checkpoint import CancelledCheckError, CheckpointError, limits
from vla_checkpoint.delta import MIN_BYTES, OFFERS_NAME, Offer, apply_delta, parse_offers
from vla_checkpoint.files import read_bytes
from vla_ota_manager.errors import CancelledError, FetchError, OtaError
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.http import Cancelled
from vla_ota_manager.fetch.source import Url, join_url
from vla_ota_manager.store.blobs import BlobStore


class Deltas:
    """Finds and uses deltas for one manager."""

    def __init__(self, blobs: BlobStore, fetcher: Fetcher) -> None:
        self._blobs, self._fetcher = blobs, fetcher

    def saved(self, digest: str) -> list[Offer] | None:
        """Return the offers for a bundle that were fetched before; None = nobody has asked for them yet."""
        with contextlib.suppress(CheckpointError):
            return parse_offers(read_bytes(self._path(digest), limits.JSON_BYTES), OFFERS_NAME)
        return None

    def fetch(self, manifest_url: Url, digest: str, received: Received, cancelled: Cancelled) -> list[Offer]:
        """Ask the registry for the offers for a bundle, and keep them; nothing, if it has none or they cannot be read."""
        with contextlib.suppress(FetchError, CheckpointError):
            data = self._fetcher.manifest(join_url(manifest_url, OFFERS_NAME), received, cancelled)
            offers = parse_offers(data, OFFERS_NAME)
            self._blobs.fs.write_file(self._path(digest), data, "deltas")
            return offers
        return []

    def choose(self, offers: Iterable[Offer], missing: dict[str, int]) -> dict[str, Offer]:
        """Return the delta to use for each missing file: the smallest whose bases are here, if it beats what is left to fetch."""
        chosen: dict[str, Offer] = {}
        for offer in sorted(offers, key=lambda o: o.size):
            size = missing.get(offer.target, 0)
            left = size - self._blobs.info(offer.target, size).size if size >= MIN_BYTES else 0
            cost = offer.size - self._blobs.info(offer.sha256, offer.size).size
            here = all(self._blobs.blob(base).is_file() for base in offer.bases)
            if here and cost < left and offer.target not in chosen:
                chosen[offer.target] = offer
        return chosen

    def use(
        self,
        offer: Offer,
        size: int,
        url: Url,
        received: Received,
        on_progress: Callable[[int], None],
        cancelled: Cancelled,
    ) -> str:
        """Fetch a delta and make its target, a file of ``size`` bytes. Return why it was no use; empty = the blob is there.

        Args:
            offer: the delta.
            size: of the target [bytes].
            url: where the delta is.
            received: counts the payload.
            on_progress: called with the share of the target [bytes] that the fetched part of the delta stands for.
            cancelled: asked several times a second.

        Raises:
            CancelledError: ``cancelled`` said so.
        """

        def show(done: int) -> None:
            on_progress(done * size // offer.size)

        try:
            if not self._blobs.claim(offer.sha256, offer.size):
                self._fetcher.blob([url], offer.sha256, offer.size, received, show, cancelled)
            self._make(offer, size, cancelled)
        except CancelledError:
            raise
        except (OtaError, CheckpointError) as e:
            self._blobs.discard(offer.sha256)
            return str(e)
        self._blobs.discard(offer.sha256)
        return ""

    def _make(self, offer: Offer, size: int, cancelled: Cancelled) -> None:
        """Make the target in the place of its download. A crash leaves the beginning of it, which a download would go on from."""
        blobs = self._blobs
        blobs.discard(offer.target)
        bases = [blobs.blob(base) for base in offer.bases]
        try:
            with blobs.fs.append(blobs.partial(offer.target), 0) as file:

                def write(data: bytes) -> None:
                    if file.size + len(data) > size:
                        raise FetchError("SIZE_MISMATCH", f"the delta makes more than {size} bytes", offer.sha256)
                    file.write(data)
                    blobs.fs.point("fetch.delta")

                # one thread: a robot moves meanwhile
                made = apply_delta(blobs.blob(offer.sha256), bases, write, workers=1, cancel=cancelled)
                if made.sha256 != offer.target:
                    raise FetchError("BLOB_DIGEST_MISMATCH", f"the delta makes {made.sha256}", offer.sha256)
                file.flush()
        except CancelledCheckError as e:
            blobs.discard(offer.target)
            raise CancelledError("CANCELLED", "stopped on request") from e
        except (OtaError, CheckpointError):
            blobs.discard(offer.target)
            raise
        blobs.finish(offer.target)

    def _path(self, digest: str) -> Path:
        return self._blobs.partial_dir / f"{digest}.deltas"
