# SPDX-License-Identifier: Apache-2.0
"""How far a version must move.

Major: architecture or action space changed; minor: retrained; patch: adapter or task fine-tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_checkpoint.bundle import Bundle
from vla_checkpoint.errors import VersionError
from vla_checkpoint.golden import GOLDEN_NAME
from vla_checkpoint.manifest import Manifest
from vla_checkpoint.version import BUMPS, Bump, bump_between

# Keys of LeRobot's config.json that say how a policy was trained or is executed, not what it is. Everything else is architecture.
_NOT_ARCHITECTURE = frozenset({
    "n_action_steps", "normalization_mapping", "temporal_ensemble_coeff", "rtc_config", "num_inference_steps", "num_steps",
    "device", "use_amp", "compile_model", "compile_mode", "gradient_checkpointing", "freeze_vision_encoder", "train_expert_only",
    "train_state_proj", "pretrained_path", "pretrained_backbone_weights", "load_vlm_weights", "push_to_hub", "repo_id", "private",
    "pretrained_revision", "tags", "license", "use_peft",
})  # fmt: skip
_NOT_ARCHITECTURE_PREFIXES = ("optimizer_", "scheduler_")
_PATCH_METHODS = ("adapter", "fine_tune", "merge")


def least_bump(old: Manifest | Bundle, new: Manifest | Bundle) -> Bump:
    """Return the smallest part of the version that ``new`` must raise over ``old``.

    Bundles say all; with manifests only, tensors' names are compared but shapes, dtypes and ``config.json`` cannot be.

    * major: robot, policy type, action channels or rate, tensors' names, shapes or dtypes, or what ``config.json`` says of the
      architecture
    * patch: an adapter on ``old`` or on the same base; a bundle whose ``lineage`` says ``{"parent": <digest of old>, "method":
      "fine_tune" | "adapter" | "merge"}``; or nothing changed but golden observations and lineage
    * minor: everything else (retrained, other statistics or processors)
    """
    before, after = _manifest(old), _manifest(new)
    if _interface(before) != _interface(after):
        return "major"
    if after.kind == "adapter":
        base = after.base
        assert base is not None  # the parser holds it
        same_base = before.base == base or base.digest == before.digest
        return "patch" if same_base else "minor"
    parent = after.lineage.get("parent") == before.digest and after.lineage.get("method") in _PATCH_METHODS
    if before.kind == "adapter":
        return "patch" if parent else "major"  # nothing shows that the architecture is the old one
    if _architecture(old, new) != _architecture(new, old):
        return "major"
    return "patch" if parent or _content(before) == _content(after) else "minor"


def check_bump(old: Manifest | Bundle, new: Manifest | Bundle) -> Bump:
    """Check that ``new`` raises the version far enough, and return the least part it had to raise.

    Raises:
        VersionError: ``VERSION_NOT_NEWER`` or ``VERSION_BUMP_TOO_SMALL``.
    """
    before, after = _manifest(old).version, _manifest(new).version
    got, needed = bump_between(before, after), least_bump(old, new)
    if BUMPS.index(got) < BUMPS.index(needed):
        reason = f"{before} to {after} is a {got} step, this is a {needed} change"
        raise VersionError("VERSION_BUMP_TOO_SMALL", "version", reason)
    return needed


def _manifest(bundle: Manifest | Bundle) -> Manifest:
    return bundle.manifest if isinstance(bundle, Bundle) else bundle


def _interface(manifest: Manifest) -> tuple[Any, ...]:
    return manifest.name, manifest.policy_type, manifest.robot_type, manifest.action


def _architecture(bundle: Manifest | Bundle, other: Manifest | Bundle) -> tuple[Any, ...]:
    """What identifies the architecture, as far as both sides can say (a manifest knows tensors' names alone)."""
    if isinstance(bundle, Bundle) and isinstance(other, Bundle):
        tensors = {
            info.name: (info.dtype, info.shape)
            for file in bundle.weight_files
            for info in bundle.headers[file].tensors.values()
        }
        return tensors, _architecture_keys(bundle.config.raw)
    return ({name for tensors in _manifest(bundle).tensors.values() for name in tensors},)


def _architecture_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key not in _NOT_ARCHITECTURE and not key.startswith(_NOT_ARCHITECTURE_PREFIXES)
    }


def _content(manifest: Manifest) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in manifest.files if entry.path != GOLDEN_NAME}
