# SPDX-License-Identifier: Apache-2.0
"""From a trainer's files to a bundle: golden observations of its own weights, a version, a manifest with its lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint import (
    BaseRef,
    Bundle,
    Manifest,
    build_manifest,
    least_bump,
    load_config,
    open_bundle,
    parse_version,
    write_golden,
    write_manifest,
)
from vla_checkpoint.golden import GOLDEN_NAME
from vla_checkpoint.manifest import Kind
from vla_learning.running import load_policy

GOLDEN_TOLERANCE_STDS = 0.01
"""Largest difference of a replay, in standard deviations of a channel: above rounding, below what another policy would answer."""


def seal(folder: Path, base: Bundle, kind: Kind, lineage: Mapping[str, Any], version: str = "") -> Bundle:
    """Write the manifest over what lies in the folder: name and robot of the base, its version bumped as little as allowed.

    Args:
        folder: the trainer's files.
        base: what was trained from.
        kind: ``full`` or ``adapter`` (on ``base``).
        lineage: kept in the manifest, with ``parent`` and ``method``.
        version: of the bundle; empty: the least step over the base's that the change needs.

    Raises:
        CheckpointError: the files make no bundle.
    """
    old = base.manifest
    method = "adapter" if kind == "adapter" else "retrain"
    highest = parse_version(old.version).next_version("major")
    manifest = build_manifest(
        folder,
        name=old.name,
        version=str(highest),
        policy_type=load_config(folder).type,
        robot_type=old.robot_type,
        channels=old.action.channels,
        rate_hz=old.action.rate_hz,
        kind=kind,
        base=BaseRef(old.name, old.version, base.digest) if kind == "adapter" else None,
        lineage={"parent": base.digest, "method": method, **lineage},
        requires=old.requires,
    )
    write_manifest(folder, manifest)
    draft = open_bundle(folder)
    least = str(parse_version(old.version).next_version(least_bump(base, draft)))
    return _rewritten(draft, replace(manifest, version=version or least))


def add_lineage(bundle: Bundle, more: Mapping[str, Any]) -> Bundle:
    """Write ``more`` into the manifest's lineage; the bundle has a new digest then."""
    return _rewritten(bundle, replace(bundle.manifest, lineage={**bundle.manifest.lineage, **more}))


def add_golden(
    folder: Path,
    bundle: Bundle,
    base: Bundle,
    observations: Mapping[str, npt.NDArray[Any]],
    instructions: Sequence[str],
) -> None:
    """Write ``golden.safetensors``: what the candidate's own weights answer; the manifest has to be written again.

    Args:
        folder: of the candidate.
        bundle: the candidate, sealed.
        base: what it was trained from.
        observations: feature → ``[N, …]``.
        instructions: N texts.
    """
    policy = load_policy(bundle, base)
    chunks = []
    for i, instruction in enumerate(instructions):
        policy.reset()
        chunks.append(policy.predict_chunk({name: array[i] for name, array in observations.items()}, instruction))
    spread = np.asarray(bundle.stats["action"]["std"], np.float64).reshape(-1)
    tolerance = [float(max(GOLDEN_TOLERANCE_STDS * s, 1e-4)) for s in spread]
    write_golden(folder / GOLDEN_NAME, dict(observations), np.stack(chunks), list(instructions), tolerance)


def replay_golden(folder: Path, bundle: Bundle, base: Bundle, others: Sequence[Bundle] = ()) -> bool:
    """Write the candidate's answers to the golden observations of its base, or of the first of ``others`` that has some.

    Returns:
        Whether there are any; then the manifest has to be written again.
    """
    found = (other.golden() for other in (base, *others))
    golden = next((g for g in found if g is not None and g.seed is None), None)  # others would have to be drawn again
    if golden is None:
        return False
    add_golden(folder, bundle, base, golden.observations, golden.instructions)
    return True


def _rewritten(bundle: Bundle, manifest: Manifest) -> Bundle:
    write_manifest(bundle.path, manifest)
    return open_bundle(bundle.path)
