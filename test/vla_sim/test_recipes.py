"""Each of the demo's versions is what it says: accepted, refused by reading, refused by replay, or bad in motion only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_checkpoint import CheckpointError, load_manifest, read_golden, verify_bundle
from vla_checkpoint.version import parse_version
from vla_sim.arm import CONTROL_HZ, VELOCITY_LIMITS_RAD_S
from vla_sim.bundle import SHIPPED_BUNDLE, load_policy, read_weights, write_weights
from vla_sim.errors import RecipeError
from vla_sim.evaluate import Evaluation, evaluate
from vla_sim.recipes import VARIANTS, make, make_all

HARD_STEP_RAD = 0.15  # of config/sim_arm.contract.yaml: a policy that jumps by more is stopped at once
EXPECTED = {variant.version: variant.expected for variant in VARIANTS}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("versions"))


def largest_golden_difference(bundle: Path) -> float:
    """Largest difference of a channel from its golden chunk, in tolerances."""
    golden, policy = read_golden(bundle / "golden.safetensors"), load_policy(bundle)
    worst = 0.0
    for i, instruction in enumerate(golden.instructions):
        chunk = policy.predict_chunk({key: array[i] for key, array in golden.observations.items()}, instruction)
        worst = max(worst, float((np.abs(chunk - golden.action[i]) / golden.tolerance).max()))
    return worst


def test_the_shipped_bundle_is_valid_and_small() -> None:
    bundle = verify_bundle(SHIPPED_BUNDLE)
    manifest = load_manifest(SHIPPED_BUNDLE)
    assert (manifest.name, manifest.version, manifest.action.rate_hz) == ("reach_block", "1.0.0", 50)
    assert [c.name for c in manifest.action.channels] == ["j1", "j2", "j3"]
    assert manifest.total_bytes < 4_000_000
    assert bundle is not None


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("1.1.1", "DIGEST_FILE"),
        ("1.1.2", "BUNDLE_FILE_SIZE"),
        ("1.1.3", "VALUES_NOT_FINITE"),
        ("1.1.4", "STATS_STD"),
    ],
)
def test_damaged_versions_are_refused_by_reading(versions: dict[str, Path], version: str, code: str) -> None:
    assert EXPECTED[version] == "verify"
    with pytest.raises(CheckpointError) as refused:
        verify_bundle(versions[version])
    assert refused.value.code == code


def test_every_other_version_is_a_valid_bundle_in_line_with_its_base(versions: dict[str, Path]) -> None:
    base = load_manifest(SHIPPED_BUNDLE)
    digests = set()
    for variant in VARIANTS:
        if variant.expected == "verify":
            continue
        verify_bundle(versions[variant.version])
        manifest = load_manifest(versions[variant.version])
        assert manifest.version == variant.version
        assert parse_version(base.version) < parse_version(manifest.version)
        assert manifest.lineage["derived_from"] == {"version": base.version, "digest": base.digest}
        digests.add(manifest.digest)
    assert len(digests) == sum(variant.expected != "verify" for variant in VARIANTS)


def test_golden_replay_catches_what_it_should_and_passes_the_rest(versions: dict[str, Path]) -> None:
    assert largest_golden_difference(versions["1.0.0"]) < 1
    for version, expected in EXPECTED.items():
        if expected in ("accept", "shadow", "trial"):
            assert largest_golden_difference(versions[version]) < 1, version
        elif expected == "golden":
            assert largest_golden_difference(versions[version]) > 5, version


def test_the_bad_version_is_worse_in_every_judgement_and_stays_within_limits(versions: dict[str, Path]) -> None:
    def judge(version: str) -> Evaluation:
        return evaluate(load_policy(versions[version]), episodes=12, seed=500)

    good, other_good, bad = judge("1.1.0"), judge("1.3.0"), judge("1.2.0")
    for fine in (good, other_good):
        assert fine.success_rate >= 0.8
        assert bad.success_rate <= fine.success_rate - 0.5
        assert bad.temporal_consistency_rad[0] > max(
            3 * fine.temporal_consistency_rad[0], fine.temporal_consistency_rad[1]
        )
        assert bad.reversal_rate[0] > fine.reversal_rate[0] + 0.1
    assert bad.worst_step[1] < HARD_STEP_RAD / (VELOCITY_LIMITS_RAD_S[0] / CONTROL_HZ)


def test_a_recipe_gives_the_same_bytes_again(versions: dict[str, Path], tmp_path: Path) -> None:
    for variant in (VARIANTS[0], VARIANTS[3]):
        again = make(variant, tmp_path)
        assert load_manifest(again).digest == load_manifest(versions[variant.version]).digest
    assert load_manifest(make(VARIANTS[0], tmp_path)).version == VARIANTS[0].version  # replaces what was there


def test_a_base_of_another_architecture_is_refused(tmp_path: Path) -> None:
    other = make(VARIANTS[0], tmp_path)
    weights = read_weights(other)
    weights["another_head.bias"] = weights.pop("head.bias")
    write_weights(other, weights)
    with pytest.raises(RecipeError) as refused:
        make(VARIANTS[0], tmp_path / "out", other)
    assert refused.value.code == "RECIPE_FAILED"
    assert "head.bias" in str(refused.value)
