# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a manifest. Signed metadata (TUF) will be a second implementation of :class:`Trust`."""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

from vla_ota_manager.errors import TrustError
from vla_ota_manager.records import Update


class Trust(Protocol):
    """Decides whether the bytes of a manifest are those that were promised."""

    @property
    def name(self) -> str:
        """What the status calls it: ``none``, ``sha256`` or ``tuf``."""
        ...

    def check_offer(self, update: Update) -> None:
        """Refuse an offer that could never be trusted, before anything is fetched; raise ``TrustError``."""
        ...

    def check_manifest(self, update: Update, manifest: bytes) -> None:
        """Raise ``TrustError`` if these bytes are not the promised ones."""
        ...


class Sha256Trust:
    """The manifest's SHA-256 comes with the offer: as trustworthy as whoever may publish offers to this robot."""

    name = "sha256"

    def check_offer(self, update: Update) -> None:
        """Refuse an offer without a SHA-256."""
        if not update.manifest_sha256:
            raise TrustError("MANIFEST_UNTRUSTED", "is empty, and no trust root is configured", "manifest_sha256")

    def check_manifest(self, update: Update, manifest: bytes) -> None:
        """Compare the SHA-256."""
        self.check_offer(update)
        actual = hashlib.sha256(manifest).hexdigest()
        if not hmac.compare_digest(actual, update.manifest_sha256):
            raise TrustError(
                "MANIFEST_DIGEST_MISMATCH", f"is {actual}, promised {update.manifest_sha256}", update.manifest_url
            )
