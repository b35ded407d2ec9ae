# SPDX-License-Identifier: Apache-2.0
"""Errors of the fleet server. Every one carries a stable ``code``, a text for people, and the HTTP status that it becomes.

::

    FleetError
    ├── InputError      422  a request does not say what it must
    ├── SignInError     401  no key or token, or a wrong one
    ├── RoleError       403  the key's role does not allow it
    ├── MissingError    404  what a request names does not exist
    ├── ConflictError   409  it contradicts what is there
    ├── BusyError       429  too many of them; ``retry_after_s`` says when it may be tried again
    │   └── UnavailableError 503  what the server stands on does not answer
    ├── UpstreamError   502  the server behind a mirror cannot be reached, or answers nonsense
    └── FullError       507  the server has no room for it
"""

from __future__ import annotations


class FleetError(Exception):
    """Root of the package's errors."""

    status = 500

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class InputError(FleetError):
    """A request does not say what it must."""

    status = 422


class SignInError(FleetError):
    """No key or token, or a wrong one."""

    status = 401


class RoleError(FleetError):
    """The key's role does not allow it."""

    status = 403


class MissingError(FleetError):
    """What a request names does not exist."""

    status = 404


class ConflictError(FleetError):
    """It contradicts what is there."""

    status = 409


class BusyError(FleetError):
    """Too many of them. ``retry_after_s`` says when it may be tried again."""

    status = 429

    def __init__(self, code: str, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class UnavailableError(BusyError):
    """What the server stands on, its database for example, does not answer."""

    status = 503


class UpstreamError(FleetError):
    """The server behind a mirror cannot be reached, or answers nonsense."""

    status = 502


class FullError(FleetError):
    """The server has no room for it."""

    status = 507
