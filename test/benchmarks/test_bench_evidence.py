# SPDX-License-Identifier: Apache-2.0
"""What the evidence benchmark rests on: the peers' rules on hand-made sequences, figures that follow from the JSON, seeds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, mannwhitneyu, norm, ttest_ind

from benchmarks.evidence import ab, ab_rules, canary, canary_rules, clusters, packages
from benchmarks.evidence.__main__ import estimate_tables, main
from benchmarks.evidence.canary_rules import Watched
from benchmarks.evidence.montecarlo import Experiment, Sample, simulate
from benchmarks.evidence.tables import Goal
from vla_evidence.sequential.sign_test import ExactSignTest, SignTestDesign
from vla_evidence.sequential.spending import LINEAR
from vla_evidence.sequential.two_sample import TwoSampleEProcess


def watched(canary_text: str, incumbent: tuple[int, int] = (1000, 870), baseline: str | None = None) -> Watched:
    """One run: ``1`` success, ``0`` failure; the incumbent had the same (episodes, successes) at every look."""
    y = np.array([[c == "1" for c in canary_text]])
    b = np.array([[c == "1" for c in baseline]]) if baseline else np.ones_like(y)
    return Watched(y, np.full(y.shape, incumbent[0]), np.full(y.shape, incumbent[1]), b)


def window(failures: int) -> str:
    return "0" * failures + "1" * (20 - failures)


@pytest.mark.parametrize(
    ("windows", "verdict"),
    [
        ([4, 4, 4, 4], 80),  # 0.80 < 0.85, four times: more than failureLimit
        ([4, 4, 4], 0),
        ([3, 3, 3, 3, 3], 0),  # 0.85 is not below 0.85
        ([4, 0, 4, 0, 4, 0, 0, 20], 160),  # failures count in all, not in a row
    ],
)
def test_argo_fails_with_more_failed_measurements_than_the_limit(windows: list[int], verdict: int) -> None:
    assert canary_rules.argo(watched("".join(window(f) for f in windows))).tolist() == [verdict]


@pytest.mark.parametrize(
    ("episodes", "verdict"),
    [
        ("0" * 19, 0),  # too few
        ("0" * 4 + "1" * 16, 20),  # 20 % of 20
        ("0" * 3 + "1" * 17 + "1" * 20, 0),  # 15 % does not exceed 15 %
        ("0" * 3 + "1" * 17 + "0" + "1" * 9, 21),
    ],
)
def test_aws_cancels_above_the_percentage_and_not_before_the_minimum(episodes: str, verdict: int) -> None:
    assert canary_rules.aws(watched(episodes)).tolist() == [verdict]


def test_should_advance_needs_fifty_and_allows_two_percent() -> None:
    looks = range(1, 101)
    bad, tolerated = "1" * 42 + "0" * 58, ("1" * 17 + "0" * 3) * 5
    assert canary_rules.lessons_rule(watched(bad), looks).tolist() == [50]  # 0.84 < 0.87 - 0.02
    assert canary_rules.lessons_rule(watched(tolerated, incumbent=(1000, 870)), [100]).tolist() == [0]  # 0.85 >= 0.85
    assert canary_rules.lessons_rule(watched(bad, incumbent=(49, 49)), looks).tolist() == [0]


def test_the_z_test_is_the_textbooks() -> None:
    episodes = "1" * 75 + "0" * 25
    z = (0.75 - 0.87) / math.sqrt((945 / 1100) * (155 / 1100) * (1 / 100 + 1 / 1000))
    found = canary_rules.z_test(watched(episodes), [100], alpha=float(norm.cdf(z)) + 1e-9)
    assert found.tolist() == [100]
    assert canary_rules.z_test(watched(episodes), [100], alpha=float(norm.cdf(z)) - 1e-9).tolist() == [0]


def test_kayenta_on_episodes_agrees_with_scipys_mann_whitney() -> None:
    rng = np.random.default_rng(3)
    verdicts = set()
    for _ in range(60):
        x, y = (rng.random((1, 90)) < rng.uniform(0.5, 0.95) for _ in range(2))
        both = Watched(x, np.ones_like(x, int), np.ones_like(x, int), y)
        p = mannwhitneyu(x[0].astype(int), y[0].astype(int), alternative="less", method="asymptotic").pvalue
        verdict = canary_rules.kayenta_episodes(both, judgements=1, confidence=0.98)[0]
        assert verdict == (90 if p < 0.01 else 0)
        verdicts.add(verdict)
    assert verdicts == {0, 90}


def test_kayentas_judgements_stand_on_their_own_episodes() -> None:
    good, bad = "1" * 50, "1" * 25 + "0" * 25
    assert canary_rules.kayenta_episodes(watched(good + bad + good)).tolist() == [100]
    assert canary_rules.kayenta_episodes(watched(good * 3)).tolist() == [0]
    assert canary_rules.kayenta_episodes(watched("0" * 150, baseline="0" * 150)).tolist() == [0]  # all tied


def interval_rule_by_definition(x: np.ndarray, y: np.ndarray, z: float) -> bool:
    """Kayenta's rule with scores at every point between the possible shifts (multiples of 1/8), pair by pair."""
    n, ends = len(x), []
    for quantile in (-z, 0.0):
        for step in range(-9, 9):
            mu = (step + 0.5) / 8
            centred = sum((a - mu) > b for a, b in product(x, y)) - n * n / 2
            _, counts = np.unique(np.concatenate([x - mu, y]), return_counts=True)
            sigma = math.sqrt(n * n / 12 * (2 * n + 1 - (counts**3 - counts).sum() / (2 * n * (2 * n - 1))))
            if (centred - 0.5 * np.sign(centred)) / sigma < quantile:
                ends.append(step / 8)
                break
    upper, estimate = ends
    return upper < -0.25 * abs(estimate)


def test_kayenta_on_rates_is_the_interval_rule() -> None:
    rng = np.random.default_rng(5)
    verdicts = set()
    for rate in (0.87, 0.75, 0.65, 0.6, 0.55, 0.5) * 2:
        x, y = rng.random((1, 160)) < rate, rng.random((1, 160)) < 0.87
        both = Watched(x, np.ones_like(x, int), np.ones_like(x, int), y)
        points = [s.reshape(20, 8).mean(axis=1) for s in (x[0], y[0])]
        expected = interval_rule_by_definition(*points, float(norm.ppf(0.99)))
        assert canary_rules.kayenta_rates(both, points=20).tolist() == [160 if expected else 0]
        verdicts.add(expected)
    assert verdicts == {True, False}


def test_rates_too_coarse_to_move_pass_whatever_happens() -> None:
    assert canary_rules.kayenta_rates(watched("10" * 200, baseline="1" * 360 + "0" * 40)).tolist() == [400]
    assert canary_rules.kayenta_rates(watched("1" * 400, baseline="1" * 400)).tolist() == [0]


def pair_rows(*texts: str) -> tuple[np.ndarray, np.ndarray]:
    """``b``: B won, ``a``: A won, ``=``: both succeeded."""
    rows = np.array([list(text) for text in texts])
    return rows != "b", rows != "a"


def test_mcnemar_at_the_end_is_the_binomial_test_of_discordant_pairs() -> None:
    a, b = pair_rows("b" * 5 + "=" * 5, "b" * 4 + "=" * 6, "b" * 9 + "a", "b" * 8 + "aa", "=" * 10)
    assert binom.sf(4, 5, 0.5) <= 0.05 < binom.sf(3, 4, 0.5)
    assert binom.sf(8, 10, 0.5) <= 0.05 < binom.sf(7, 10, 0.5)
    assert ab_rules.mcnemar_at_end(a, b, 0.05).tolist() == [10, 0, 10, 0, 0]


def test_betting_wealth_is_the_integral_and_stops_at_one_over_alpha() -> None:
    theta = (np.arange(200_000) + 0.5) / 400_000 + 0.5
    wealth = 2 * np.mean((2 * theta) ** 5 * (2 * (1 - theta)) ** 2) * 0.5
    assert ab_rules._log_wealth(6, 3)[5, 2] == pytest.approx(math.log(wealth), abs=1e-6)
    a, b = pair_rows("=" + "b" * 9)
    first = next(w for w in range(1, 10) if 2 ** (w + 1) / (w + 1) * (1 - 0.5 ** (w + 1)) >= 20)
    assert ab_rules.mcnemar_betting(a, b, 0.05).tolist() == [first + 1]


def test_savi_on_pairs_by_hand() -> None:
    a, b = pair_rows("bbbb")
    log_e, qa, qb = 0.0, [0.5, 1 / 3, 1 / 4, 1 / 5], [0.5, 2 / 3, 3 / 4, 4 / 5]
    for x, y in zip(qa[1:], qb[1:], strict=True):
        log_e += math.log((1 - x) / 0.5) + math.log(y / 0.5)
    assert ab_rules.savi(a, b, math.exp(-log_e) + 1e-9).tolist() == [4]
    assert ab_rules.savi(a, b, math.exp(-log_e) - 1e-9).tolist() == [0]


def test_naive_looks_are_those_named() -> None:
    a, b = pair_rows("b" * 20)
    assert ab_rules.z_test(a, b, range(10, 21, 10), 0.05).tolist() == [10]
    assert ab_rules.z_test(a, b, [20], 0.05).tolist() == [20]
    assert ab_rules.z_test(b, a, [10, 20], 0.05).tolist() == [0]  # A is better: one-sided


def test_our_columns_are_the_packages_own_decisions() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.random((20, 200)) < 0.75, rng.random((20, 200)) < 0.87
    stops = ab.exact(a, b, 0.05, LINEAR)
    for run in range(20):
        test = ExactSignTest(SignTestDesign(200))
        for x, y in zip(a[run].tolist(), b[run].tolist(), strict=True):
            test.update(y - x)
        assert stops[run] == (test.pairs if test.decision == 1 else 0)
    assert 0 < (stops > 0).sum() < 21


def test_detection_counts_the_canary_episodes_until_the_evidence_suffices() -> None:
    """The same generator, episode by episode: what the doubling of the horizon must not change."""
    drawn = canary.detect(np.random.default_rng(2), 3, probability=0.5, canary=0.3, margin=0.02, priors=canary.INFORMED)
    rng = np.random.default_rng(2)
    groups, ys = canary._units(rng, (3, 200), 0.5, 0.3)  # all three end within the first horizon
    for run in range(3):
        process = TwoSampleEProcess(0.02, incumbent=canary.INFORMED[0], canary=canary.INFORMED[1])
        at = {}
        for unit in range(200):
            process.update(int(groups[run, unit]), float(ys[run, unit]), 0.5)
            for alpha in canary.ALPHAS:
                if process.rejects(alpha):
                    at.setdefault(alpha, int(groups[run, : unit + 1].sum()))
        for alpha in canary.ALPHAS:
            assert drawn[f"episodes {alpha}"][run] == at[alpha]


def test_rules_see_the_stream_that_ours_sees() -> None:
    found = canary.watch(np.random.default_rng(4), 40, probability=0.25, canary=0.3)
    for name in [*canary.OURS, "z test, looked at every 10", "AWS-like: over 15 % failed, from 20 on"]:
        assert found[f"{name}: rolled back"].all()
        assert found[f"{name}: episodes"].max() < 200
    assert (found["AWS-like: over 15 % failed, from 20 on: episodes"] == 20).all()


def test_welch_is_scipys_and_the_randomisation_is_over_robots() -> None:
    rng = np.random.default_rng(8)
    means = rng.uniform(0.5, 1.0, (200, clusters.ROBOTS))
    canaries = np.arange(clusters.ROBOTS) < clusters.CANARIES
    test = ttest_ind(means[:, canaries], means[:, ~canaries], axis=1, equal_var=False, alternative="less")
    assert clusters._welch_rejects(means, canaries).tolist() == (test.pvalue < 0.05).tolist()
    successes = np.ones((clusters.ROBOTS, clusters.EPISODES), bool)
    assert not clusters._randomisation_rejects(successes)
    successes[: clusters.CANARIES, ::2] = False
    assert clusters._randomisation_rejects(successes)


def test_an_advance_needs_the_drop_excluded() -> None:
    others = 3 * np.arange(1, 401)[None, :]  # as many as π = 0.25 makes likely
    for episodes, excluded in (("1" * 400, True), ("10" * 200, False)):
        y = np.array([[c == "1" for c in episodes]])
        assert canary._drop_excluded(Watched(y, others, others * 87 // 100, y), 0.25).tolist() == [excluded]


def test_statistics_and_their_errors() -> None:
    rng = np.random.default_rng(6)
    numbers = rng.integers(1, 1000, 5000)
    sample = Sample.of(numbers)
    mean, p90 = sample.estimate("mean"), sample.estimate("p90")
    assert (mean.value, mean.runs) == (pytest.approx(numbers.mean()), 5000)
    assert mean.error == pytest.approx(numbers.std(ddof=1) / math.sqrt(5000))
    assert p90.value == np.sort(numbers)[4499]
    assert p90.error == pytest.approx(
        math.sqrt(0.9 * 0.1 / 5000) * 1000, rel=0.2
    )  # of a uniform: √(q(1-q)/n) / density
    within = sample.estimate("within 250")
    assert within.value == np.mean(numbers <= 250)
    assert within.error == pytest.approx(math.sqrt(within.value * (1 - within.value) / 5000), rel=1e-3)
    assert sample.estimate("none").value == 0.0
    nothing = Sample.of(np.zeros(100, bool)).estimate("share")
    assert nothing.value == 0.0 and nothing.error > 0.0


def test_the_seed_alone_decides_whatever_the_number_of_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.evidence", "--parts", "ab", "--runs", "3", "--processes", "2"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=100, capture_output=True)
    elsewhere = json.loads((tmp_path / "evidence.json").read_text())["samples"]
    for seed, same in ((20261120, True), (20261121, False)):
        here = simulate(ab.experiments(), 3, seed, 1)
        kept = {name: {m: s.to_json() for m, s in metrics.items()} for name, metrics in here.items()}
        assert (kept == elsewhere) is same


def one_number(rng: np.random.Generator, runs: int) -> dict[str, np.ndarray]:
    return {"number": rng.integers(0, 1_000_000, runs)}


def test_batches_and_experiments_draw_different_numbers() -> None:
    found = simulate([Experiment("one", one_number, 7), Experiment("two", one_number, 7, runs=10)], 30, 1, 1)
    one, two = found["one"]["number"], found["two"]["number"]
    assert (one.runs, two.runs) == (30, 10)
    assert len({*one.values.tolist(), *two.values.tolist()}) == 40


def test_a_goal_is_missed_on_the_wrong_side_of_its_limit_only() -> None:
    assert Goal("g", 97.0, 97.0, True, 0.4).line().startswith("reached  g: 97.00 ± 0.40 (at most 97.00)")
    assert Goal("g", 0.0351, 0.035, True, 0.001, "%").line() == "MISSED   g: 3.51 ± 0.10 % (at most 3.50 %)"
    assert not Goal("g", 199_999.0, 200_000.0, False).reached


def test_the_sign_test_is_compared_with_step_of_the_same_run_where_there_is_one() -> None:
    def outcomes(name: str, rejects: int, pairs: int) -> dict[str, Sample]:
        return {f"{name}: rejects": Sample([0, 1], [100 - rejects, rejects]), f"{name}: pairs": Sample([pairs], [100])}

    samples = {"pairs, N = 200, differ": outcomes(ab.OURS, 87, 110)}
    power, pairs = ab.goals(samples)
    assert (power.limit, pairs.limit) == (pytest.approx(0.879 - 0.015), pytest.approx(112.1))
    assert "measured earlier" in power.text
    samples["STEP, N = 200, differ"] = outcomes("STEP", 90, 105)
    power, pairs = ab.goals(samples)
    assert (power.limit, pairs.limit) == (pytest.approx(0.885), pytest.approx(108.0))
    assert not power.reached and not pairs.reached
    assert power.error == pytest.approx(math.sqrt((0.87 * 0.13 + 0.9 * 0.1) / 100), rel=0.02)


FAKE_PACKAGE = {
    "__init__.py": "",
    "base.py": """
        from enum import Enum
        class Decision(Enum): AcceptAlternative = 1; FailToDecide = 2
        class Hypothesis(Enum): P0LessThanP1 = 0; P0MoreThanP1 = 1
        class Result:
            def __init__(self, decision): self.decision = decision
        class Counts:
            def __init__(self, wins): self.wins = wins; self.reset()
            def reset(self): self.lead = 0
            def step(self, a, b):
                self.lead += b - a
                return Result(Decision.AcceptAlternative if self.lead >= self.wins else Decision.FailToDecide)
    """,
    "step.py": """
        from fakes.base import Counts, Hypothesis
        def StepTest(alternative, n_max, alpha): assert alternative is Hypothesis.P0LessThanP1; return Counts(3)
    """,
    "savi.py": "from fakes.base import Counts\ndef SaviTest(alternative, alpha): return Counts(2)\n",
}


def test_packages_of_others_are_called_by_their_interface_or_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "PACKAGE", "fakes")
    assert packages.unavailable("SAVI", 6, 0.05) == "not installed"
    for name, text in FAKE_PACKAGE.items():
        (tmp_path / "fakes").mkdir(exist_ok=True)
        (tmp_path / "fakes" / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.unavailable("SAVI", 6, 0.05) is None
    assert packages.unavailable("STEP", 6, 0.05) == "policy not synthesised"
    policy = tmp_path / "fakes/policies/n_max_6_alpha_0.05_shape_parameter_0.0_pnorm_False/policy_compressed.pkl"
    policy.parent.mkdir(parents=True)
    policy.touch()
    assert packages.unavailable("STEP", 6, 0.05) is None
    a, b = pair_rows("b=bbbb", "aabbbb", "======")
    assert packages.stop("STEP", a, b, 0.05).tolist() == [4, 0, 0]
    assert packages.stop("SAVI", a, b, 0.05).tolist() == [3, 6, 0]


CHEAP = {experiment.name for experiment in ab.experiments() if experiment.factor == 4}


def test_a_quick_look_says_so_and_its_tables_follow_from_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, sizes in ((canary, {"STAGE": 40}), (ab, {"CLOSE_PAIRS": 60}), (clusters, {"_LOOKS": (40,)})):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(ab, "_CLOSE", {"ours": partial(ab.exact, alpha=0.025, spending=LINEAR)})
    looks = {"z test": partial(canary_rules.z_test, looks=[40]), "AWS": canary_rules.aws, "Argo": canary_rules.argo}
    monkeypatch.setattr(canary, "RULES", looks)
    arguments = ["--out", str(tmp_path), "--runs", "3", "--processes", "1", "--rounds", "1", "--scale", "0.001"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "QUICK LOOK: 3 runs instead of 20000" in printed
    document = json.loads((tmp_path / "evidence.json").read_text())
    samples = {
        name: {metric: Sample(**kept) for metric, kept in metrics.items()}
        for name, metrics in document["samples"].items()
    }
    figures = 0
    for table in document["tables"]:
        for cell in [cell for row in table["rows"] for cell in row["cells"] if isinstance(cell, dict)]:
            estimate = samples[cell["experiment"]][cell["metric"]].estimate(cell["statistic"])
            assert (cell["value"], cell["standard_error"]) == (estimate.value, estimate.error)
            assert cell["runs"] == estimate.runs == (12 if cell["experiment"] in CHEAP else 3)
            figures += 1
    assert figures > 60
    for table in estimate_tables(["canary", "ab", "clusters"]):
        assert table.text(samples) in printed
        assert table.markdown(samples).count("|") == (len(table.rows) + 2) * (len(table.headings) + 1)
    assert document["settings"]["quick"] and document["settings"]["seed"] == 20261120
    assert {"cpu", "python", "numpy", "scipy"} <= document["machine"].keys()
    assert {goal["goal"] for goal in document["goals"]} >= {"ours, in batch (slowest round)"}
    assert all((goal["value"] <= goal["limit"]) == goal["reached"] for goal in document["goals"] if goal["at_most"])
