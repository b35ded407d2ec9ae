# SPDX-License-Identifier: Apache-2.0
"""Versions for demo and tests, made from the shipped bundle in seconds, deterministically and without training.

    python -m vla_sim.recipes --out build/versions

Good ones, ones that a check must refuse, and ones that only their behaviour gives away. Each lies in
``<out>/reach_block/<version>`` with a manifest, a lineage that says how it was made, and (unless that is the point) a golden
file of its own weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vla_checkpoint import FileEntry, Manifest, load_manifest, read_header, sha256_file, write_manifest
from vla_checkpoint.scan import scan_file
from vla_policy_node.policies.errors import PolicyError
from vla_sim.bundle import (
    NAME,
    SHIPPED_BUNDLE,
    WEIGHTS_FILE,
    read_weights,
    seal,
    write_json,
    write_own_golden,
    write_weights,
)
from vla_sim.errors import RecipeError

Change = Callable[[Path], None]
"""Changes a bundle folder in place."""


@dataclass(frozen=True)
class Variant:
    """How one version is made from a copy of the base: ``change`` it, golden, manifest, ``spoil`` it."""

    version: str
    summary: str
    expected: str
    """What a robot should do with it: accept, verify (refuse by reading), golden (refuse by replay), shadow (refuse by what it
    wants on live observations) or trial (roll back)."""
    change: Change
    own_golden: bool = True
    """False: it keeps the golden file of the base."""
    spoil: Change | None = None
    """Damage done after the manifest was written: hashes no longer fit."""
    spoil_and_sign: Change | None = None
    """Damage that the manifest is then made to fit: hashes are right, contents are not."""


def relative_noise(sigma: float, seed: int, prefixes: tuple[str, ...] = ("",)) -> Change:
    """Weights whose names begin with one of ``prefixes``, times ``1 + sigma * normal``."""

    def change(folder: Path) -> None:
        rng = np.random.default_rng(seed)
        weights = read_weights(folder)
        for name in sorted(weights):
            if name.startswith(prefixes):
                values = weights[name].astype(np.float32)
                weights[name] = (values * (1 + sigma * rng.normal(size=values.shape))).astype(weights[name].dtype)
        write_weights(folder, weights)

    return change


def flip_bytes(folder: Path) -> None:
    """Flip the bits of some bytes in the middle of the weights: same size, other content."""
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    for i in range(middle, middle + 64):
        data[i] ^= 0xFF
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    """Leave out the last third of the weights."""
    path = folder / WEIGHTS_FILE
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def put_nan(folder: Path) -> None:
    """Put one NaN into one tensor, as a training run that diverged would leave many."""
    weights = read_weights(folder)
    name = "head.bias"
    weights[name] = weights[name].copy()
    weights[name].flat[0] = np.nan
    write_weights(folder, weights)


def scale_spread(feature: str, factor: float) -> Change:
    """Statistics of another data set, in which ``feature`` varies ``factor`` times as much; 0: it never moved."""

    def change(folder: Path) -> None:
        path = folder / "stats.json"
        stats = json.loads(path.read_text(encoding="utf-8"))
        stats[feature]["std"] = [factor * value for value in stats[feature]["std"]]
        write_json(path, stats)

    return change


def displace(folder: Path) -> None:
    """An offset on every action, as of a policy for a robot whose joints have their zeros elsewhere."""
    weights = read_weights(folder)
    weights["head.bias"] = (weights["head.bias"].astype(np.float32) + 1.6).astype(weights["head.bias"].dtype)
    write_weights(folder, weights)


def derail(folder: Path) -> None:
    """A bad one that looks like a checkpoint: it misses the block, its hand trembles, its chunks do not continue each other."""
    relative_noise(0.5, 120, ("vision.place", "word"))(folder)
    relative_noise(0.8, 121, ("action_query",))(folder)
    relative_noise(0.085, 122, ("blocks.2.", "head."))(folder)


VARIANTS = (
    Variant("1.1.0", "a little different in every weight", "accept", relative_noise(0.001, seed=110)),
    Variant("1.1.1", "bytes flipped after the manifest was made", "verify", relative_noise(0.001, seed=111), spoil=flip_bytes),
    Variant("1.1.2", "cut short after the manifest was made", "verify", relative_noise(0.001, seed=112), spoil=truncate),
    Variant("1.1.3", "NaN in the weights, hashes right", "verify", relative_noise(0.001, seed=113), spoil_and_sign=put_nan),
    Variant(
        "1.1.4", "statistics without spread, hashes right", "verify", relative_noise(0.001, seed=114),
        spoil_and_sign=scale_spread("observation.state", 0.0),
    ),
    Variant("1.1.5", "another data set's statistics", "golden", scale_spread("action", 1.6), own_golden=False),
    Variant("1.1.6", "another robot's zero positions, golden of its own", "shadow", displace),
    Variant("1.2.0", "plausible and bad: valid, golden of its own weights", "trial", derail),
    Variant("1.2.1", "the same weights, golden of the good policy", "golden", derail, own_golden=False),
    Variant("1.3.0", "another good one", "accept", relative_noise(0.001, seed=130)),
    Variant("1.4.0", "and one more", "accept", relative_noise(0.001, seed=140)),
)  # fmt: skip
"""Every version but the base, in the order of the demo."""


def make(variant: Variant, out_dir: Path, base_bundle: Path = SHIPPED_BUNDLE) -> Path:
    """Make one version; return its folder. What was there before is replaced.

    Raises:
        RecipeError: the base is not one that the recipe knows how to change.
        CheckpointError: base or result are not a bundle.
    """
    base = load_manifest(base_bundle)
    folder = _copy(base_bundle, out_dir, variant.version)
    (folder / "manifest.json").unlink()
    try:
        variant.change(folder)
        if variant.own_golden:
            write_own_golden(folder)
        lineage = {"derived_from": {"version": base.version, "digest": base.digest}, "recipe": variant.summary}
        manifest = seal(folder, variant.version, lineage, created=base.created)
        if variant.spoil_and_sign is not None:
            variant.spoil_and_sign(folder)
            write_manifest(folder, _resigned(manifest, folder))
        if variant.spoil is not None:
            variant.spoil(folder)
    except (KeyError, TypeError, PolicyError) as error:
        raise RecipeError(f"{base_bundle} does not fit recipe {variant.version}: {error}") from error
    return folder


def make_all(
    out_dir: Path, base_bundle: Path = SHIPPED_BUNDLE, variants: Sequence[Variant] = VARIANTS
) -> dict[str, Path]:
    """Copy the base and make these versions below ``out_dir/reach_block``; return version → folder."""
    base = load_manifest(base_bundle)
    folders = {base.version: _copy(base_bundle, out_dir, base.version)}
    for variant in variants:
        folders[variant.version] = make(variant, out_dir, base_bundle)
    return folders


def _copy(base_bundle: Path, out_dir: Path, version: str) -> Path:
    folder = out_dir / NAME / version
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for path in base_bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())  # contents only: an installed base may be read-only
    return folder


def _resigned(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest of damaged files, which ``build_manifest`` rightly refuses to make."""
    files, tensors = [], dict(manifest.tensors)
    for entry in manifest.files:
        path = folder / entry.path
        if path.suffix == ".safetensors":
            scan = scan_file(path, read_header(path))
            files.append(FileEntry(entry.path, path.stat().st_size, scan.sha256))
            if entry.path in tensors:
                tensors[entry.path] = scan.tensors
        else:
            files.append(FileEntry(entry.path, path.stat().st_size, sha256_file(path)))
    return replace(manifest, files=tuple(files), tensors=tensors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make versions and say what they are."""
    parser = argparse.ArgumentParser(description="Make the demo's versions from the shipped bundle.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--versions", nargs="+", metavar="VERSION", help="only these; default: all")
    options = parser.parse_args(arguments)
    known = {variant.version: variant for variant in VARIANTS}
    if unknown := sorted(set(options.versions or ()) - set(known)):
        parser.error(f"no recipe for {', '.join(unknown)}; known: {', '.join(known)}")
    variants = [known[version] for version in options.versions or known]
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which is below: more threads are slower
    folders = make_all(options.out, options.base, variants)
    for variant in variants:
        print(f"{folders[variant.version]}  {variant.expected:7} {variant.summary}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
