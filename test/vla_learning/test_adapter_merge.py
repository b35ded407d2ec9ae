# SPDX-License-Identifier: Apache-2.0
"""A merged adapter is the weighted sum of its clients; files that cannot be merged are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.adapters import LAYERS, deltas_of, error, make_adapter, make_base, weighted
from support.bundles import plain_stats
from support.refusals import refused

from vla_checkpoint import Manifest, load_manifest, sha256_file, verify_bundle
from vla_learning.adapters.merging import Merge, Settings, merge
from vla_learning.adapters.reading import open_base, open_clients
from vla_learning.adapters.writing import CERTIFICATE_NAME, write_merge

FLOAT32 = 1e-6


def run(tmp_path: Path, folders: list[Path], out: str = "out", **settings: Any) -> tuple[Merge, dict[str, Any]]:
    base = open_base(tmp_path / "base")
    merged = merge(open_clients(folders, base), Settings(**settings))
    _, certificate = write_merge(merged, base, tmp_path / out)
    verify_bundle(tmp_path / out)
    assert json.loads((tmp_path / out / CERTIFICATE_NAME).read_text()) == certificate
    return merged, certificate


@pytest.fixture
def base(tmp_path: Path) -> Manifest:
    return make_base(tmp_path / "base")


def mixed(tmp_path: Path, base: Manifest) -> list[Path]:
    """Ranks, alphas and scalings that differ, and a layer that only one trains."""
    only_q_and_k = {"net.q": 4, "net.k": 2}
    return [
        make_adapter(tmp_path / "a", base, 1),
        make_adapter(tmp_path / "b", base, 2, ranks={"net.q": 3}, r=3, lora_alpha=5, use_rslora=True),
        make_adapter(tmp_path / "c", base, 3, ranks=only_q_and_k, rank_pattern={"k": 2}, alpha_pattern={"net.q": 3}),
        make_adapter(tmp_path / "d", None, 4, ranks={"net.k": 4}),
    ]


def test_mixed_ranks_alphas_and_layers_merge_to_the_weighted_sum_and_the_certificate_holds(
    tmp_path: Path, base: Manifest
) -> None:
    folders = mixed(tmp_path, base)
    merged, certificate = run(tmp_path, folders, weights=(40, 30, 20, 10))
    wanted = weighted([deltas_of(folder) for folder in folders], [0.4, 0.3, 0.2, 0.1])
    assert error(deltas_of(tmp_path / "out"), wanted) < FLOAT32
    assert {module.name: len(module.a) for module in merged.modules} == {"net.k": 10, "net.out": 4, "net.q": 9}

    assert certificate["base"]["digest"] == base.digest and certificate["tail_energy"] == 0.0
    measured = error(deltas_of(tmp_path / "out"), wanted)
    assert certificate["exactness_error"] == pytest.approx(measured, rel=1e-6) and measured > 0
    assert certificate["output"] == {name: sha256_file(tmp_path / "out" / name) for name in certificate["output"]}
    by_name = {client["name"]: client for client in certificate["clients"]}
    for folder, weight in zip(folders, (0.4, 0.3, 0.2, 0.1), strict=True):
        client = by_name[folder.name]
        assert client["weight"] == pytest.approx(weight) and client["clip"] == 1
        assert client["files"] == {name: sha256_file(folder / name) for name in client["files"]}
        length = np.sqrt(sum((delta**2).sum() for delta in deltas_of(folder).values()))
        assert client["norm"] == pytest.approx(length, rel=1e-9)
    assert by_name["a"]["digest"] == load_manifest(tmp_path / "a").digest and by_name["d"]["digest"] is None


def test_the_sum_itself_is_exact_in_float64(tmp_path: Path, base: Manifest) -> None:
    """Written is float32; factors whose products float32 holds exactly show what happens before."""
    rng = np.random.default_rng(0)
    for i in range(3):
        whole = {
            f"base_model.model.{layer}.lora_{side}.weight": rng.integers(-8, 8, shape).astype(np.float32)
            for layer, (out, size) in LAYERS.items()
            for side, shape in (("A", (3, size)), ("B", (out, 3)))
        }
        make_adapter(tmp_path / f"{i}", base, i, tensors=whole, r=3, lora_alpha=6)
    folders = [tmp_path / f"{i}" for i in range(3)]
    _, certificate = run(tmp_path, folders, weights=(1, 1, 2))
    wanted = weighted([deltas_of(folder) for folder in folders], [0.25, 0.25, 0.5])
    assert error(deltas_of(tmp_path / "out"), wanted) < 1e-12 and certificate["exactness_error"] < 1e-12


def test_the_result_does_not_depend_on_the_order_of_the_clients_to_the_bit(tmp_path: Path, base: Manifest) -> None:
    folders = [make_adapter(tmp_path / name, base, seed) for seed, name in enumerate("abcde")]
    weights = (1.0, 2.0, 3.0, 4.0, 5.0)
    for method in ("mean", "geometric-median", "krum"):
        settings: dict[str, Any] = {"method": method, "clip": 0.9, "rank": 5}
        run(tmp_path, folders, f"{method}-1", weights=weights, **settings)
        run(tmp_path, folders[::-1], f"{method}-2", weights=weights[::-1], **settings)
        for name in ("adapter_model.safetensors", "adapter_config.json", CERTIFICATE_NAME):
            assert (tmp_path / f"{method}-1" / name).read_bytes() == (tmp_path / f"{method}-2" / name).read_bytes()


def test_one_adapter_merged_is_itself(tmp_path: Path, base: Manifest) -> None:
    folder = make_adapter(tmp_path / "a", base, 1)  # its scale is 2: no rounding
    _, certificate = run(tmp_path, [folder])
    assert error(deltas_of(tmp_path / "out"), deltas_of(folder)) == 0.0 and certificate["exactness_error"] < 1e-15
    run(tmp_path, [tmp_path / "out"], "again")
    assert error(deltas_of(tmp_path / "again"), deltas_of(folder)) == 0.0


def test_recompression_is_the_best_of_its_rank_and_says_what_it_left_out(tmp_path: Path, base: Manifest) -> None:
    folders = mixed(tmp_path, base)
    merged, certificate = run(tmp_path, folders, rank=3)
    left, whole, found = 0.0, 0.0, deltas_of(tmp_path / "out")
    tails = {module.name: module.tail for module in merged.modules}
    for layer, delta in weighted([deltas_of(folder) for folder in folders], [0.25] * 4).items():
        u, s, vt = np.linalg.svd(delta)
        assert np.allclose(found[layer], (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)
        assert tails[layer] == pytest.approx(np.linalg.norm(s[3:]), rel=1e-6)
        left, whole = left + (s[3:] ** 2).sum(), whole + (s**2).sum()
    assert certificate["tail_energy"] == pytest.approx(np.sqrt(left / whole), rel=1e-6)
    assert certificate["exactness_error"] == pytest.approx(certificate["tail_energy"], rel=1e-4)


def test_more_ranks_than_a_layer_has_are_folded_into_its_own_without_loss(tmp_path: Path, base: Manifest) -> None:
    folders = [make_adapter(tmp_path / f"{i}", base, i) for i in range(6)]
    merged, _ = run(tmp_path, folders)
    assert {module.name: len(module.a) for module in merged.modules} == {"net.q": 9, "net.k": 10, "net.out": 9}
    assert error(deltas_of(tmp_path / "out"), weighted([deltas_of(f) for f in folders], [1 / 6] * 6)) < FLOAT32


def test_adapters_that_share_a_frozen_a_keep_their_rank_and_are_averaged_exactly(
    tmp_path: Path, base: Manifest
) -> None:
    first = make_adapter(tmp_path / "a", base, 1)
    shared = safetensors.numpy.load_file(first / "adapter_model.safetensors")
    rng = np.random.default_rng(9)
    more = {k: v if "lora_A" in k else rng.standard_normal(v.shape).astype(np.float32) for k, v in shared.items()}
    second = make_adapter(tmp_path / "b", base, 2, tensors=more, lora_alpha=12)
    merged, _ = run(tmp_path, [first, second], method="ffa", weights=(1, 3))
    assert merged.rank == 4
    assert error(deltas_of(tmp_path / "out"), weighted([deltas_of(first), deltas_of(second)], [0.25, 0.75])) < FLOAT32
    written = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(np.array_equal(written[key], value) for key, value in shared.items() if "lora_A" in key)
    with refused("ADAPTER_MISMATCH") as caught:
        run(tmp_path, [first, make_adapter(tmp_path / "c", base, 3)], "other", method="ffa")
    assert "lora_A" in str(caught.value) and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "bound"),
    [({"method": "krum", "attackers": 2}, 1e-6), ({"method": "geometric-median"}, 0.3), ({"clip": 1.0}, 0.7)],
)  # fmt: skip
def test_two_bad_clients_of_ten_do_not_decide(tmp_path: Path, base: Manifest, settings: Any, bound: float) -> None:
    """Bad: ten times too long, in the opposite direction. The good ones agree but for a fifth of their length."""
    rng = np.random.default_rng(3)
    common = safetensors.numpy.load_file(make_adapter(tmp_path / "x", base, 0) / "adapter_model.safetensors")
    folders = []
    for i in range(10):
        factors = {k: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in common.items()}
        if i < 2:
            factors = {k: -10 * v if "lora_B" in k else v for k, v in common.items()}
        folders.append(make_adapter(tmp_path / f"{i}", base, i, tensors=factors))
    good = weighted([deltas_of(folder) for folder in folders[2:]], [1 / 8] * 8)
    run(tmp_path, folders, "mean")
    run(tmp_path, folders, "robust", **settings)
    assert error(deltas_of(tmp_path / "mean"), good) > 2.0
    assert error(deltas_of(tmp_path / "robust"), good) < bound


def test_a_transposed_base_gets_the_transposed_sum_and_both_layouts_together_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", {"net.q": (9, 12), "net.out": (9, 9)})
    ranks = {"net.q": 4, "net.out": 4}
    folders = [make_adapter(tmp_path / f"{i}", base, i, ranks=ranks, fan_in_fan_out=True) for i in range(2)]
    run(tmp_path, folders)
    found = deltas_of(tmp_path / "out")
    assert found["net.q"].shape == (9, 12)
    assert error(found, weighted([deltas_of(folder) for folder in folders], [0.5, 0.5])) < FLOAT32
    other = make_adapter(tmp_path / "other", base, 7, ranks={"net.out": 4})
    with refused("ADAPTER_MISMATCH") as caught:
        run(tmp_path, [folders[0], other], "never")
    assert "fan_in_fan_out" in str(caught.value)


def nan(path: Path, base: Manifest) -> Path:
    good = safetensors.numpy.load_file(make_adapter(path / "good", None, 1) / "adapter_model.safetensors")
    good["base_model.model.net.q.lora_B.weight"][0, 0] = np.nan
    return make_adapter(path / "nan", None, 1, tensors=good)


def damaged(path: Path, base: Manifest) -> Path:
    folder = make_adapter(path / "damaged", base, 1)
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder


def other_base(path: Path, base: Manifest) -> Path:
    return make_adapter(path / "x", make_base(path / "other_base", seed=7, created="2026-11-21T08:00:00Z"), 1)


def other_stats(path: Path, base: Manifest) -> Path:
    stats = {"observation.state": plain_stats(2), "action": {**plain_stats(2), "std": [2.0, 2.0]}}
    return make_adapter(path / "x", base, 1, files={"stats.json": json.dumps(stats).encode()})


def whole(path: Path, base: Manifest) -> Path:
    head = {"base_model.model.head.weight": np.zeros((2, 8), np.float32)}
    return make_adapter(path / "x", None, 1, tensors=head, modules_to_save=["head"])


REFUSALS: list[tuple[Any, str, str]] = [
    (nan, "VALUES_NOT_FINITE", "lora_B"),
    (damaged, "DIGEST_FILE", "adapter_model"),
    (other_base, "ADAPTER_MISMATCH", "trained on"),
    (other_stats, "ADAPTER_MISMATCH", "statistics"),
    (whole, "ADAPTER_UNSUPPORTED", "head.weight"),
    (lambda path, base: make_adapter(path / "x", None, 1, use_dora=True), "ADAPTER_UNSUPPORTED", "use_dora"),
    (lambda path, base: make_adapter(path / "x", None, 1, bias="lora_only"), "ADAPTER_UNSUPPORTED", "bias"),
    (lambda path, base: make_adapter(path / "x", None, 1, init_lora_weights="pissa"), "ADAPTER_UNSUPPORTED", "pissa"),
    (lambda path, base: make_adapter(path / "x", None, 1, r=8), "ADAPTER_MISMATCH", "rank 8"),
    (lambda path, base: path / "base", "ADAPTER_MISMATCH", "only adapters"),
    (lambda path, base: path / "nothing", "FILE_MISSING", "adapter_model"),
]


@pytest.mark.parametrize(("make", "code", "named"), REFUSALS)
def test_what_cannot_be_summed_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, base: Manifest, make: Any, code: str, named: str
) -> None:
    good = make_adapter(tmp_path / "good_one", base, 0)
    with refused(code) as caught:
        run(tmp_path, [good, make(tmp_path, base)])
    assert named in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": (1,)}, {"weights": (1, 0)}, {"weights": (1, float("nan"))}, {"rank": 0}, {"clip": 0.0},
        {"method": "krum"}, {"attackers": 1}, {"method": "ffa", "rank": 2},
    ],
)  # fmt: skip
def test_settings_that_fit_no_merge_of_two_are_refused(tmp_path: Path, base: Manifest, settings: Any) -> None:
    folders = [make_adapter(tmp_path / f"{i}", base, i) for i in range(2)]
    with refused("MERGE_SETTINGS"):
        run(tmp_path, folders, **settings)


def test_a_folder_that_exists_is_not_written_over(tmp_path: Path, base: Manifest) -> None:
    folder = make_adapter(tmp_path / "a", base, 1)
    with refused("MERGE_DESTINATION"):
        run(tmp_path, [folder], "a")
    assert deltas_of(folder) and not list(tmp_path.glob(".a.*"))


def test_a_version_that_is_none_leaves_nothing_behind_and_others_may_read_what_is_written(
    tmp_path: Path, base: Manifest
) -> None:
    folder, opened = make_adapter(tmp_path / "a", base, 1), open_base(tmp_path / "base")
    merged = merge(open_clients([folder], opened), Settings())
    with refused("VERSION_INVALID"):
        write_merge(merged, opened, tmp_path / "out", "next")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]
    write_merge(merged, opened, tmp_path / "out", "3.0.0")
    assert {path.stat().st_mode & 0o444 for path in (tmp_path / "out").iterdir()} == {0o444}
