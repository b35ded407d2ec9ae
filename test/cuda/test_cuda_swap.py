"""A policy on a GPU is replaced under a running control loop, and back: no tick is missed or starved for it."""

from __future__ import annotations

import time
from pathlib import Path

from conftest import GPU
from support.engine_rig import PATIENT, EngineRig

from vla_policy_node.generations.swapping import SwapRequest
from vla_sim.witness import Witness

RATE_HZ = 50.0


def test_swaps_in_motion_cost_no_tick(bundles: dict[str, Path]) -> None:
    old, new = bundles["old"], bundles["new"]
    modules = ("bench_transformer=benchmarks.transformer",)
    settings = {"model_path": str(old), "device": GPU, "policy_modules": modules, "worker_imports": ("torch",)}
    with Witness(RATE_HZ) as witness, EngineRig(old.parent, contract=PATIENT, load_timeout_s=300.0, **settings) as rig:
        rig.wait_running("1.0.0", 120.0)
        rig.wait_for(lambda: len(rig.reports) == 1, "the report of the start")
        begun_s = time.monotonic()
        rig.engine.swap(SwapRequest(bundle_path=str(new)))
        rig.wait_running("1.1.0")
        rig.wait_for(lambda: len(rig.reports) == 2, "the report of the update")
        back = rig.snapshot.standby
        assert back is not None and back.version == "1.0.0"
        rig.engine.swap(SwapRequest(digest=back.digest, cause="ROLLBACK"))
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: len(rig.reports) == 3, "the report of the rollback")
        for report, warm in zip(rig.reports[1:], (False, True), strict=True):
            assert report.warm == warm and report.starved == 0
            assert report.missed == witness.share(report.missed, begun_s), "ticks that the witness did not miss"
