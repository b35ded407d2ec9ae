# SPDX-License-Identifier: Apache-2.0
"""A bundle is accepted only if the folder holds exactly what its manifest says, and every part fits the others."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
import safetensors.numpy
from support.bundles import (
    make_bundle,
    plain_golden,
    plain_stats,
    random_tensors,
    write_folder,
    write_json,
)
from support.safetensors_files import entry, write_raw

from vla_checkpoint import (
    BaseRef,
    CancelledCheckError,
    Channel,
    CheckpointError,
    Manifest,
    build_manifest,
    limits,
    open_bundle,
    sha256_file,
    verify_bundle,
    write_manifest,
)

IDENTITY = {
    "name": "pick_place",
    "version": "1.0.0",
    "policy_type": "scripted",
    "robot_type": "sim_arm",
    "rate_hz": 50.0,
}
JOINTS = (Channel("j1", "rad", "absolute"), Channel("j2", "rad", "absolute"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "b", golden=plain_golden(), files={"tokenizer/vocab.txt": b"red\nblue\n"})
    return tmp_path / "b"


def code_of(check: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check()
    return caught.value.code


def edit_manifest(path: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest as an attacker would: canonical again afterwards."""
    document = json.loads((path / "manifest.json").read_bytes())
    change(document)
    (path / "manifest.json").write_bytes(rfc8785.dumps(document))


def test_a_good_bundle_is_accepted_and_described(bundle: Path) -> None:
    opened = verify_bundle(bundle)
    assert opened.weight_files == ("model.safetensors",)
    assert opened.digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert (opened.config.chunk_size, opened.config.n_action_steps, opened.config.action_dim) == (16, 8, 2)
    assert set(opened.stats) == {"observation.state", "action"}
    golden = opened.golden()
    assert golden is not None
    assert golden.action.shape == (2, 16, 2)
    weights = safetensors.numpy.load_file(bundle / "model.safetensors")
    for name, array in weights.items():
        digest = opened.manifest.tensors["model.safetensors"][name]
        assert digest == hashlib.sha256(array.tobytes()).hexdigest()


def test_the_expected_digest_is_held(bundle: Path) -> None:
    digest = open_bundle(bundle).digest
    assert verify_bundle(bundle, expected_digest=digest).digest == digest
    for check in (open_bundle, verify_bundle):
        assert code_of(lambda check=check: check(bundle, expected_digest="0" * 64)) == "DIGEST_BUNDLE"


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "1", seed=3), make_bundle(tmp_path / "2", seed=3)
    assert first.digest == second.digest
    assert make_bundle(tmp_path / "3", seed=4).digest != first.digest


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "stats.json", "golden.safetensors", "tokenizer/vocab.txt"]
)
def test_a_flipped_bit_anywhere_is_found(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    code = code_of(lambda: verify_bundle(bundle))
    assert code == "DIGEST_FILE" or name.endswith(".json")


def test_a_broken_transfer_is_not_reported_as_bad_weights(bundle: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-4:] = b"\xff\xff\xff\xff"  # NaN
    (bundle / "model.safetensors").write_bytes(content)
    assert code_of(lambda: verify_bundle(bundle)) == "DIGEST_FILE"


def test_opening_reads_no_weights_but_verifying_does(bundle: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(content)
    open_bundle(bundle)
    assert code_of(lambda: verify_bundle(bundle)) == "DIGEST_FILE"


def test_files_missing_added_or_of_another_size_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = bundle / "tokenizer" / "vocab.txt"
    before = vocabulary.read_bytes()
    vocabulary.write_bytes(before + b"x")
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_SIZE"
    shutil.rmtree(vocabulary.parent)
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_MISSING"
    vocabulary.parent.mkdir()
    vocabulary.write_bytes(before)
    open_bundle(bundle)
    (bundle / "notes.txt").write_text("hello")
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_EXTRA"
    monkeypatch.setattr(limits, "FILES", 3)
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_EXTRA"


def test_links_special_files_and_empty_folders_are_refused(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "stats.json"
    shutil.move(bundle / "stats.json", moved)
    (bundle / "stats.json").symlink_to(moved)
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_SYMLINK"
    (bundle / "stats.json").unlink()
    shutil.move(moved, bundle / "stats.json")
    (bundle / "deeper").symlink_to(bundle / "tokenizer", target_is_directory=True)
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_SYMLINK"
    (bundle / "deeper").unlink()
    os.mkfifo(bundle / "fifo")
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_EXTRA"
    (bundle / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(bundle / "s"))
        assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_EXTRA"
    (bundle / "s").unlink()
    (bundle / "empty").mkdir()
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_EXTRA"
    (bundle / "empty").rmdir()
    verify_bundle(bundle)


def test_what_is_no_bundle_folder_is_refused(tmp_path: Path, bundle: Path) -> None:
    assert code_of(lambda: open_bundle(tmp_path / "nothing")) == "BUNDLE_NOT_A_FOLDER"
    assert code_of(lambda: open_bundle(bundle / "config.json")) == "BUNDLE_NOT_A_FOLDER"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", "a\0b", "x" * 5000):
        assert code_of(lambda path=path: open_bundle(path)) == "BUNDLE_NOT_A_FOLDER"
    (bundle / "manifest.json").unlink()
    assert code_of(lambda: open_bundle(bundle)) == "FILE_MISSING"
    os.mkfifo(bundle / "manifest.json")
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_EXTRA"


def test_a_link_to_the_bundle_is_resolved_once(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    opened = open_bundle(tmp_path / "current")
    assert opened.path == bundle.resolve()


def test_a_bundle_whose_hard_links_live_in_a_store_is_accepted(bundle: Path, tmp_path: Path) -> None:
    os.link(bundle / "model.safetensors", tmp_path / "blob")
    (tmp_path / "blob").chmod(0o444)
    verify_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "data.PKL", "x.ckpt", "sub/x.pth", "a.npy", "modeling.py", "ext.so"]
)
def test_pickles_and_code_are_refused_by_name(tmp_path: Path, name: str) -> None:
    assert code_of(lambda: make_bundle(tmp_path / "b", files={name: b"harmless"})) == "BUNDLE_FORBIDDEN_FILE"


def test_pickles_are_refused_by_their_first_bytes(tmp_path: Path) -> None:
    objects = np.array([{}], dtype=object)
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("data.pkl", "x")
    contents = [pickle.dumps({"a": 1}, protocol=p) for p in (2, 3, 4, 5)]
    contents += [(tmp_path / "o.npy").read_bytes(), (tmp_path / "z.zip").read_bytes()]
    for i, content in enumerate(contents):
        assert (
            code_of(lambda i=i, content=content: make_bundle(tmp_path / str(i), files={"a.txt": content}))
            == "BUNDLE_FORBIDDEN_FILE"
        )


def test_a_header_length_that_looks_like_a_pickle_is_fine(tmp_path: Path) -> None:
    """640 = 0x0280 little-endian begins with the bytes of pickle protocol 2."""
    header = json.dumps({"head": entry("F32", [1], [0, 4])}).encode()
    data = (640).to_bytes(8, "little") + header + b" " * (640 - len(header)) + bytes(4)
    assert data.startswith(b"\x80\x02")
    make_bundle(tmp_path / "b", files={"model.safetensors": data})
    verify_bundle(tmp_path / "b")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_weights_are_refused(tmp_path: Path, value: float) -> None:
    weights = random_tensors(2, 0)
    weights["head.bias"][1] = value
    write_folder(tmp_path / "b", tensors=weights)
    with pytest.raises(CheckpointError) as caught:
        build_manifest(tmp_path / "b", channels=JOINTS, **IDENTITY)
    assert caught.value.code == "VALUES_NOT_FINITE"
    assert "head.bias" in caught.value.reason
    # a publisher who does not check cannot get it past the robot
    good = make_bundle(tmp_path / "good")
    weights_path = tmp_path / "good" / "model.safetensors"
    shutil.copy(tmp_path / "b" / "model.safetensors", weights_path)
    _rehash(tmp_path / "good", good)
    assert code_of(lambda: verify_bundle(tmp_path / "good")) == "VALUES_NOT_FINITE"
    verify_bundle(tmp_path / "good", scan_values=False)


def _rehash(path: Path, manifest: Manifest) -> None:
    """Give the manifest the digests of the files as they are now."""
    weights = safetensors.numpy.load_file(path / "model.safetensors")

    def change(document: dict) -> None:
        for item in document["files"]:
            item.update(size=(path / item["path"]).stat().st_size, sha256=sha256_file(path / item["path"]))
        tensors = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in weights.items()}
        document["tensors"] = {"model.safetensors": tensors}

    assert manifest.kind == "full"
    edit_manifest(path, change)


def test_bf16_and_f8_weights_are_scanned(tmp_path: Path) -> None:
    for dtype, bad in (("BF16", b"\x80\x7f"), ("F8_E4M3", b"\x7f\x00"), ("F8_E5M2", b"\x7c\x00"), ("F16", b"\x00\x7c")):
        size = 2 if dtype.startswith("F8") else 1
        good = write_raw(tmp_path / "g", {"w": entry(dtype, [size], [0, 2])}, bytes(2)).read_bytes()
        make_bundle(tmp_path / f"good-{dtype}", files={"model.safetensors": good})
        verify_bundle(tmp_path / f"good-{dtype}")
        files = {"model.safetensors": good[:-2] + bad}
        assert (
            code_of(lambda dtype=dtype, files=files: make_bundle(tmp_path / f"bad-{dtype}", files=files))
            == "VALUES_NOT_FINITE"
        )


def test_a_manifest_that_lies_about_tensors_is_refused(bundle: Path) -> None:
    original = (bundle / "manifest.json").read_bytes()
    weights = "model.safetensors"
    for change, code in (
        (lambda d: d["tensors"].clear(), "BUNDLE_TENSORS"),
        (lambda d: d["tensors"][weights].pop("head.bias"), "BUNDLE_TENSORS"),
        (lambda d: d["tensors"][weights].update(ghost="0" * 64), "BUNDLE_TENSORS"),
        (lambda d: d["tensors"][weights].update({"head.bias": "0" * 64}), "DIGEST_TENSOR"),
        (lambda d: d["files"][0].update(sha256="0" * 64), "DIGEST_FILE"),
        (lambda d: d.update(policy_type="other"), "CONFIG_MISMATCH"),
        (lambda d: d["action"]["channels"].pop(), "CONFIG_MISMATCH"),
    ):
        edit_manifest(bundle, change)
        assert code_of(lambda: verify_bundle(bundle)) == code
        (bundle / "manifest.json").write_bytes(original)
    verify_bundle(bundle)


def test_weights_must_be_there_once(tmp_path: Path) -> None:
    def refused(name: str, **arguments: object) -> str:
        return code_of(lambda: make_bundle(tmp_path / name, **arguments))  # type: ignore[arg-type]

    assert refused("none", tensors={}) == "BUNDLE_WEIGHTS"
    both = json.dumps({"weight_map": {"w": "model-1.safetensors"}}).encode()
    assert refused("both", files={"model.safetensors.index.json": both}) == "BUNDLE_WEIGHTS"
    adapter = safetensors.numpy.save({"w": np.zeros(1, np.float32)})
    assert refused("adapter", files={"adapter_model.safetensors": adapter}) == "BUNDLE_WEIGHTS"
    write_folder(tmp_path / "no")
    (tmp_path / "no" / "model.safetensors").unlink()
    assert code_of(lambda: build_manifest(tmp_path / "no", channels=JOINTS, **IDENTITY)) == "BUNDLE_WEIGHTS"


def test_adapters_name_their_base_and_hold_no_weights_of_it(tmp_path: Path) -> None:
    base = BaseRef("pick_place", "1.0.0", "a" * 64)
    make_bundle(tmp_path / "good", base=base)
    opened = verify_bundle(tmp_path / "good")
    assert opened.manifest.base == base
    assert opened.weight_files == ("adapter_model.safetensors",)
    weights = safetensors.numpy.save({"w": np.zeros(1, np.float32)})
    for name, files, code in (
        ("full", {"model.safetensors": weights}, "BUNDLE_WEIGHTS"),
        ("type", {"adapter_config.json": b"{}"}, "ADAPTER_CONFIG"),
        ("rank", {"adapter_config.json": b'{"peft_type": "LORA", "r": 0, "lora_alpha": 1}'}, "ADAPTER_CONFIG"),
        ("json", {"adapter_config.json": b"{"}, "JSON_SYNTAX"),
    ):
        assert code_of(lambda name=name, files=files: make_bundle(tmp_path / name, base=base, files=files)) == code
    write_folder(tmp_path / "full-weights")
    arguments = {**IDENTITY, "channels": JOINTS, "kind": "adapter", "base": base}
    assert code_of(lambda: build_manifest(tmp_path / "full-weights", **arguments)) == "BUNDLE_WEIGHTS"
    arguments["base"] = None
    assert code_of(lambda: build_manifest(tmp_path / "full-weights", **arguments)) == "MANIFEST_FIELD"


def test_shards_and_their_index_must_agree(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": np.full(3, i, np.float32) for i in range(5)}
    make_bundle(tmp_path / "good", tensors=tensors, shards=3)
    opened = verify_bundle(tmp_path / "good")
    assert len(opened.weight_files) == 3
    assert sum(len(opened.manifest.tensors[file]) for file in opened.weight_files) == 5
    index = json.loads((tmp_path / "good" / "model.safetensors.index.json").read_text())
    first, second = opened.weight_files[:2]
    stray = safetensors.numpy.save({"stray": np.zeros(1, np.float32)})
    doubled = safetensors.numpy.save(
        {"layer.0": tensors["layer.0"], "layer.1": tensors["layer.1"], "layer.4": tensors["layer.4"]}
    )
    weight_map = index["weight_map"]
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("SHARD_INDEX", "does not hold", {"weight_map": {**weight_map, "ghost": first}}),
        ("SHARD_INDEX", "not in weight_map", {"weight_map": {k: v for k, v in weight_map.items() if k != "layer.4"}}),
        ("SHARD_INDEX", "but mapped to", {second: doubled}),
        ("SHARD_MISSING", "is not there", {"weight_map": {**weight_map, "layer.0": "model-9.safetensors"}}),
        ("SHARD_UNLISTED", "no tensor is mapped", {"model-00009-of-00009.safetensors": stray}),
        ("SHARD_INDEX", "total_size is 61", {"metadata": {"total_size": 61}}),
        ("SHARD_INDEX", "beside the index", {"weight_map": {**weight_map, "layer.0": "../model.safetensors"}}),
    ]
    for number, (code, reason, change) in enumerate(cases):
        path = tmp_path / str(number)
        write_folder(path, tensors=tensors, shards=3)
        for key, value in change.items():
            if isinstance(value, bytes):
                (path / key).write_bytes(value)
            else:
                write_json(path / "model.safetensors.index.json", {**index, key: value})
        with pytest.raises(CheckpointError, match=reason) as caught:
            build_manifest(path, channels=JOINTS, **IDENTITY)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": {"w": 1}}, {"weight_map": {"w": "x.bin"}}, {"weight_map": []}]
)
def test_an_index_that_maps_nothing_is_refused(tmp_path: Path, index: object) -> None:
    write_folder(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    write_json(tmp_path / "b" / "model.safetensors.index.json", index)
    assert code_of(lambda: build_manifest(tmp_path / "b", channels=JOINTS, **IDENTITY)) == "SHARD_INDEX"


def test_progress_adds_up_and_cancel_stops(bundle: Path) -> None:
    done: list[int] = []
    total = verify_bundle(bundle, progress=done.append).manifest.total_bytes
    assert sum(done) == total
    with pytest.raises(CancelledCheckError):
        verify_bundle(bundle, cancel=lambda: True)
    with pytest.raises(CancelledCheckError):
        sha256_file(bundle / "model.safetensors", cancel=lambda: True)
    assert sha256_file(bundle / "config.json") == hashlib.sha256((bundle / "config.json").read_bytes()).hexdigest()


def test_the_caller_may_stop_before_each_file_that_is_parsed(tmp_path: Path) -> None:
    """Many files that are each parsed in one go do not keep a manager from looking after its trial."""
    shard = safetensors.numpy.save({"w": np.zeros(1, np.float32)})
    make_bundle(tmp_path / "b", files={f"more/{i}.safetensors": shard for i in range(20)})
    asked: list[bool] = []

    def third() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(CancelledCheckError):
        open_bundle(tmp_path / "b", cancel=third)
    asked.clear()
    assert open_bundle(tmp_path / "b", cancel=lambda: asked.append(True) is not None)
    assert len(asked) >= 23


def test_a_policy_of_7_billion_parameters_has_room_six_times(tmp_path: Path) -> None:
    """Such a one has about 1,000 tensors with names of about 100 characters; what fits into a manifest fits everywhere."""
    layer = "model.paligemma_with_expert.paligemma.model.language_model.layers.{}.self_attention.projection.weight"
    tensors = {layer.format(i): np.zeros(1, np.float32) for i in range(5600)}
    make_bundle(tmp_path / "shards", tensors=tensors, shards=3)
    make_bundle(tmp_path / "single", tensors={name: np.zeros((1, 1), np.float32) for name in tensors})
    for name in ("shards", "single"):
        verify_bundle(tmp_path / name)
        assert (tmp_path / name / "manifest.json").stat().st_size > 950_000


def test_names_that_no_server_can_be_asked_for_are_refused_before_anything_is_hashed(tmp_path: Path) -> None:
    for name in ("tokenizer/vocab-é.json", "100%.txt"):
        with pytest.raises(CheckpointError) as caught:
            make_bundle(tmp_path / name[-5:], files={name: b"{}"})
        assert (caught.value.code, name in caught.value.reason) == ("MANIFEST_PATH", True)


def test_a_manifest_of_a_folder_replaces_an_old_one(bundle: Path) -> None:
    (bundle / "tokenizer" / "vocab.txt").write_bytes(b"red\n")
    assert code_of(lambda: open_bundle(bundle)) == "BUNDLE_FILE_SIZE"
    write_manifest(bundle, build_manifest(bundle, channels=JOINTS, **IDENTITY))
    verify_bundle(bundle)


def test_statistics_are_checked_with_the_bundle(bundle: Path) -> None:
    write_json(bundle / "stats.json", {"action": plain_stats(2)})
    assert code_of(lambda: build_manifest(bundle, channels=JOINTS, **IDENTITY)) == "STATS_MISSING"


# VmHWM: getrusage's ru_maxrss would begin with the parent's
MEASURE = """
import re, sys
from pathlib import Path
from vla_checkpoint import verify_bundle
peak_kb = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kb()
verify_bundle(sys.argv[1])
print(peak_kb() - before)
"""


def test_memory_stays_bounded_whatever_the_size(tmp_path: Path) -> None:
    """Half a gigabyte of (sparse) weights is hashed and scanned within a twentieth of it."""
    size = 512 << 20
    folder = tmp_path / "b"
    write_folder(folder)
    write_raw(folder / "model.safetensors", {"w": entry("BF16", [size // 2], [0, size])}, b"")
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + size)
    write_manifest(folder, build_manifest(folder, channels=JOINTS, **IDENTITY))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, timeout=100, check=True
    )
    assert 0 < int(result.stdout) * 1024 < size / 20
