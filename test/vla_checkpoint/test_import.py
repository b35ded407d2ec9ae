# SPDX-License-Identifier: Apache-2.0
"""LeRobot folders of both kinds and Hugging Face snapshots become bundles that verify, or nothing appears."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import make_bundle, plain_stats, random_tensors, write_folder, write_json, write_processors

from vla_checkpoint import BaseRef, Channel, CheckpointError, import_folder, verify_bundle

OPTIONS: dict[str, Any] = {
    "name": "act_pick", "version": "1.0.0", "robot_type": "so101", "rate_hz": 30.0,
    "channels": (Channel("shoulder.pos", "rad", "absolute"), Channel("gripper.pos", "1", "absolute")),
}  # fmt: skip


def lerobot_03(folder: Path, **stats: list[float]) -> None:
    """LeRobot <= 0.3: statistics are buffers of the model, no processor files."""
    values = {**{key: plain_stats(2)[key] for key in ("mean", "std")}, **stats}
    tensors = random_tensors(2, 0)
    for module, feature in (
        ("normalize_inputs", "observation_state"),
        ("normalize_targets", "action"),
        ("unnormalize_outputs", "action"),
    ):
        for name, value in values.items():
            tensors[f"{module}.buffer_{feature}.{name}"] = np.array(value, np.float32)
    write_folder(folder, policy_type="act", tensors=tensors)
    (folder / "stats.json").unlink()
    write_json(folder / "train_config.json", {"steps": 1000})


def lerobot_04(folder: Path) -> None:
    """LeRobot >= 0.4: statistics are in the processors' state files."""
    write_folder(folder, policy_type="act")
    (folder / "stats.json").unlink()
    write_processors(folder, {feature: plain_stats(2) for feature in ("observation.state", "action")})


def refused(source: Path, out: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_folder(source, out, **{**OPTIONS, **options})
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    return caught.value.code


def test_statistics_in_the_weights_become_stats_json_and_the_weights_stay(tmp_path: Path) -> None:
    lerobot_03(tmp_path / "src", std=[0.5, 2.0])
    import_folder(tmp_path / "src", tmp_path / "out", **OPTIONS)
    bundle = verify_bundle(tmp_path / "out")
    assert bundle.stats["action"]["std"].tolist() == [0.5, 2.0]
    assert bundle.stats["observation.state"]["std"].tolist() == [0.5, 2.0]
    assert (bundle.manifest.policy_type, bundle.manifest.name, bundle.manifest.version) == ("act", "act_pick", "1.0.0")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "src" / "model.safetensors"
    ).read_bytes()


def test_buffers_that_were_never_set_are_refused(tmp_path: Path) -> None:
    """LeRobot fills them with infinity."""
    lerobot_03(tmp_path / "src", mean=[np.inf, np.inf])
    assert refused(tmp_path / "src", tmp_path / "out") == "IMPORT_SOURCE"


def test_processor_files_are_kept(tmp_path: Path) -> None:
    lerobot_04(tmp_path / "src")
    import_folder(tmp_path / "src", tmp_path / "out", **OPTIONS)
    bundle = verify_bundle(tmp_path / "out")
    assert bundle.stats["action"]["q99"].tolist() == [2.0, 2.0]
    assert "policy_preprocessor_step_3_normalizer_processor.safetensors" in [
        entry.path for entry in bundle.manifest.files
    ]
    assert list(bundle.manifest.tensors) == ["model.safetensors"]


def test_a_checkpoint_folder_with_pretrained_model_in_it_is_found(tmp_path: Path) -> None:
    lerobot_04(tmp_path / "step_1000" / "pretrained_model")
    (tmp_path / "step_1000" / "training_state").mkdir()
    (tmp_path / "step_1000" / "training_state" / "optimizer.pt").write_bytes(b"x")
    import_folder(tmp_path / "step_1000", tmp_path / "out", **OPTIONS)
    verify_bundle(tmp_path / "out")


def snapshot(tmp_path: Path) -> Path:
    """Lay a folder out as the Hugging Face cache does: links from the snapshot into blobs."""
    lerobot_04(tmp_path / "plain")
    repository = tmp_path / "hub" / "models--some-org--act_pick"
    folder = repository / "snapshots" / ("0123456789" * 4)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in (tmp_path / "plain").iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (folder / path.name).symlink_to(os.path.relpath(blob, folder))
    return folder


def test_a_hugging_face_snapshot_becomes_plain_files_and_names_its_origin(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    report = import_folder(folder, tmp_path / "out", **OPTIONS, lineage={"run": "a"})
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert dict(report.manifest.lineage) == {
        "repository": "some-org/act_pick",
        "revision": "0123456789" * 4,
        "run": "a",
    }
    verify_bundle(tmp_path / "out", expected_digest=report.manifest.digest)
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    (folder / "notes.txt").symlink_to(secret)
    assert refused(folder, tmp_path / "out") == "IMPORT_SOURCE"
    (folder / "notes.txt").unlink()
    for target in ("nowhere", "dangling.txt"):  # the second leads to itself
        (folder / "dangling.txt").symlink_to(target)
        assert refused(folder, tmp_path / "out") == "IMPORT_SOURCE"
        (folder / "dangling.txt").unlink()


def test_pickles_code_and_hidden_files_are_left_out_and_reported(tmp_path: Path) -> None:
    lerobot_04(tmp_path / "src")
    for name in ("optimizer.pt", "modeling_x.py", ".gitattributes", ".cache/x", "tokenizer/vocab.json"):
        (tmp_path / "src" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_text("{}")
    report = import_folder(tmp_path / "src", tmp_path / "out", **OPTIONS)
    assert set(report.left_out) == {"optimizer.pt", "modeling_x.py", ".gitattributes", ".cache"}
    assert (tmp_path / "out" / "tokenizer" / "vocab.json").is_file()
    verify_bundle(tmp_path / "out")


def test_a_folder_whose_weights_are_pickles_is_refused(tmp_path: Path) -> None:
    lerobot_04(tmp_path / "src")
    (tmp_path / "src" / "model.safetensors").rename(tmp_path / "src" / "pytorch_model.bin")
    assert refused(tmp_path / "src", tmp_path / "out") == "IMPORT_PICKLE"


def test_what_cannot_become_a_valid_bundle_leaves_nothing_behind(tmp_path: Path) -> None:
    lerobot_04(tmp_path / "src")
    assert refused(tmp_path / "src", tmp_path / "out", version="1") == "VERSION_INVALID"
    assert refused(tmp_path / "src", tmp_path / "out", channels=OPTIONS["channels"][:1]) == "CONFIG_MISMATCH"
    assert refused(tmp_path / "src", tmp_path / "out", base=BaseRef("a", "1.0.0", "0" * 64)) == "IMPORT_SOURCE"
    assert refused(tmp_path / "nothing", tmp_path / "out") == "IMPORT_SOURCE"
    (tmp_path / "src" / "policy_postprocessor.json").unlink()
    assert refused(tmp_path / "src", tmp_path / "out") == "STATS_MISSING"


def test_a_refusal_names_the_file_that_was_read_or_was_to_be_made(tmp_path: Path) -> None:
    """And never the temporary folder, which is gone by then."""
    source, out = tmp_path / "src", tmp_path / "out"
    lerobot_04(source)

    def path_of(**options: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            import_folder(source, out, **{**OPTIONS, **options})
        assert ".out." not in str(caught.value)
        return caught.value.path

    assert path_of(name="me/act_pick") == str(out / "manifest.json")
    processor = source / "policy_postprocessor.json"
    content = processor.read_text()
    processor.write_text(content.replace("MEAN_STD", "MIN_MAX"))
    assert path_of() == str(processor)
    processor.write_text(content)
    (source / "vocab-é.json").write_text("{}")
    assert path_of() == str(out / "manifest.json")
    (source / "vocab-é.json").unlink()
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", {**config, "output_features": {"action": {"type": "ACTION", "shape": [3]}}})
    assert path_of() == str(source / "config.json")
    (source / "model.safetensors").unlink()
    assert path_of() == str(source)


def test_an_existing_destination_is_not_touched(tmp_path: Path) -> None:
    lerobot_04(tmp_path / "src")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError) as caught:
        import_folder(tmp_path / "src", tmp_path / "out", **OPTIONS)
    assert caught.value.code == "IMPORT_DESTINATION"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        import_folder(tmp_path / "src", tmp_path / "empty", **OPTIONS)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_peft_folder_becomes_an_adapter_bundle_on_its_base(tmp_path: Path) -> None:
    base = make_bundle(tmp_path / "base")
    write_folder(tmp_path / "src", policy_type="act", adapter=True)
    assert refused(tmp_path / "src", tmp_path / "out") == "IMPORT_SOURCE"
    ref = BaseRef(base.name, base.version, base.digest)
    import_folder(tmp_path / "src", tmp_path / "out", **OPTIONS, base=ref)
    assert verify_bundle(tmp_path / "out").manifest.base == ref


def test_the_source_is_not_changed(tmp_path: Path) -> None:
    lerobot_03(tmp_path / "src")
    before = {path.name: path.read_bytes() for path in (tmp_path / "src").iterdir()}
    import_folder(tmp_path / "src", tmp_path / "out", **OPTIONS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "src").iterdir()} == before
