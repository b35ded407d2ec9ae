# SPDX-License-Identifier: Apache-2.0
"""``vla-evidence plan | interval | replay | simulate``: how much evidence is enough, and what a log proves.

Exit codes: 0 done, 1 refused or different (``CODE: what: reason`` on stderr, with ``--json`` an object on stdout), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_evidence.analysis import Bar, no_bar, tqdm_bar
from vla_evidence.errors import EvidenceError
from vla_evidence.log.replay import Step, replay_file
from vla_evidence.planning import plan as planning
from vla_evidence.sequential import bounds, intervals
from vla_evidence.simulate.report import finite
from vla_evidence.tables import table

DONE, REFUSED = 0, 1


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
    print(json.dumps({"ok": True, **finite(result)}, indent=1) if options.json else text)
    return DONE


Result = tuple[str, dict[str, Any]]
"""For people, and for machines."""


def _plan(options: argparse.Namespace) -> Result:
    fleet = planning.Fleet(options.robots, options.per_day, options.unit, options.icc)
    simulation = planning.Simulation(options.runs, options.seed, _bar(options))
    common = {"alpha": options.alpha, "power": options.power, "days": options.within_days, "simulation": simulation}
    if options.question == "ab":
        plan = planning.plan_ab(options.rate_a, options.rate_b, fleet, **common)
    elif options.question == "noninferiority":
        plan = planning.plan_noninferiority(options.rate, options.margin, fleet, share=options.share, **common)
    else:
        plan = planning.plan_detect(options.incumbent, options.canary, fleet, share=options.share, **common)
    return planning.describe(plan), asdict(plan)


def _interval(options: argparse.Namespace) -> Result:
    counts, confidence = (options.successes, options.episodes), options.confidence
    wilson = intervals.wilson_interval(*counts, confidence)
    low, high = (float(end) for end in intervals.confidence_sequence(*counts, confidence))
    exact = 0.0, 1.0
    if options.episodes:
        side = 1.0 - (1.0 - confidence) / 2.0
        exact = bounds.proportion_lower_bound(*counts, side), bounds.proportion_upper_bound(*counts, side)
    rows = [
        ["Wilson", "one look, approximately", *_percent(wilson)],
        ["Clopper-Pearson", "one look, at least", *_percent(exact)],
        ["confidence sequence", "every look, at least", *_percent((low, high))],
    ]
    rate = f": {options.successes / options.episodes:.1%}" if options.episodes else ""
    title = f"{options.successes} of {options.episodes} episodes succeeded{rate}. The rate lies, at {confidence:g} confidence:"
    result = {"wilson": wilson, "clopper_pearson": exact, "confidence_sequence": (low, high)}
    return f"{title}\n\n{table('', ['interval', 'holds at', 'from', 'to'], rows)}", result


def _replay(options: argparse.Namespace) -> Result:
    def show(step: Step) -> None:
        if not options.json:
            decision, reason = step.verdict["decision"], step.verdict.get("reason") or step.verdict.get("message", "")
            print(f"line {step.line}, after {step.outcomes:,} outcomes: {decision}: {reason}")

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

    replay = commands.add_parser("replay", help="compute every verdict and assignment of a log again")
    replay.add_argument("file", metavar="FILE", help="the log (JSON lines)")
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
        command.add_argument("--within-days", type=float, metavar="D", help="also say how many robots are done by then")
        command.add_argument(
            "--runs",
            type=int,
            default=500,
            metavar="N",
            help="simulated (fewer of a small drop); 0: fixed designs only; A/B at least 4,000; default: 500",
        )
        _add_common(command)
        command.set_defaults(run=_plan)


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
    for command, runs in ((ab, 2000), (canary, 1000)):
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
