# SPDX-License-Identifier: Apache-2.0
"""What the policy node says of itself on ``/diagnostics``."""

from __future__ import annotations

from vla_policy_node.engine import PolicyEngine
from vla_policy_node.holds import explain
from vla_ros.diagnostics import ERROR, OK, WARN, Report


def loop(engine: PolicyEngine | None, refusal: tuple[str, str]) -> Report:
    """Return whether the control process runs and what it does. ``refusal``: code and text of why there is no engine."""
    if engine is None:
        return Report(WARN, " ".join(("not configured", *refusal)).strip())
    snapshot = engine.snapshot()
    status = snapshot.control
    if not snapshot.control_alive or status is None:
        return Report(ERROR, "the control process does not run: nothing is commanded")
    values = {
        "rate [Hz]": engine.contract.rate_hz,
        "ticks": status.ticks,
        "missed": status.missed,
        "starved": status.starved,
        "clamped": status.clamped,
        "worst lateness [ms]": f"{status.worst_late_ms:.2f}",
    }
    if status.mode == "HOLDING":
        return Report(WARN, f"holding: {explain(status.hold_reason, latched=status.latched)}", values)
    return Report(OK, status.mode.lower().replace("_", " "), values)


def shadow(engine: PolicyEngine | None) -> Report:
    """Return how far what the policy of a shadow-only node wanted is from what the robot did."""
    if engine is None or engine.follower is None:
        return Report(OK, "off: the policy commands the robot")
    compared, difference = engine.follower.difference()
    values = {f"{c.name} [{c.unit}]": f"{d:.4g}" for c, d in zip(engine.contract.channels, difference, strict=True)}
    text = f"mean difference from what was measured, over {compared} chunks" if compared else "nothing compared yet"
    return Report(OK, f"the policy commands nothing; {text}", values)


def policy(engine: PolicyEngine | None) -> Report:
    """Return which generations are in memory and whether one acts."""
    if engine is None:
        return Report(WARN, "not configured")
    snapshot = engine.snapshot()
    active, standby = snapshot.active, snapshot.standby
    values = {
        "active": active.version if active else "",
        "standby": standby.version if standby else "",
        "worker pid": active.generation.pid if active else "",
        "inference [ms]": f"{snapshot.inference_ms:.1f}",
        "last error": f"{snapshot.error_code} {snapshot.message}".strip(),
    }
    if active is None:
        return Report(WARN if snapshot.loading else ERROR, "loading" if snapshot.loading else "no policy", values)
    return Report(OK, f"{active.version} acts", values)
