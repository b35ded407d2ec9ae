# SPDX-License-Identifier: Apache-2.0
"""Features from topics: pictures by the words that their names share, numbers by the joints that they name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vla_contract.draft import ObservationDraft, Said
from vla_contract.matching import choices, find_joint, only_pairs, relative, timeline
from vla_contract.seen import Camera, Feature, Joints, joint_and_field

STATE = "observation.state"
_AS_JOINTS = "`select` below is as a JointState names its fields"
_COMPRESSED = "/compressed"
_COMMON = {"observation", "images", "image", "raw", "compressed", "camera", "cam", "color", "rgb", "rect", "video"}


def draft_cameras(
    cameras: Sequence[Camera], features: Sequence[Feature] | None, namespace: str
) -> list[ObservationDraft]:
    """Return a draft a camera; ``features`` of a dataset, None = there is none and every topic becomes a feature."""
    cameras = _each_once(cameras)
    if features is None:
        names = _names(cameras)
        return [
            _camera(f"observation.images.{name}", None, c, "", namespace)
            for c, name in zip(cameras, names, strict=True)
        ]
    pairs = _pairs(features, cameras)
    free = choices([c for c in cameras if c not in [camera for camera, _ in pairs.values()]])
    found = []
    for feature in features:
        camera, note = pairs.get(feature.key, (None, free))
        found.append(_camera(feature.key, feature, camera, note, namespace))
    return found


def _pairs(features: Sequence[Feature], cameras: Sequence[Camera]) -> dict[str, tuple[Camera, str]]:
    """Return feature → camera and what a person should look at: by words in common, by size, and the last by the last."""
    rounds: list[tuple[Callable[[Feature, Camera], bool], str]] = [
        (lambda f, c: bool(_words(f.key) & _words(c.name)), ""),
        (lambda f, c: c.size == f.shape[:2], "the only one of this size: is it this camera?"),
    ]
    if len(features) == len(cameras):
        rounds.append((lambda f, c: True, "the only one left: is it this camera?"))
    found: dict[str, tuple[Camera, str]] = {}
    for fit, note in rounds:
        free = [c for c in cameras if c not in [camera for camera, _ in found.values()]]
        for feature, camera in only_pairs([f for f in features if f.key not in found], free, fit):
            found[feature.key] = camera, note
    return found


def _camera(key: str, feature: Feature | None, camera: Camera | None, note: str, namespace: str) -> ObservationDraft:
    size = feature.shape[:2] if feature else camera.size if camera else None
    source = "[height, width] of the dataset" if feature else "[height, width] as published; take the policy's"
    seen = _seen(camera) if camera else ""
    return ObservationDraft(
        key,
        topic=Said(relative(camera.name, namespace) if camera else None, "; ".join(filter(None, [seen, note]))),
        type=Said(camera.type if camera else None),
        timeline=timeline(camera),
        resize=Said(f"[{size[0]}, {size[1]}]", source) if size else Said(),
    )


def _seen(camera: Camera) -> str:
    size = f"{camera.size[1]}x{camera.size[0]} px" if camera.size else ""
    return ", ".join(filter(None, [f"{camera.rate_hz:.3g} Hz" if camera.rate_hz else "silent", camera.encoding, size]))


def _each_once(cameras: Sequence[Camera]) -> list[Camera]:
    """Leave out the compressed form of a picture that is published as it is, too."""
    raw = {c.name for c in cameras if not c.name.endswith(_COMPRESSED)}
    return [c for c in cameras if c.name in raw or c.name.removesuffix(_COMPRESSED) not in raw]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", name.lower())) - _COMMON


def _names(cameras: Sequence[Camera]) -> list[str]:
    """Name features after what tells their topics apart."""
    found: list[str] = []
    for camera in cameras:
        name = "_".join(w for w in re.findall(r"[a-z0-9]+", camera.name.lower()) if w not in _COMMON) or "camera"
        found.append(name if name not in found else f"{name}_{len(found) + 1}")
    return found


def draft_numbers(feature: Feature, states: Sequence[Joints], namespace: str) -> ObservationDraft:
    """Return the draft of a dataset's numbers: their joints must be those of one JointState topic."""
    named = [joint_and_field(name) for name in feature.names]
    field = feature.key.rpartition(".")[2] if feature.key.endswith((".velocity", ".effort")) else "position"
    whole = [s for s in states if named and all(find_joint(joint, s.joints) for joint, _ in named)]
    topic = whole[0] if len(whole) == 1 else states[0] if not whole and len(states) == 1 and named else None
    if topic is None:
        select = [Said(f"{said or field}.{joint}") for joint, said in named]
        select = select or [Said(note=f"number {i} of the dataset's") for i in range(feature.shape[0])]
        return ObservationDraft(
            feature.key, Said(note=choices(whole or states)), Said(note=_AS_JOINTS), Said(), tuple(select)
        )
    select = []
    for joint, said in named:
        found = find_joint(joint, topic.joints)
        value = f"{said or field}.{found}" if found else None
        select.append(Said(value, "" if found else f"{joint!r}: one of {', '.join(topic.joints)}"))
    return _joints(feature.key, topic, tuple(select), namespace)


def draft_state(states: Sequence[Joints], joints: Sequence[str], namespace: str) -> ObservationDraft | None:
    """Return the draft of the state without a dataset: the topic that measures the commanded joints."""
    whole = [s for s in states if joints and all(find_joint(joint, s.joints) for joint in joints)]
    if len(whole) == 1:
        fields = [find_joint(joint, whole[0].joints) for joint in joints]
        return _joints(STATE, whole[0], tuple(Said(f"position.{name}") for name in fields), namespace)
    if len(states) == 1:
        return _joints(STATE, states[0], tuple(Said(f"position.{name}") for name in states[0].joints), namespace)
    return ObservationDraft(STATE, Said(note=choices(states)), Said(), Said(), (Said(),)) if states else None


def _joints(key: str, topic: Joints, select: tuple[Said, ...], namespace: str) -> ObservationDraft:
    rate = f"{topic.rate_hz:.3g} Hz" if topic.rate_hz else "silent"
    return ObservationDraft(key, Said(relative(topic.name, namespace), rate), Said(topic.type), timeline(topic), select)
