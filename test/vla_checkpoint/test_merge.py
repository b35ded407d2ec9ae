# SPDX-License-Identifier: Apache-2.0
"""An adapter is merged into its base by the published formula, or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bundles import Array, make_bundle, random_tensors, write_folder, write_json
from support.refusals import refused

from vla_checkpoint import Channel, Manifest, import_folder, least_bump, open_bundle, verify_bundle
from vla_checkpoint.cli import main
from vla_checkpoint.header import read_header
from vla_checkpoint.tensors import read_array

OPTIONS: dict[str, Any] = {
    "name": "pick_place", "version": "1.0.1", "robot_type": "sim_arm", "rate_hz": 50.0,
    "channels": (Channel("j1", "rad", "absolute"), Channel("j2", "rad", "absolute")),
}  # fmt: skip
RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 5), dtype=np.float32)
A, B = RNG.standard_normal((4, 5), dtype=np.float32), RNG.standard_normal((6, 4), dtype=np.float32)
LORA = {"base_model.model.net.q.lora_A.weight": A, "base_model.model.net.q.lora_B.weight": B}


def make_base(path: Path, weight: Array = W, **arguments: Any) -> Manifest:
    return make_bundle(path, tensors={**random_tensors(2, 0), "net.q.weight": weight}, **arguments)


def make_adapter(path: Path, tensors: dict[str, Array] | None = None, config: Any = None, **changes: Any) -> None:
    write_folder(path, adapter=True, tensors=LORA if tensors is None else tensors, use_peft=True, **(config or {}))
    document = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
    }
    write_json(path / "adapter_config.json", {**document, "base_model_name_or_path": "/home/me/base", **changes})


def merge(tmp_path: Path, source: str = "src", **options: Any) -> dict[str, Array]:
    import_folder(tmp_path / source, tmp_path / "out", merge_into=tmp_path / "base", **{**OPTIONS, **options})
    verify_bundle(tmp_path / "out")
    tensors = {}
    for file in (tmp_path / "out").glob("model*.safetensors"):
        tensors.update({info.name: read_array(file, info) for info in read_header(file).tensors.values()})
    return tensors


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 8 / 4),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 2, "alpha_pattern": {"q": 6}}, 6 / 4),
        ({"r": 16, "rank_pattern": {"net.q": 4}}, 8 / 4),
        ({"alpha_pattern": {"v": 6}}, 8 / 4),
    ],
)
def test_a_merged_weight_is_the_base_and_the_scaled_product(tmp_path: Path, changes: Any, scale: float) -> None:
    base = make_base(tmp_path / "base")
    make_adapter(tmp_path / "src", **changes)
    merged = merge(tmp_path)
    expected = W.astype(np.float64) + scale * (B.astype(np.float64) @ A.astype(np.float64))
    assert np.allclose(merged["net.q.weight"], expected, rtol=0, atol=2e-6)
    for name, tensor in random_tensors(2, 0).items():
        assert np.array_equal(merged[name], tensor)
    bundle = open_bundle(tmp_path / "out")
    assert (bundle.manifest.kind, bundle.manifest.base) == ("full", None)
    assert bundle.manifest.lineage == {"parent": base.digest, "method": "merge"}
    assert least_bump(open_bundle(tmp_path / "base"), bundle) == "patch"
    assert bundle.config.raw["use_peft"] is False
    assert not list((tmp_path / "out").glob("adapter*"))


def test_a_merged_layer_answers_as_the_layer_with_its_adapter_beside_it(tmp_path: Path) -> None:
    import torch

    make_base(tmp_path / "base")
    make_adapter(tmp_path / "src")
    layer, x = torch.nn.Linear(5, 6, bias=False), torch.randn(32, 5)
    layer.weight.data = torch.from_numpy(W)
    beside = layer(x) + 2.0 * (x @ torch.from_numpy(A).T @ torch.from_numpy(B).T)
    layer.weight.data = torch.from_numpy(merge(tmp_path)["net.q.weight"].copy())
    assert torch.allclose(layer(x), beside, rtol=1e-5, atol=1e-5)


def test_a_transposed_weight_gets_the_transposed_change(tmp_path: Path) -> None:
    make_base(tmp_path / "base", W.T.copy())
    make_adapter(tmp_path / "src", fan_in_fan_out=True)
    assert np.allclose(merge(tmp_path)["net.q.weight"], (W + 2.0 * (B @ A)).T, atol=2e-6)


def bf16(values: Any) -> Array:
    """The nearest bfloat16 of each number, by comparison with both neighbours; ties to even."""
    found = []
    for value in np.asarray(values, np.float64).reshape(-1):
        low = int(np.float32(value).view(np.uint32)) >> 16
        near = [(abs(float(np.uint32(c << 16).view(np.float32)) - value), c & 1, c) for c in (low - 1, low, low + 1)]
        found.append(min(near)[2])
    return np.array(found, np.uint32).reshape(np.shape(values))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_computed_in_single_and_rounded_once(tmp_path: Path, dtype: str) -> None:
    make_base(tmp_path / "base", W.astype(np.float16))
    make_adapter(tmp_path / "src")
    delta = 2.0 * (B @ A)
    if dtype == "F16":
        assert np.array_equal(
            merge(tmp_path)["net.q.weight"], (W.astype(np.float16).astype(np.float32) + delta).astype(np.float16)
        )
        return
    for path in [*(tmp_path / "base").iterdir()]:
        path.unlink()
    (tmp_path / "base").rmdir()
    words = bf16(W).astype("<u2")
    header = {"net.q.weight": {"dtype": "BF16", "shape": list(W.shape), "data_offsets": [0, words.nbytes]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file = len(raw).to_bytes(8, "little") + raw + words.tobytes()
    make_bundle(tmp_path / "base", files={"model.safetensors": file})
    single = (words.astype("<u4") << 16).view("<f4")
    merged = merge(tmp_path)["net.q.weight"]
    assert np.array_equal(np.ascontiguousarray(merged).view(np.uint32) >> 16, bf16(single + delta))


def test_a_module_that_was_trained_whole_replaces_the_bases(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    head = {
        "base_model.model.head.weight": np.ones((2, 8), np.float32),
        "base_model.model.head.bias": np.zeros(2, np.float32),
    }
    make_adapter(tmp_path / "src", {**LORA, **head}, modules_to_save=["head"])
    merged = merge(tmp_path)
    assert np.array_equal(merged["head.weight"], np.ones((2, 8))) and not merged["head.bias"].any()


def test_shards_of_the_base_are_merged_where_they_are(tmp_path: Path) -> None:
    make_base(tmp_path / "base", shards=2)
    make_adapter(tmp_path / "src")
    assert np.allclose(merge(tmp_path)["net.q.weight"], W + 2.0 * (B @ A), atol=2e-6)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_statistics_are_the_adapters_or_else_the_bases(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "src")
    (tmp_path / "src" / "stats.json").unlink()
    merge(tmp_path)
    assert open_bundle(tmp_path / "out").stats["action"]["max"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern"),
    ],
)
def test_an_adapter_that_is_more_than_a_lora_is_refused_by_name(tmp_path: Path, changes: Any, named: str) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "src", **changes)
    with refused("ADAPTER_UNSUPPORTED") as caught:
        merge(tmp_path)
    assert named in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"base_model.model.net.q.lora_magnitude_vector": np.ones(6, np.float32)}, "lora_magnitude_vector"),
        ({"base_model.model.emb.lora_embedding_A": np.ones((4, 9), np.float32)}, "lora_embedding_A"),
        ({"base_model.model.other.weight": np.ones((2, 8), np.float32)}, "other.weight"),
        ({"base_model.model.net.q.lora_A.weight": A.astype(np.float64)}, "F64"),
    ],
)
def test_a_tensor_that_the_formula_has_no_place_for_is_refused_by_name(tmp_path: Path, more: Any, named: str) -> None:
    make_base(tmp_path / "base")
    for i, modules in enumerate((["head"], True)):  # the second is no list
        make_adapter(tmp_path / f"src{i}", {**LORA, **more}, modules_to_save=modules)
        with refused("ADAPTER_UNSUPPORTED") as caught:
            merge(tmp_path, source=f"src{i}")
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "config", "changes", "named"),
    [
        (
            {"base_model.model.net.k.lora_A.weight": A, "base_model.model.net.k.lora_B.weight": B},
            {},
            {},
            "net.k.weight",
        ),
        ({"base_model.model.net.q.lora_A.weight": A}, {}, {}, "lora_B"),
        ({"base_model.model.net.q.lora_B.weight": B}, {}, {}, "lora_A"),
        ({**LORA, "base_model.model.net.q.lora_B.weight": B[:5]}, {}, {}, "net.q.weight"),
        (LORA, {}, {"r": 2}, "rank 2"),
        (
            {"base_model.model.head.weight": np.ones((3, 8), np.float32)},
            {},
            {"modules_to_save": ["head"]},
            "head.weight",
        ),
        (LORA, {"policy_type": "act"}, {}, "act"),
    ],
)
def test_an_adapter_of_another_base_is_refused_by_name(
    tmp_path: Path, tensors: Any, config: Any, changes: Any, named: str
) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "src", tensors, config, **changes)
    with refused("ADAPTER_MISMATCH") as caught:
        merge(tmp_path)
    assert named in str(caught.value)


def test_the_base_is_read_as_a_robot_would(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "src")
    tensors = safetensors.numpy.load_file(tmp_path / "base" / "model.safetensors")
    safetensors.numpy.save_file({**tensors, "net.q.weight": W + 1}, tmp_path / "base" / "model.safetensors")
    with refused("DIGEST_FILE"):
        merge(tmp_path)


def test_the_command_merges_with_a_base_and_asks_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "src")
    command = [
        "import",
        str(tmp_path / "src"),
        "--out",
        str(tmp_path / "pick/1.0.1"),
        "--merge",
        "--robot-type",
        "sim_arm",
    ]
    command += ["--rate-hz", "50", "--channel", "j1:rad:absolute", "--channel", "j2:rad:absolute"]
    assert main(command) == 1
    assert "--base" in capsys.readouterr().err
    assert main([*command, "--base", str(tmp_path / "base")]) == 0
    assert verify_bundle(tmp_path / "pick/1.0.1").manifest.kind == "full"
