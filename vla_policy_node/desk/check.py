# SPDX-License-Identifier: Apache-2.0
"""A bundle held against a robot contract and an interpreter before it is published: one finding a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint.bundle import Bundle, verify_bundle
from vla_checkpoint.errors import CheckpointError
from vla_policy_node.contract.model import Contract
from vla_policy_node.desk.fit import coded, read_contract
from vla_policy_node.desk.run import interpreter_versions, prepared
from vla_policy_node.desk.units import doubtful_units
from vla_policy_node.worker.api import Generation, WorkerConfig


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    text: str
    code: str = ""
    """Why it failed; empty: it is in order."""


def check(folder: Path, contract_path: str, config: WorkerConfig, python: str) -> Iterator[Finding]:
    """Yield what a robot with this contract and this interpreter would say of a bundle.

    What cannot be looked at because something before it failed is left out.

    Raises:
        CheckpointError: the contract cannot be read.
    """
    contract = read_contract(contract_path)
    try:
        bundle = verify_bundle(folder)
    except CheckpointError as e:
        yield Finding("bundle", f"{e.path}: {e.reason}", e.code)
        return
    manifest = bundle.manifest
    yield Finding(
        "bundle", f"{manifest.name} {manifest.version}, {manifest.total_bytes / 1e6:.1f} MB, every digest is right"
    )
    yield from _of_files(bundle, contract)
    yield from _of_worker(bundle, contract, config, python)


def _of_files(bundle: Bundle, contract: Contract) -> Iterator[Finding]:
    action = bundle.manifest.action
    try:
        with coded(str(contract.path)):
            contract.check_manifest(bundle.manifest)
        yield Finding(
            "robot", f"{contract.robot_type}, {action.rate_hz:g} Hz, {len(action.channels)} channels as the contract's"
        )
    except CheckpointError as e:
        yield Finding("robot", e.reason, e.code)
    doubtful = doubtful_units(bundle.stats, contract)
    for text in doubtful:
        yield Finding("units", f"{text}: another unit?", "UNITS_DOUBTFUL")
    if not doubtful:
        yield Finding("units", "nothing in the statistics speaks against them")


def _of_worker(bundle: Bundle, contract: Contract, config: WorkerConfig, python: str) -> Iterator[Finding]:
    kind = bundle.manifest.policy_type
    try:
        versions = interpreter_versions(config, python)
        yield Finding("interpreter", f"{python}: {', '.join(f'{name} {v}' for name, v in versions.items())}")
        with prepared(config, bundle.path, contract.features) as generation:
            yield Finding(
                "policy", f"type {kind} loads and answers on {config.device}; its observations are the contract's"
            )
            yield _golden(bundle, generation)
            yield _horizon(bundle, contract, generation)
    except CheckpointError as e:
        what = {"GOLDEN_MISMATCH": "golden", "WORKER_START_FAILED": "interpreter"}.get(e.code, "policy")
        yield Finding(what, e.reason, e.code)


def _golden(bundle: Bundle, generation: Generation) -> Finding:
    golden = bundle.golden()
    if golden is None:
        return Finding("golden", "none; make it with the policy itself: vla-checkpoint golden", "GOLDEN_MISSING")
    difference = generation.timings.golden_difference
    return Finding("golden", f"{len(golden)} observations replayed, largest difference {difference:.3g}")


def _horizon(bundle: Bundle, contract: Contract, generation: Generation) -> Finding:
    latency_s, spec = generation.timings.inference_ms / 1e3, generation.spec
    try:
        with coded(str(contract.path)):
            contract.check_bundle(bundle.manifest, spec, latency_s=latency_s)
    except CheckpointError as e:
        return Finding("horizon", e.reason, e.code)
    took = f"an inference took {generation.timings.inference_ms:.3g} ms on this machine"
    return Finding(
        "horizon", f"{spec.horizon} actions, {spec.execute} executed, {contract.blend_ticks} blended; {took}"
    )
