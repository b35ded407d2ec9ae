"""The bound of the shadow, on simulated policies: what was trained again passes, a wrong unit, sign or place does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from support.engine_rig import contract_text
from support.refusals import refused

from vla_policy_node.contract.model import parse_contract
from vla_policy_node.control.limits import Limiter
from vla_policy_node.policies.base import FeatureSpec, PolicySpec
from vla_policy_node.shadow.judge import ShadowJudge, ShadowReport
from vla_policy_node.worker.api import PrepareError

CONTRACT = parse_contract(contract_text())
LIMITER = Limiter([c.limits for c in CONTRACT.channels], [c.name for c in CONTRACT.channels])
SPEC = PolicySpec({"observation.state": FeatureSpec((2,), "float32")}, horizon=24, execute=8, action_dim=2)
STEP = np.array([c.limits.rate * CONTRACT.period_s for c in CONTRACT.channels])
CHUNKS, LIMIT = 10, 5.0

Floats = npt.NDArray[np.float64]


def judge(chunks: int = CHUNKS) -> ShadowJudge:
    return ShadowJudge(CONTRACT, LIMITER, SPEC, chunks=chunks, divergence_limit=LIMIT)


def shadow(rng: np.random.Generator, change: Callable[[Floats], Floats], own: float, other: float) -> str:
    """Return the code of one shadow: both policies follow one path, each with smooth errors of its own (in largest steps)."""
    here, before = judge(), np.zeros((0, 2))
    phase = rng.uniform(0, 2 * np.pi, 2)
    try:
        for k in range(CHUNKS):
            times = (k * SPEC.execute + np.arange(SPEC.horizon))[:, None] / 50.0
            path = 0.8 + 0.4 * np.sin(times + phase)
            acting = path + own * STEP * rng.standard_normal(2)
            if k:
                here.incumbent(before[SPEC.execute : 2 * SPEC.execute], acting[: SPEC.execute])
            here.candidate(change(path + other * STEP * rng.standard_normal(2)), 0.02, acting[: SPEC.execute])
            before = acting
        here.report(1.0)
    except PrepareError as e:
        return e.code
    return ""


def refusals(change: Callable[[Floats], Floats], own: float, other: float, runs: int = 100) -> float:
    rng = np.random.default_rng(5)
    return sum(bool(shadow(rng, change, own, other)) for _ in range(runs)) / runs


@pytest.mark.parametrize(("own", "other"), [(0.0, 0.2), (0.1, 0.2), (0.3, 0.6), (0.5, 1.0)])
def test_a_policy_that_errs_twice_as_much_as_the_acting_one_is_hardly_ever_refused(own: float, other: float) -> None:
    assert refusals(lambda chunk: chunk, own, other) <= 0.01


@pytest.mark.parametrize(
    "change",
    [
        lambda chunk: chunk * [-1, 1],  # a sign
        lambda chunk: chunk * 180 / np.pi,  # a unit
        lambda chunk: chunk * np.pi / 180,
        lambda chunk: chunk + np.array([0.0, 0.5]),  # a place
    ],
)
@pytest.mark.parametrize("own", [0.0, 0.1, 0.3])
def test_a_wrong_sign_unit_or_place_is_refused_nearly_always(change: Callable[[Floats], Floats], own: float) -> None:
    assert refusals(change, own, own) >= 0.99


def report_of(*differences: float) -> ShadowReport:
    """A shadow in which the acting policy never differs from itself, and the candidate by so many largest steps of j2."""
    here = judge(len(differences))
    for difference in differences:
        acting = np.full((SPEC.execute, 2), 0.5)
        here.candidate(np.full((SPEC.horizon, 2), 0.5) + np.array([0, difference]) * STEP, 0.02, acting)
    return here.report(2.0)


def test_one_bad_observation_refuses_nobody_and_the_report_names_the_worst_channel() -> None:
    allowed = report_of(*[0.1] * 8, *[2.0] * 2)  # a quarter of ten, rounded down
    assert (allowed.compared, allowed.channel) == (10, "j2")
    assert allowed.divergence == pytest.approx(1.0)
    with refused("SHADOW_DIVERGED") as error:
        report_of(*[0.1] * 7, *[2.0] * 3)
    assert "j2" in str(error.value) and "3 of 10" in str(error.value)
    assert report_of(0.1, 2.0, 0.1).compared == 3  # few chunks make no rule of one
    for differences in ([2.0, 0.1, 2.0], [2.0]):
        with refused("SHADOW_DIVERGED"):
            report_of(*differences)


def test_chunks_that_come_too_late_are_counted_and_one_alone_refuses_nobody() -> None:
    here, chunk = judge(), np.full((SPEC.horizon, 2), 0.5)
    for latency_s in (0.02, 1.0, 0.02, 1.0):
        here.candidate(chunk, latency_s, None)
    with refused("SHADOW_TOO_SLOW"):
        here.candidate(chunk, 1.0, None)
