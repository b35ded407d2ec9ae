# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a manifest: its SHA-256 comes with the offer, so whoever may publish offers. Nothing is signed yet."""

from __future__ import annotations

import hashlib
import hmac

from vla_ota_manager.errors import TrustError
from vla_ota_manager.records import Update

NAME = "sha256"
"""What the status calls it."""


def check_offer(update: Update) -> None:
    """Refuse an offer without a SHA-256, before anything is fetched; raise ``TrustError``."""
    if not update.manifest_sha256:
        raise TrustError("MANIFEST_UNTRUSTED", "is empty, and no trust root is configured", "manifest_sha256")


def check_manifest(update: Update, manifest: bytes) -> None:
    """Raise ``TrustError`` if these bytes are not the promised ones."""
    check_offer(update)
    actual = hashlib.sha256(manifest).hexdigest()
    if not hmac.compare_digest(actual, update.manifest_sha256):
        raise TrustError(
            "MANIFEST_DIGEST_MISMATCH", f"is {actual}, promised {update.manifest_sha256}", update.manifest_url
        )
