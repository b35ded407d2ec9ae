# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a manifest without a trust root: its SHA-256 comes with the offer, so whoever may publish offers."""

from __future__ import annotations

import hashlib
import hmac

from vla_ota_manager.errors import TrustError
from vla_ota_manager.records import Update

OFFERED, SIGNED = "sha256", "tuf"
"""What the status calls it: the offer's SHA-256 counts, or the signatures that a trust root asks for."""


def check_offer(update: Update) -> None:
    """Refuse an offer without a SHA-256, before anything is fetched; raise ``TrustError``."""
    if not update.manifest_sha256:
        raise TrustError("MANIFEST_UNTRUSTED", "is empty, and no trust root is configured", "manifest_sha256")


def check_manifest(update: Update, manifest: bytes) -> None:
    """Raise ``TrustError`` if these bytes are not the promised ones. Nothing was promised: only signatures count."""
    if not update.manifest_sha256:
        return
    actual = hashlib.sha256(manifest).hexdigest()
    if not hmac.compare_digest(actual, update.manifest_sha256):
        raise TrustError(
            "MANIFEST_DIGEST_MISMATCH", f"is {actual}, promised {update.manifest_sha256}", update.manifest_url
        )
