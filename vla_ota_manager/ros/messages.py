# SPDX-License-Identifier: Apache-2.0
"""The manager's records as ROS messages, and back: nothing but a change of form."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from vla_ota.msg import AnomalyScore, EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, ModelVersion

from vla_ota_manager.records import EpisodeResult, Event, ModelEntry, Score, Status, Update
from vla_ros.stamps import from_seconds, to_seconds


def to_update(message: ModelUpdate) -> Update:
    """Return the offer; a time before 1970 counts as long past."""
    expires = message.expires
    never = (expires.sec, expires.nanosec) == (0, 0)
    return Update(
        update_id=message.update_id,
        manifest_url=message.manifest_url,
        manifest_sha256=message.manifest_sha256,
        name=message.name,
        version=message.version,
        activate=message.activate,
        urgent=message.urgent,
        expires_s=0.0 if never else max(to_seconds(expires), 1e-9),
    )


def to_score(message: AnomalyScore) -> Score:
    """Return the score, finite or not: what NaN means depends on whose it is, see ``inbox.unusable``."""
    return Score(
        source=message.source,
        value=message.score,
        stamp_s=to_seconds(message.header.stamp),
        version=message.version,
        generation=message.generation,
        episode_id=message.episode_id,
    )


def to_result(message: EpisodeOutcome) -> EpisodeResult:
    """Return the outcome of an episode."""
    return EpisodeResult(
        episode_id=message.episode_id,
        success=message.success,
        stamp_s=to_seconds(message.header.stamp),
        version=message.version,
        generation=message.generation,
        known=message.known,
        mixed=message.mixed,
        intervention=message.intervention,
    )


def from_status(status: Status, stamp: Time) -> ModelStatus:
    """Return the message; fields have the same names on both sides."""
    message = ModelStatus(
        state=int(status.state),
        state_name=status.state_name,
        update_id=status.update_id,
        name=status.name,
        committed_version=status.committed_version,
        committed_digest=status.committed_digest,
        previous_version=status.previous_version,
        trial_version=status.trial_version,
        trial_digest=status.trial_digest,
        active_version=status.active_version,
        active_digest=status.active_digest,
        progress=status.progress,
        bytes_done=status.bytes_done,
        bytes_total=status.bytes_total,
        bytes_downloaded=status.bytes_downloaded,
        trial_progress=status.trial_progress,
        trial_message=status.trial_message,
        versions=list(status.versions),
        blocked=list(status.blocked),
        damaged=list(status.damaged),
        pinned=list(status.pinned),
        experiment=status.experiment,
        experiment_robot=status.experiment_robot,
        experiment_digests=list(status.experiment_digests),
        experiment_probability=status.experiment_probability,
        trust=status.trust,
        rollback_ready=status.rollback_ready,
        error_code=status.error_code,
        message=status.message,
    )
    message.header.stamp = stamp
    return message


def from_event(event: Event, stamp: Time) -> ModelEvent:
    """Return the message."""
    message = ModelEvent(
        update_id=event.update_id,
        from_state=event.from_state,
        to_state=event.to_state,
        version=event.version,
        error_code=event.error_code,
        message=event.message,
    )
    message.header.stamp = stamp
    return message


def from_entry(entry: ModelEntry) -> ModelVersion:
    """Return one line of list_models."""
    return ModelVersion(
        name=entry.ref.name,
        version=entry.ref.version,
        digest=entry.ref.digest,
        size_bytes=entry.size_bytes,
        committed=entry.committed,
        previous=entry.previous,
        active=entry.active,
        on_trial=entry.on_trial,
        pinned=entry.pinned,
        blocked=entry.blocked,
        block_reason=entry.block_reason,
        path=entry.path,
        installed=from_seconds(entry.installed_s),
    )
