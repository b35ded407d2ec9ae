# SPDX-License-Identifier: Apache-2.0
"""Semantic Versioning 2.0.0 (https://semver.org) on the ``semver`` library, with coded errors."""

from __future__ import annotations

from typing import Literal

import semver

from vla_checkpoint.errors import VersionError

Bump = Literal["major", "minor", "patch"]
BUMPS: tuple[Bump, ...] = ("patch", "minor", "major")
"""From least to greatest."""

_MAX_CHARS = 64  # a version is a folder's name, and its numbers become Python integers


def parse_version(text: str, path: str = "version") -> semver.Version:
    """Parse a version; ``path`` names its origin in the error.

    Raises:
        VersionError: ``VERSION_INVALID``.
    """
    if not isinstance(text, str) or len(text) > _MAX_CHARS:
        raise VersionError("VERSION_INVALID", path, f"a version is a string of at most {_MAX_CHARS} characters")
    try:
        return semver.Version.parse(text)
    except ValueError as e:
        hint = " (a training step belongs into the lineage)" if text.isdigit() else ""
        reason = f"{text!r} is not Semantic Versioning 2.0.0: three numbers, such as 1.0.0{hint}"
        raise VersionError("VERSION_INVALID", path, reason) from e


def bump_between(old: str, new: str) -> Bump:
    """Return which part a release raises; ``2.0.0-rc.1`` and then ``2.0.0`` both raise the major part of ``1.x``.

    Raises:
        VersionError: ``VERSION_INVALID``, or ``VERSION_NOT_NEWER`` when ``new`` has no higher precedence than ``old``.
    """
    before, after = parse_version(old), parse_version(new)
    if after <= before:
        raise VersionError("VERSION_NOT_NEWER", "version", f"{new} is not newer than {old}")
    if after.major != before.major:
        return "major"
    if after.minor != before.minor:
        return "minor"
    if after.patch != before.patch:
        return "patch"
    # same numbers, so `old` was a pre-release of this very release: what its trailing zeros say
    if after.patch:
        return "patch"
    return "minor" if after.minor else "major"
