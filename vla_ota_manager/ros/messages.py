# SPDX-License-Identifier: Apache-2.0
"""The manager's records as ROS messages, and back: nothing but a change of form."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from builtin_interfaces.msg import Time
from std_msgs.msg import Header
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
        allow_older=message.allow_older,
        expires_s=0.0 if never else max(to_seconds(expires), 1e-9),
    )


def to_score(message: AnomalyScore) -> Score:
    """Return the score, finite or not: what NaN means depends on whose it is, see ``inbox.unusable``."""
    return Score(value=message.score, **_same(message, Score))


def to_result(message: EpisodeOutcome) -> EpisodeResult:
    """Return the outcome of an episode."""
    return EpisodeResult(**_same(message, EpisodeResult))


def _same(message: AnomalyScore | EpisodeOutcome, record: type[Score | EpisodeResult]) -> dict[str, Any]:
    """Return the fields that have the same names on both sides, and the stamp."""
    names = message.get_fields_and_field_types().keys() & {field.name for field in fields(record)}
    return {**{name: getattr(message, name) for name in names}, "stamp_s": to_seconds(message.header.stamp)}


def from_status(status: Status, stamp: Time) -> ModelStatus:
    """Return the message."""
    return _filled(ModelStatus, status, header=Header(stamp=stamp), state_name=status.state_name)


def from_event(event: Event, stamp: Time) -> ModelEvent:
    """Return the message."""
    return _filled(ModelEvent, event, header=Header(stamp=stamp))


def from_entry(entry: ModelEntry) -> ModelVersion:
    """Return one line of list_models."""
    ref = entry.ref
    installed = from_seconds(entry.installed_s)
    return _filled(ModelVersion, entry, name=ref.name, version=ref.version, digest=ref.digest, installed=installed)


def _filled(kind: type[Any], record: Status | Event | ModelEntry, **more: Any) -> Any:
    """Return a message with the record's values in the fields of the same names."""
    names = kind.get_fields_and_field_types().keys() & {field.name for field in fields(record)}
    return kind(**{name: getattr(record, name) for name in names}, **more)
