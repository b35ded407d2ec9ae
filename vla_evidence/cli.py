# SPDX-License-Identifier: Apache-2.0
"""``vla-evidence plan | interval | replay | simulate``: how much evidence is enough, and what a log proves.

Exit codes: 0 done, 1 refused or different (``CODE: what: reason`` on stderr, with ``--json`` an object on stdout), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_evidence.analysis import Bar, no_bar, tqdm_bar
from vla_evidence.canary.config import DEFAULT_STAGES, HALF_STAGES, ROBOT_STAGES, CanaryConfig
from vla_evidence.errors import EvidenceError, check_counts, check_probability
from vla_evidence.log.replay import Step, replay_file
from vla_evidence.planning import plan
from vla_evidence.planning.feasible import feasible
from vla_evidence.sequential import intervals
from vla_evidence.simulate.report import finite
from vla_evidence.tables import table

DONE, REFUSED = 0, 1
_STAGES = {"all": DEFAULT_STAGES, "stage": HALF_STAGES, "one": ROBOT_STAGES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        text, result = options.run(options)
    except EvidenceError as e:
        if options.json:
            print(json.dumps({"ok": False, "code": e.code, "field": e.field, "reason": e.reason}))
        else:
            print(f"{e.code}: {e}", file=sys.stderr)
        return REFUSED
    try:
        print(json.dumps({"ok": True, **finite(result)}, indent=1) if options.json else text, flush=True)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


Result = tuple[str, dict[str, Any]]
"""For people, and for machines."""


def _plan(options: argparse.Namespace) -> Result:
    fleet = plan.Fleet(options.robots, options.per_day, options.unit, options.icc)
    asked = (fleet, options.alpha, options.power, options.within_days, options.runs, options.seed, _bar(options))
    question = plan.Question(*asked)
    if options.question == "ab":
        found = plan.plan_ab(options.rate_a, options.rate_b, question)
    elif options.question == "noninferiority":
        found = plan.plan_noninferiority(options.rate, options.margin, question, options.share)
    else:
        found = plan.plan_detect(options.incumbent, options.canary, question, options.share)
    return str(found), asdict(found)


def _plan_rollout(options: argparse.Namespace) -> Result:
    history = None if options.history is None else tuple(options.history)
    advance = "same_shift" if options.same_shift else "ask"
    config = CanaryConfig(stages=_STAGES[options.holds], history=history, advance=advance)
    config.check()
    found = feasible(
        config, options.robots, options.per_hour, drop=options.drop, icc=options.icc, runs=options.runs, seed=options.seed,
        bar=_bar(options),
    )  # fmt: skip
    return str(found), asdict(found)


def _interval(options: argparse.Namespace) -> Result:
    counts, confidence = (options.successes, options.episodes), options.confidence
    check_counts("successes", *counts)
    check_probability("confidence", confidence)
    low, high = (float(end) for end in intervals.confidence_sequence(*counts, confidence))
    found = {
        "wilson": intervals.wilson_interval(*counts, confidence),
        "clopper_pearson": intervals.clopper_pearson_interval(*counts, confidence),
        "confidence_sequence": (low, high),
    }
    holds = ("one look, approximately", "one look, at least", "every look, at least")
    names = ("Wilson", "Clopper-Pearson", "confidence sequence")
    rows = [[name, when, *_percent(ends)] for name, when, ends in zip(names, holds, found.values(), strict=True)]
    rate = f": {options.successes / options.episodes:.1%}" if options.episodes else ""
    title = f"{options.successes} of {options.episodes} episodes succeeded{rate}. The rate lies, at {confidence:g} confidence:"
    return f"{title}\n\n{table('', ['interval', 'holds at', 'from', 'to'], rows)}", found


def _replay(options: argparse.Namespace) -> Result:
    last: tuple[str, str] | None = None

    def show(step: Step) -> None:
        nonlocal last
        verdict = step.verdict
        found = verdict["decision"], verdict["code"]
        if not options.json and (options.all or found != last):
            code = f" {verdict['code']}" if verdict["code"] else ""
            print(
                f"line {step.line}, after {step.outcomes:,} outcomes: {verdict['decision']}{code}: {verdict['message']}"
            )
        last = found

    replay = replay_file(options.file, show=show, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    return str(replay), asdict(replay)


def _simulate_ab(options: argparse.Namespace) -> Result:
    from vla_evidence.simulate import ab

    settings = ab.Settings(
        options.robots, options.rate_a, options.rate_b, options.confidence, options.power, options.per_day, options.icc,
        options.runs, options.seed,
    )  # fmt: skip
    report = ab.run(settings, _bar(options))
    return _written(report.write(options.out), report.text, report.sentence, report.figures)


def _simulate_canary(options: argparse.Namespace) -> Result:
    from vla_evidence.simulate import canary

    settings = canary.Settings(
        options.incumbent, options.canary, options.robots, options.per_hour, options.alpha, options.rollback_s, options.icc,
        options.runs, options.seed,
    )  # fmt: skip
    report = canary.run(settings, _bar(options))
    return _written(report.write(options.out), report.text, report.sentence, report.figures)


def _written(files: list[Path], text: str, sentence: str, figures: dict[str, Any]) -> Result:
    names = [str(path) for path in files]
    return f"{text}\n\nwritten: {', '.join(names)}", {"sentence": sentence, **figures, "files": names}


def _bar(options: argparse.Namespace) -> Bar:
    return no_bar if options.json or options.quiet else tqdm_bar


def _percent(ends: tuple[float, float]) -> list[str]:
    return [f"{end:.2%}" for end in ends]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-evidence", description="Better, worse or unproven? Plan, look, recompute, simulate."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_plan(commands.add_parser("plan", help="how many episodes, days and robots a decision needs"))
    _add_simulate(commands.add_parser("simulate", help="an A/B test or a bad update in a simulated fleet, with plots"))

    interval = commands.add_parser("interval", help="where a success rate lies, at one look and at every look")
    interval.add_argument("successes", type=int)
    interval.add_argument("episodes", type=int)
    interval.add_argument("--confidence", type=float, default=0.95, metavar="P", help="default: 0.95")
    interval.set_defaults(run=_interval)

    replay = commands.add_parser("replay", help="compute every verdict and draw of a log again")
    replay.add_argument("file", metavar="FILE", help="the log (JSON lines)")
    replay.add_argument("--all", action="store_true", help="print every verdict, not only changes")
    replay.set_defaults(run=_replay)
    for command in (interval, replay):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    questions = parser.add_subparsers(dest="question", required=True)
    ab = questions.add_parser("ab", help="does B differ from A? (two-sided)")
    ab.add_argument("--rate-a", type=float, required=True, metavar="P", help="success rate of A")
    ab.add_argument("--rate-b", type=float, required=True, metavar="P", help="success rate of B, to be told from it")
    noninferiority = questions.add_parser("noninferiority", help="is the new version at most so much worse?")
    noninferiority.add_argument("--rate", type=float, required=True, metavar="P", help="success rate of both")
    noninferiority.add_argument("--margin", type=float, required=True, metavar="D", help="drop to be excluded")
    detect = questions.add_parser("detect", help="how soon is a worse canary found?")
    detect.add_argument("--incumbent", type=float, required=True, metavar="P", help="success rate before")
    detect.add_argument("--canary", type=float, required=True, metavar="P", help="success rate after")
    for command, share in ((noninferiority, 0.5), (detect, 0.05)):
        command.add_argument(
            "--share", type=float, default=share, metavar="P", help=f"of episodes (or robots); default: {share}"
        )
    for command in (ab, noninferiority, detect):
        command.add_argument(
            "--alpha", type=float, default=0.05, metavar="P", help="P(claim that is wrong); default: 0.05"
        )
        command.add_argument(
            "--power", type=float, default=0.8, metavar="P", help="P(finding what is there); default: 0.8"
        )
        command.add_argument("--robots", type=int, default=50, metavar="N", help="of the fleet, both arms; default: 50")
        command.add_argument(
            "--per-day", type=float, default=40.0, metavar="N", help="episodes of a robot a day; default: 40"
        )
        command.add_argument(
            "--unit", choices=("episode", "robot"), default="episode", help="what is assigned; default: episode"
        )
        command.add_argument(
            "--icc", type=float, default=0.0, metavar="R", help="intraclass correlation within a robot; default: 0"
        )
        command.add_argument("--within-days", type=float, metavar="D", help="also say how many robots end by then")
        command.add_argument(
            "--runs",
            type=int,
            default=500,
            metavar="N",
            help="simulated (fewer of a small drop); 0: fixed designs only; A/B at least 4,000; default: 500",
        )
        _add_common(command)
        command.set_defaults(run=_plan)
    rollout = questions.add_parser("rollout", help="will a rollout decide anything in this fleet?")
    rollout.add_argument("--robots", type=int, default=50, metavar="N", help="default: 50")
    rollout.add_argument(
        "--per-hour", type=float, default=6.0, metavar="N", help="episodes of a robot an hour; default: 6"
    )
    rollout.add_argument(
        "--holds",
        choices=tuple(_STAGES),
        default="all",
        help="who holds both versions: all robots, a stage's robots, or one version on each robot; default: all",
    )
    rollout.add_argument(
        "--history",
        type=int,
        nargs=2,
        metavar=("K", "N"),
        help="K successes in N episodes of the incumbent, from the registry",
    )
    rollout.add_argument(
        "--same-shift", action="store_true", help="one version on each robot: advance without a person"
    )
    rollout.add_argument(
        "--drop", type=float, default=0.12, metavar="D", help="that makes an update bad; default: 0.12"
    )
    rollout.add_argument("--icc", type=float, default=0.05, metavar="R", help="intraclass correlation; default: 0.05")
    rollout.add_argument("--runs", type=int, default=200, metavar="N", help="simulated, good and bad; default: 200")
    _add_common(rollout)
    rollout.set_defaults(run=_plan_rollout)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    exercises = parser.add_subparsers(dest="exercise", required=True)
    ab = exercises.add_parser("ab", help="episodes per robot until a fleet knows that B is better")
    ab.add_argument("--rate-a", type=float, default=0.85, metavar="P", help="success rate of A; default: 0.85")
    ab.add_argument("--rate-b", type=float, default=0.88, metavar="P", help="success rate of B; default: 0.88")
    ab.add_argument("--confidence", type=float, default=0.95, metavar="P", help="two-sided; default: 0.95")
    ab.add_argument("--power", type=float, default=0.8, metavar="P", help="default: 0.8")
    ab.add_argument("--per-day", type=float, default=40.0, metavar="N", help="episodes of a robot a day; default: 40")
    ab.set_defaults(run=_simulate_ab)
    canary = exercises.add_parser("canary", help="how soon a bad update is found and undone")
    canary.add_argument("--incumbent", type=float, default=0.87, metavar="P", help="success rate before; default: 0.87")
    canary.add_argument("--canary", type=float, default=0.75, metavar="P", help="success rate after; default: 0.75")
    canary.add_argument(
        "--per-hour", type=float, default=6.0, metavar="N", help="episodes of a robot an hour; default: 6"
    )
    canary.add_argument(
        "--alpha", type=float, default=0.05, metavar="P", help="P(a good one is rolled back); default: 0.05"
    )
    canary.add_argument(
        "--rollback-s", type=float, default=60.0, metavar="S", help="from verdict to old version; default: 60"
    )
    canary.set_defaults(run=_simulate_canary)
    for command, runs in ((ab, 2000), (canary, 20_000)):
        command.add_argument("--robots", type=int, default=50, metavar="N", help="default: 50")
        command.add_argument(
            "--icc", type=float, default=0.05, metavar="R", help="intraclass correlation; default: 0.05"
        )
        command.add_argument("--runs", type=int, default=runs, metavar="N", help=f"simulated; default: {runs}")
        command.add_argument(
            "--out", type=Path, default=Path("build/evidence"), metavar="DIR", help="default: build/evidence"
        )
        _add_common(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the simulation; default: 0")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.add_argument("--json", action="store_true", help="print one JSON object")


if __name__ == "__main__":
    sys.exit(main())
