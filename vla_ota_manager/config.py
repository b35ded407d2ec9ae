# SPDX-License-Identifier: Apache-2.0
"""Every setting of the manager with its unit and range: the source of the node's ROS parameters."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from vla_ota_manager.errors import ConfigError
from vla_ros.settings import setting


@dataclass(frozen=True)
class OtaConfig:
    """Settings of one manager. ``fields(OtaConfig)`` carry ``metadata`` ``doc``, ``low`` and ``high`` for parameter descriptors.

    Raises:
        ConfigError: a value is outside its range.
    """

    store_dir: str = setting("", "Folder of this policy's store; made if missing", path=True)
    blob_dir: str = setting(
        "",
        "Folder of blobs shared by several policies of a robot, same file system as store_dir; empty = own",
        path=True,
    )
    factory_bundle: str = setting(
        "",
        "Bundle folder that is verified, copied into the store and committed at the start while nothing is committed: what the "
        "robot runs before its first update, so that there is something to go back to. Empty = none",
        path=True,
    )
    model_name: str = setting("", "Accept only this model; empty = any")
    robot_type: str = setting("", "Accept only bundles for this robot type; empty = not checked here")
    channels: tuple[str, ...] = setting(
        (), "Action channels a bundle must have, in order, as name or name:unit; empty = not checked here"
    )

    allowed_sources: tuple[str, ...] = setting(
        (), "URL prefixes (http, https, file) to fetch from; empty = nothing is fetched"
    )
    trust_root: str = setting(
        "",
        "File of the signed root (1.root.json of `vla-checkpoint trust init`): only versions that its keys signed are accepted; "
        "empty = the SHA-256 of an offer is enough",
        path=True,
    )
    adapter_dir: str = setting(
        "", "Folder of the node adaptation, whose adapters are fetched too; empty = none", path=True
    )
    mirror_url: str = setting(
        "",
        "URL of a mirror at this site (`vla-fleet mirror`), asked first for each file; what it does not give comes from the "
        "server; empty = none",
    )
    ca_file: str = setting("", "PEM file of certificate authorities for https; empty = the system's", path=True)
    proxy: str = setting("", "Proxy URL for http and https; empty = none (the environment is not looked at)")
    fetch_connections: int = setting(
        4, "Connections at a time for a file of more than 32 MiB, where the server gives parts of it", 1, 16
    )
    bandwidth_bytes_s: int = setting(0, "Largest mean download rate [bytes/s]; 0 = no cap", 0)
    retries: int = setting(8, "Attempts in a row without progress after which a download fails", 0, 1000)
    backoff_s: float = setting(1.0, "First retry waits a random time up to this, doubled each time [s]", 0.0, 3600.0)
    backoff_max_s: float = setting(60.0, "Upper bound of that doubling [s]", 0.0, 86400.0)
    retry_after_max_s: float = setting(600.0, "Longest Retry-After that is obeyed [s]", 0.0, 86400.0)
    connect_timeout_s: float = setting(5.0, "Time for a connection to be made [s]", 0.01, 300.0)
    read_timeout_s: float = setting(30.0, "Longest silence of a server [s]", 0.01, 3600.0)
    stall_window_s: float = setting(60.0, "Window in which stall_min_bytes must arrive [s]", 0.01, 3600.0)
    stall_min_bytes: int = setting(16384, "Least progress in a stall window [bytes]", 1)
    max_redirects: int = setting(5, "Redirects followed per request; none may leave allowed_sources", 0, 20)
    max_manifest_bytes: int = setting(1_000_000, "Largest manifest that is read [bytes]", 1, 1_000_000)
    max_bundle_bytes: int = setting(64 << 30, "Largest bundle that is accepted [bytes]", 1)
    min_free_bytes: int = setting(1 << 30, "Space that must stay free on the store's file system [bytes]", 0)

    keep_versions: int = setting(3, "Versions kept on disk, beside committed, previous, trial and pinned ones", 1, 1000)
    scan_values: bool = setting(True, "Look for NaN and infinity in the weights before a bundle is accepted")
    scrub_period_s: float = setting(
        86400.0,
        "Pause between two readings of the versions on disk, which find damage; the first is at the start; 0 = none [s]",
        0.0,
        31_536_000.0,
    )
    history_size: int = setting(200, "Transitions kept in state.json", 10, 10000)

    policy_wait_s: float = setting(600.0, "How long an installed update waits for the policy node [s]", 0.0, 86400.0)
    policy_silent_s: float = setting(
        3.0, "A policy node whose status is older than this counts as absent [s]", 0.1, 3600.0
    )
    prepare_timeout_s: float = setting(600.0, "Longest preparation [s]", 0.1, 86400.0)
    swap_timeout_s: float = setting(60.0, "Longest wait for a boundary [s]", 0.1, 86400.0)
    swap_at: str = setting("CHUNK", "Boundary of an update's swap: CHUNK, EPISODE, REST or NOW")
    rollback_at: str = setting(
        "CHUNK", "Boundary of a rollback's swap; after a hard limit it is NOW whatever this says"
    )
    require_permission: bool = setting(
        False, "Swap only while update_permitted is true and fresh; never gates a rollback"
    )

    trial_lease_s: float = setting(
        10.0, "The policy node goes back by itself when the manager was silent this long in a trial [s]", 0.5, 3600.0
    )
    max_trial_attempts: int = setting(3, "Trials of one version that may end uncleanly before it is blocked", 1, 100)
    alpha: float = setting(0.05, "Bound on the probability that a good version is rolled back on evidence", 1e-6, 0.5)
    min_trial_episodes: int = setting(
        10, "Episodes with a known outcome that a commit needs, unless the chunks are reached", 0
    )
    min_trial_chunks: int = setting(
        120, "Scored chunks that a commit needs, unless the episodes are reached; both 0 = time alone", 0
    )
    min_trial_time_s: float = setting(60.0, "Time in motion that a commit needs [s]", 0.0)
    commit_max_evidence: float = setting(
        2.0, "No commit while the odds against the version exceed this (the trial stays open)", 1.0
    )
    first_install_chunks: int = setting(20, "Clean chunks after which a first install is committed", 1)
    success_margin: float = setting(0.1, "Tolerated loss of success rate against the incumbent", 0.0, 1.0)
    min_success_rate: float = setting(
        0.0, "Success rate that is demanded when the incumbent's is not known; 0 = none", 0.0, 1.0
    )
    score_sources: tuple[str, ...] = setting(
        (), "Score sources that may reject a version; empty = every one that is calibrated"
    )
    score_quantile: float = setting(
        0.95, "Quantile of the incumbent's scores above which a score counts as exceeding", 0.5, 0.9999
    )
    tolerated_exceedance: float = setting(0.15, "Share of exceeding blocks that a good version may have", 0.001, 0.9)
    block_chunks: int = setting(4, "Chunks whose largest score makes one observation; 0 = a whole episode", 0)
    calibration_samples: int = setting(512, "Observations kept per version and source", 20, 100000)
    heartbeat_timeout_s: float = setting(5.0, "Silence of the policy node that ends a trial [s]", 0.1, 3600.0)
    status_period_s: float = setting(1.0, "Longest time between two statuses [s]", 0.05, 10.0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(field, getattr(self, field.name))
        for name in ("swap_at", "rollback_at"):
            if getattr(self, name) not in ("CHUNK", "EPISODE", "REST", "NOW"):
                raise ConfigError("PARAMETER_INVALID", "must be CHUNK, EPISODE, REST or NOW", name)
        if not self.store_dir:
            raise ConfigError("PARAMETER_INVALID", "must name a folder", "store_dir")
        if self.status_period_s * 2 > self.trial_lease_s:
            raise ConfigError("PARAMETER_INVALID", "must be at least twice status_period_s", "trial_lease_s")
        if self.tolerated_exceedance <= 1 - self.score_quantile:
            raise ConfigError("PARAMETER_INVALID", "must be above 1 - score_quantile", "tolerated_exceedance")


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    low, high = field.metadata["low"], field.metadata["high"]
    expected = type(field.default)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not expected:
        raise ConfigError("PARAMETER_INVALID", f"must be {expected.__name__}, not {type(value).__name__}", field.name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("PARAMETER_INVALID", "must be finite", field.name)
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(
            "PARAMETER_INVALID", f"is {value}, allowed {low} to {high if high is not None else 'any'}", field.name
        )
