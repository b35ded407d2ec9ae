# SPDX-License-Identifier: Apache-2.0
"""What a robot is ordered to do when it joins an experiment, and when it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_fleet import protocol
from vla_fleet.experiments.evidence import State
from vla_fleet.registry.registry import Version
from vla_fleet.storage.tables import ExperimentRobotRow, ExperimentRow

ManifestUrl = Callable[[str, str], str]


def to_join(
    experiment: ExperimentRow, robot: ExperimentRobotRow, versions: dict[str, Version], url: ManifestUrl
) -> list[protocol.Order]:
    """Return the orders, in their sequence; ``versions``: A and B."""
    if robot.arm:
        return [update(versions[robot.arm], url)]
    assign = protocol.Assign(experiment=experiment.id, versions=[experiment.a, experiment.b], probability=0.5)
    return [update(versions["A"], url), update(versions["B"], url, activate=False), assign]


def to_leave(
    experiment: ExperimentRow, robot: ExperimentRobotRow, versions: dict[str, Version], url: ManifestUrl
) -> list[protocol.Order]:
    """Return the orders: back to A, unless B has won. The second one is for a robot that no longer has A on its disk."""
    if not robot.arm:
        return [protocol.Assign(experiment=experiment.id)]
    if robot.arm == "A" or experiment.state == State.WIN_B:
        return []
    why = f"experiment {experiment.id} ended: {experiment.state}"
    return [protocol.Rollback(version=experiment.a, reason=why), update(versions["A"], url)]


def update(version: Version, url: ManifestUrl, *, activate: bool = True) -> protocol.ModelUpdate:
    """Return the order to install a version."""
    return protocol.ModelUpdate(
        name=version.name, version=version.version, manifest_url=url(version.name, version.version),
        manifest_sha256=version.digest, activate=activate,
    )  # fmt: skip


def holds(order: protocol.Order, status: dict[str, Any]) -> bool:
    """Whether a robot's status says that nothing is left to do. Only of installing: an assignment is always ordered."""
    if not isinstance(order, protocol.ModelUpdate):
        return False
    if not order.activate:
        return status.get("name") == order.name and order.version in status.get("versions", ())
    acts = status.get("committed_digest") == status.get("active_digest") == order.manifest_sha256
    return acts and not status.get("trial_version")
