"""``tiny_vla`` loads strictly and without a copy, obeys its instruction, and refuses what does not fit, with a code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_checkpoint import read_golden, read_header
from vla_policy_node.policies.base import TensorView
from vla_policy_node.policies.errors import PolicyConfigError, PolicyError, PolicyInputError, PolicyWeightsError
from vla_policy_node.policies.tiny_vla import load
from vla_policy_node.policies.torch_tensors import TORCH_DTYPE, as_torch
from vla_sim.bundle import SHIPPED_BUNDLE, WEIGHTS_FILE, load_policy

Tensors = dict[str, TensorView]


@pytest.fixture
def tensors() -> Tensors:
    path = SHIPPED_BUNDLE / WEIGHTS_FILE
    data = memoryview(bytearray(path.read_bytes()))
    return {
        name: TensorView(info.dtype, info.shape, data[info.start : info.start + info.nbytes])
        for name, info in read_header(path).tensors.items()
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name in ("config.json", "stats.json"):
        shutil.copyfile(SHIPPED_BUNDLE / name, tmp_path / name)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def observation() -> dict[str, np.ndarray]:
    return {key: array[0] for key, array in read_golden(SHIPPED_BUNDLE / "golden.safetensors").observations.items()}


def test_the_shipped_bundle_answers_its_golden_observations() -> None:
    golden = read_golden(SHIPPED_BUNDLE / "golden.safetensors")
    policy = load_policy(SHIPPED_BUNDLE)
    for i, instruction in enumerate(golden.instructions):
        chunk = policy.predict_chunk({key: array[i] for key, array in golden.observations.items()}, instruction)
        assert chunk.shape == (policy.spec.horizon, policy.spec.action_dim)
        assert chunk.dtype == np.float32
        assert np.all(np.abs(chunk - golden.action[i]) <= golden.tolerance)


def test_the_weights_are_used_where_they_lie(bundle: Path, tensors: Tensors) -> None:
    policy = load(bundle, tensors, "cpu")
    before = policy.predict_chunk(observation(), "reach the red block")
    tensors["head.bias"].data[:] = np.full(tensors["head.bias"].shape, 9.0, np.float32).tobytes()
    after = policy.predict_chunk(observation(), "reach the red block")
    assert np.abs(after - before).min() > 1.0


def test_read_only_weights_are_as_good(bundle: Path, tensors: Tensors) -> None:
    frozen = {name: TensorView(view.dtype, view.shape, view.data.toreadonly()) for name, view in tensors.items()}
    expected = load(bundle, tensors, "cpu").predict_chunk(observation(), "reach the red block")
    assert np.array_equal(load(bundle, frozen, "cpu").predict_chunk(observation(), "reach the red block"), expected)


def test_half_precision_weights_give_nearly_the_same_chunk(bundle: Path, tensors: Tensors) -> None:
    expected = load(bundle, tensors, "cpu").predict_chunk(observation(), "reach the red block")
    halved = {}
    for name, view in tensors.items():
        raw = as_torch(view).bfloat16().contiguous().view(torch.uint8).numpy()
        halved[name] = TensorView("BF16", view.shape, memoryview(raw.tobytes()))
    chunk = load(bundle, halved, "cpu").predict_chunk(observation(), "reach the red block")
    assert 0 < np.abs(chunk - expected).max() < 0.05


def test_the_instruction_decides_where_it_goes() -> None:
    policy = load_policy(SHIPPED_BUNDLE)
    ends = [policy.predict_chunk(observation(), f"reach the {c} block")[-1] for c in ("red", "green", "blue", "yellow")]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(ends) for b in ends[:i]]
    assert min(gaps) > 0.02
    again = policy.predict_chunk(observation(), "Reach the RED block!")
    assert np.array_equal(again[-1], ends[0])
    assert np.isfinite(
        policy.predict_chunk(observation(), "sing a song of sixpence, a pocket full of rye and more")
    ).all()
    assert np.isfinite(policy.predict_chunk(observation(), "")).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("head.bias"),
        lambda t: t.update(extra=t["head.bias"]),
        lambda t: t.update({"head.bias": TensorView("F32", (1,), memoryview(bytes(4)))}),
        lambda t: t.update({"head.bias": TensorView("F32", (15,), memoryview(bytes(8)))}),
        lambda t: t.update({"head.bias": TensorView("F4", (15,), memoryview(bytes(8)))}),
    ],
    ids=["missing", "extra", "shape", "bytes", "dtype"],
)
def test_tensors_that_are_not_the_modules_are_refused(
    bundle: Path, tensors: Tensors, spoil: Callable[[Tensors], object]
) -> None:
    spoil(tensors)
    with pytest.raises(PolicyWeightsError) as refused:
        load(bundle, tensors, "cpu")
    assert refused.value.code == "POLICY_WEIGHTS_MISMATCH"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c.update(type="act"), "type"),
        (lambda c: c.pop("chunk_size"), "chunk_size"),
        (lambda c: c.update(n_action_steps=0), "n_action_steps"),
        (lambda c: c.update(n_action_steps=51), "n_action_steps"),
        (lambda c: c.update(n_heads=7), "dim_model"),
        (lambda c: c.update(n_action_queries=7), "n_action_queries"),
        (lambda c: c.update(vocabulary=["red"]), "vocabulary"),
        (lambda c: c["input_features"].pop("observation.state"), "observation.state"),
        (lambda c: c["input_features"]["observation.images.top"].update(shape=[3, 60, 60]), "input_features"),
        (lambda c: c["normalization_mapping"].update(ACTION="GUESS"), "normalization_mapping.ACTION"),
        (lambda c: c.update(chunk_size="many"), "malformed"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_its_field(
    bundle: Path, tensors: Tensors, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    edit(bundle / "config.json", change)
    with pytest.raises(PolicyConfigError, match=field) as refused:
        load(bundle, tensors, "cpu")
    assert refused.value.code == "POLICY_CONFIG_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("action"),
        lambda s: s["action"].pop("std"),
        lambda s: s["action"].update(std=[1.0, 1.0]),
        lambda s: s["action"].update(std=[1.0, 0.0, 1.0]),
        lambda s: s["observation.state"].update(mean=[0.0, float("nan"), 0.0]),
        lambda s: s["action"].update(mean="wide"),
    ],
)
def test_statistics_that_cannot_normalise_are_refused(
    bundle: Path, tensors: Tensors, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(bundle / "stats.json", change)
    with pytest.raises(PolicyConfigError, match=r"stats\.json"):
        load(bundle, tensors, "cpu")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: o.pop("observation.state"),
        lambda o: o.update({"observation.state": np.zeros(4, np.float32)}),
        lambda o: o.update({"observation.state": np.zeros(3, np.float64)}),
        lambda o: o.update({"observation.images.top": np.zeros((3, 64, 64), np.uint8)}),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(spoil: Callable[[dict[str, np.ndarray]], object]) -> None:
    given = observation()
    spoil(given)
    with pytest.raises(PolicyInputError) as refused:
        load_policy(SHIPPED_BUNDLE).predict_chunk(given, "reach the red block")
    assert refused.value.code == "POLICY_INPUT_INVALID"
    assert isinstance(refused.value, PolicyError)


@pytest.mark.parametrize("name", sorted(TORCH_DTYPE))
def test_every_dtype_keeps_its_bits(name: str) -> None:
    dtype = TORCH_DTYPE[name]
    raw = bytes([1, 0] * (3 * dtype.itemsize))
    tensor = as_torch(TensorView(name, (2, 3), memoryview(raw)))
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, (2, 3))
    assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == raw[: 6 * dtype.itemsize]
    assert as_torch(TensorView(name, (0, 4), memoryview(b""))).shape == (0, 4)
