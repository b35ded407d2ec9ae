"""Tests of policies on a GPU fail where there is none: nobody takes them for passed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import support.one_thread  # noqa: F401  (before anything that imports numpy)
import torch
from support import tiny_vla_bundles
from support.bundles import JOINTS

from benchmarks.transformer.make import make as make_transformer
from benchmarks.transformer.model import TransformerConfig
from vla_checkpoint import build_manifest, write_manifest

GPU = "cuda:0"


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.option.collectonly and not torch.cuda.is_available():
        reason = (
            f"torch {torch.__version__} of {sys.executable} finds no GPU: set VLA_OTA_CUDA_PYTHON (docs/runtime.md)"
        )
        pytest.exit(f"make test-cuda FAILED, nothing was tested: {reason}", returncode=1)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``tiny``, and the transformer of 200 MB in two versions, for a robot of two joints."""
    folder = tmp_path_factory.mktemp("bundles")
    tiny_vla_bundles.make(folder / "tiny", 0.0)
    for seed, version in enumerate(("1.0.0", "1.1.0")):
        make_transformer(folder, version, TransformerConfig(joints=2), [50], seed)
        bundle = folder / "50" / version
        (bundle / "manifest.json").unlink()  # it is for the benchmarks' robot
        manifest = build_manifest(
            bundle, name="transformer", version=version, policy_type="bench_transformer", robot_type="sim_arm",
            channels=JOINTS, rate_hz=50.0,
        )  # fmt: skip
        write_manifest(bundle, manifest)
    return {"tiny": folder / "tiny", "old": folder / "50" / "1.0.0", "new": folder / "50" / "1.1.0"}
