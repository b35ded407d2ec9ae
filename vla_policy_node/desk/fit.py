# SPDX-License-Identifier: Apache-2.0
"""Whether a bundle fits a robot contract, as far as its files say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vla_checkpoint.bundle import Bundle
from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.importing.command import Robot
from vla_checkpoint.importing.plan import Target
from vla_checkpoint.manifest import MODES, Channel
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.desk.units import doubtful_units
from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.policies.base import FeatureSpec, PolicySpec
from vla_policy_node.worker.plan import check_history


def read_robot(path: str) -> Robot:
    """Read a contract for ``vla-checkpoint import``.

    Raises:
        CheckpointError: with the contract's code.
    """
    contract = read_contract(path)
    channels = tuple(Channel(c.name, c.unit, next(m for m in MODES if m == c.mode)) for c in contract.channels)

    def accept(bundle: Bundle) -> list[str]:
        with coded(path):
            contract.check_bundle(bundle.manifest, spec_of(bundle))
            check_history(bundle)
        return [f"{text}: another unit?" for text in doubtful_units(bundle.stats, contract)]

    return Robot(Target(contract.robot_type, contract.rate_hz, channels, path), accept)


def read_contract(path: str) -> Contract:
    """Read a contract; raises a CheckpointError with the contract's code."""
    with coded(path):
        return load_contract(path)


def spec_of(bundle: Bundle) -> PolicySpec:
    """Return what a policy says of itself if it goes by its ``config.json``."""
    config = bundle.config
    features = {
        key: FeatureSpec(feature.array_shape, "uint8" if feature.type == "VISUAL" else "float32")
        for key, feature in config.input_features.items()
    }
    return PolicySpec(features, config.chunk_size, config.n_action_steps, config.action_dim, history=config.n_obs_steps)


@contextmanager
def coded(path: str) -> Iterator[None]:
    """Turn an error of the policy node into one that ``vla-checkpoint`` shows: ``CODE: path: reason``."""
    try:
        yield
    except PolicyNodeError as e:
        raise CheckpointError(e.code, path, e.message.removeprefix(f"{path}: ")) from e
