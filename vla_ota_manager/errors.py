# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the way of an update: one tree, a stable code for each reason.

::

    OtaError
    ├── ConfigError          PARAMETER_INVALID
    ├── OfferError           OFFER_INVALID OFFER_REPEATED OFFER_QUEUE_FULL NO_SUCH_UPDATE UNCANCELLABLE
    ├── RefusedError         UPDATE_EXPIRED VERSION_BLOCKED VERSION_CONFLICT VERSION_OLDER NAME_MISMATCH VERSION_MISMATCH
    │                        ROBOT_TYPE_MISMATCH CHANNELS_MISMATCH BASE_MISSING BASE_CHANGED BUNDLE_TOO_LARGE; and the policy
    │                        node's own codes when it refuses a bundle
    ├── TrustError           MANIFEST_UNTRUSTED MANIFEST_DIGEST_MISMATCH TRUST_SIGNATURE TRUST_ROLLBACK TRUST_METADATA
    │   │                    TRUST_UNKNOWN_TARGET
    │   └── OutdatedTrustError TRUST_EXPIRED TRUST_CLOCK
    ├── FetchError           TOO_MANY_REDIRECTS HTTP_STATUS NOT_FOUND CONNECTION_FAILED STALLED TRUNCATED CONTENT_RANGE_INVALID
    │   └── RefusedFetchError URL_INVALID SOURCE_NOT_ALLOWED REDIRECT_REFUSED MANIFEST_TOO_LARGE CONTENT_ENCODING_REFUSED
    │                        SIZE_MISMATCH BLOB_DIGEST_MISMATCH
    ├── StoreError           STORE_LOCKED STORE_IO STORE_LAYOUT NAME_INVALID DISK_FULL MODEL_NOT_FOUND
    │   └── StateError       STATE_CORRUPT STATE_TOO_NEW
    ├── PolicyError          POLICY_ABSENT PREPARE_FAILED PREPARE_TIMEOUT SWAP_FAILED SWAP_TIMEOUT, and the policy node's own
    ├── CommandError         NO_TRIAL NO_PREVIOUS ON_TRIAL EXPECTATION_FAILED ENGINE_STOPPED COMMAND_TIMEOUT TOO_MANY_GOALS
    │                        EXPERIMENT_INVALID EXPERIMENT_LEFT TRIAL_RUNNING
    └── CancelledError       CANCELLED

Why a version was rolled back is no error but travels as a code too: HARD_LIMIT HEARTBEAT_LOST SCORES_WORSE SUCCESS_WORSE
TRIAL_ATTEMPTS LEASE_EXPIRED WORKER_LOST WORKER_HOST_LOST POLICY_RESTARTED SWAPPED_AWAY SUPERSEDED OPERATOR_ROLLBACK.
INTERNAL_ERROR is a defect.
SCORE_INVALID stands in the log and the diagnostics only: a score or an outcome was dropped. VERSION_DAMAGED is an event: a
version on disk is damaged.

Errors of ``vla_checkpoint`` and of the policy node keep their own codes on the way to the status.
"""

from __future__ import annotations

from vla_ros.fault import Fault
from vla_ros.plain import plain


class OtaError(Exception):
    """Base of everything that the update engine raises.

    Attributes:
        code: stable SCREAMING_SNAKE_CASE name of the reason.
        reason: what is wrong, for people; one printable line, without secrets of URLs.
        where: file, URL or field it is about, likewise; empty if none.
        fault: whose it is; BUNDLE: asking again is no use, and the update is REJECTED.
    """

    fault = Fault.ROBOT

    def __init__(self, code: str, reason: str, where: str = "") -> None:
        self.code = code
        self.reason = plain(reason)
        self.where = plain(where)
        super().__init__(f"{code}: {self.message}")

    @property
    def message(self) -> str:
        """The reason with its place, without the code (which travels in a field of its own)."""
        return f"{self.where}: {self.reason}" if self.where else self.reason


class ConfigError(OtaError):
    """A parameter is outside its range."""


class OfferError(OtaError):
    """An offer is malformed, or a request names no update that it could apply to."""


class RefusedError(OtaError):
    """The version that is offered may not run on this robot."""

    fault = Fault.BUNDLE


class TrustError(OtaError):
    """The manifest is not the one that was promised, or nobody whom this robot trusts has signed it."""

    fault = Fault.BUNDLE


class OutdatedTrustError(TrustError):
    """What was signed no longer holds by this robot's clock, or the clock is wrong: the same offer may be good later."""

    fault = Fault.ROBOT


class FetchError(OtaError):
    """Bytes could not be fetched.

    Attributes:
        retryable: the same request may succeed later.
        retry_after_s: how long the server asked to wait [s]; 0 = it did not say.
    """

    def __init__(
        self, code: str, reason: str, where: str = "", *, retryable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(code, reason, where)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class RefusedFetchError(FetchError):
    """What is offered may not be fetched, or what is sent is not what was promised."""

    fault = Fault.BUNDLE


class StoreError(OtaError):
    """The robot's store refuses, or cannot do, what was asked."""


class StateError(StoreError):
    """``state.json`` cannot be used."""


class PolicyError(OtaError):
    """The policy node is not there, or did not do what was asked; ``fault`` as it says itself."""

    def __init__(self, code: str, reason: str, where: str = "", fault: Fault = Fault.ROBOT) -> None:
        super().__init__(code, reason, where)
        self.fault = fault


class CommandError(OtaError):
    """An operator's command cannot be carried out."""


class CancelledError(OtaError):
    """The work was stopped on request."""
