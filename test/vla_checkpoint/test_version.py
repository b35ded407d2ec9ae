# SPDX-License-Identifier: Apache-2.0
"""Versions order as semver.org says, and a release must raise them at least as far as it changes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import make_bundle, plain_golden, plain_stats, random_tensors
from support.refusals import refused

from vla_checkpoint import BaseRef, Bundle, Channel, check_bump, least_bump, open_bundle, parse_version
from vla_checkpoint.version import bump_between

# semver.org, section 11
ASCENDING = [
    "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0",
    "2.0.0", "2.1.0", "2.1.1", "2.1.10",
]  # fmt: skip


def test_precedence_is_that_of_the_specification() -> None:
    for (i, a), (j, b) in itertools.product(enumerate(ASCENDING), repeat=2):
        assert parse_version(a).compare(parse_version(b)) == (i > j) - (i < j)
    assert parse_version("1.0.0+a").compare(parse_version("1.0.0+b")) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "v1.0.0",
        "01.2.3",
        "1.2.3-",
        "1.2.3-01",
        "1.2.3+",
        "1.2.3 ",
        "-1.0.0",
        "1" * 65 + ".0.0",
    ],
)
def test_what_is_not_semantic_versioning_is_refused(text: str) -> None:
    with refused("VERSION_INVALID"):
        parse_version(text)


@pytest.mark.parametrize(
    ("old", "new", "bump"),
    [
        ("1.2.3", "1.2.4", "patch"), ("1.2.3", "1.3.0", "minor"), ("1.2.3", "2.0.0", "major"), ("1.2.3", "1.2.5-rc.1", "patch"),
        ("1.2.3", "2.0.0-rc.1", "major"), ("2.0.0-rc.1", "2.0.0", "major"), ("1.3.0-rc.1", "1.3.0-rc.2", "minor"),
        ("1.3.1-a", "1.3.1", "patch"), ("0.1.0", "0.2.0", "minor"),
    ],
)  # fmt: skip
def test_bump_between(old: str, new: str, bump: str) -> None:
    assert bump_between(old, new) == bump


@pytest.mark.parametrize("new", ["1.2.3", "1.2.2", "0.9.9", "1.2.3-rc.1", "1.2.3+build"])
def test_a_version_that_is_not_newer_is_refused(new: str) -> None:
    with refused("VERSION_NOT_NEWER"):
        bump_between("1.2.3", new)


Make = Callable[..., Bundle]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    numbers = itertools.count()

    def build(**arguments: Any) -> Bundle:
        path = tmp_path / str(next(numbers))
        make_bundle(path, **arguments)
        return open_bundle(path)

    return build


def test_architecture_and_action_space_are_major(make: Make) -> None:
    old = make()
    joint = Channel("j1", "rad", "absolute")
    weights = random_tensors(2, 0)
    for arguments in (
        {"robot_type": "other_arm"},
        {"policy_type": "other"},
        {"rate_hz": 20.0},
        {"channels": (joint, Channel("j2", "rad", "velocity"))},
        {"channels": (joint, Channel("j2", "deg", "absolute"))},
        {"channels": (Channel("j2", "rad", "absolute"), joint)},
        {"horizon": 32},
        {"hidden_dim": 64},
        {"images": {"observation.images.top": (8, 8)}},
        {"tensors": {**weights, "extra": np.zeros(1, np.float32)}},
        {"tensors": {**weights, "head.bias": weights["head.bias"].reshape(1, 2)}},
        {"tensors": {**weights, "head.bias": weights["head.bias"].astype(np.float16)}},
    ):
        assert least_bump(old, make(**arguments)) == "major", arguments


def test_retraining_other_statistics_and_another_execution_are_minor(make: Make) -> None:
    old = make()
    assert least_bump(old, make(seed=1)) == "minor"
    assert least_bump(old, make(execute=4)) == "minor"
    assert least_bump(old, make(optimizer_lr=1e-4)) == "minor"
    stats = {key: {**plain_stats(2), "mean": [0.5, 0.5]} for key in ("action", "observation.state")}
    assert least_bump(old, make(files={"stats.json": json.dumps(stats).encode()})) == "minor"


def test_fine_tunes_that_name_their_parent_adapters_and_golden_alone_are_patches(make: Make) -> None:
    old = make()
    fine_tune = {"parent": old.digest, "method": "fine_tune"}
    assert least_bump(old, make(seed=1, lineage=fine_tune)) == "patch"
    assert least_bump(old, make(seed=1, lineage={**fine_tune, "parent": "0" * 64})) == "minor"
    assert least_bump(old, make(horizon=32, lineage=fine_tune)) == "major"
    assert least_bump(old, make(golden=plain_golden())) == "patch"
    base = BaseRef("pick_place", "1.0.0", old.digest)
    adapter = make(base=base)
    assert least_bump(old, adapter) == "patch"
    assert least_bump(adapter, make(base=base, seed=2)) == "patch"
    assert least_bump(adapter, make(base=BaseRef("pick_place", "1.1.0", "0" * 64))) == "minor"
    assert least_bump(old, make(base=base, rate_hz=10.0)) == "major"
    assert least_bump(adapter, make(lineage={"parent": adapter.digest, "method": "merge"})) == "patch"
    assert least_bump(adapter, make()) == "major"


def test_with_manifests_alone_tensor_names_still_count(make: Make) -> None:
    old, new = make(), make(tensors={"other": np.zeros(3, np.float32)})
    assert least_bump(old.manifest, new.manifest) == "major"
    assert least_bump(old.manifest, make(seed=1)) == "minor"


def test_a_step_that_is_too_small_is_refused(make: Make) -> None:
    old = make(version="1.4.2")
    assert check_bump(old, make(version="1.5.0", seed=1)) == "minor"
    assert check_bump(old, make(version="2.0.0", seed=1)) == "minor"
    with refused("VERSION_BUMP_TOO_SMALL"):
        check_bump(old, make(version="1.4.3", seed=1))
    with refused("VERSION_NOT_NEWER"):
        check_bump(old, make(version="1.4.2", seed=1))
