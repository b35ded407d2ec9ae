# SPDX-License-Identifier: Apache-2.0
"""docs/errors.md lists every code that the packages can give, and no other.

A code is any text in SCREAMING_SNAKE_CASE that the sources *give* (pass, return, assign; alone or as ``CODE: text``) rather than
compare with. Not only arguments of exceptions: codes also travel in replies, events and holds, and a way to give one that a
reader of exceptions would not know of must not hide it. What looks like a code and is none is named below.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vla_ota_manager import policy_gate, way_back
from vla_ota_manager.states import UpdateState
from vla_ota_manager.trial import judge as trial
from vla_ota_manager.trial import runner as trial_run
from vla_policy_node import errors
from vla_policy_node.control.client import AT
from vla_policy_node.holds import HOLD_REASONS, table
from vla_policy_node.ipc.layouts import CHUNK_ERRORS, MODES

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "errors.md"

OTHER_PAGES = ("vla_doctor/", "vla_sim/demo/", "vla_sim/fleet/demo/", "vla_sim/fleet/play/", "vla_sim/fleet/flywheel/")
"""The doctor's findings are in docs/doctor.md; the demos give no codes, they expect them."""

VOCABULARIES = {*AT, *MODES, *(state.name for state in UpdateState)}
"""Words that are fixed elsewhere. Some are codes as well (CANCELLED, FAILED, INACTIVE, MOTION_DISABLED): those are documented."""

NOT_CODES = {
    "environment": "AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH FASTDDS_DEFAULT_PROFILES_FILE"
    " FASTRTPS_DEFAULT_PROFILES_FILE HF_HOME HF_LEROBOT_HOME LD_LIBRARY_PATH PATH PKG_CONFIG_PATH PYTHONPATH"
    " RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED ROS_AUTOMATIC_DISCOVERY_RANGE ROS_LOCALHOST_ONLY"
    " SYSTEM_DEFAULT VLA_SIM_FLEET_CLOCK",
    "constants of modules": "MANIFEST_NAME MAP_POPULATE MIN_BYTES OFFERS_NAME SCHED_RESET_ON_FORK SC_CLK_TCK SC_PAGE_SIZE",
    "events between processes": "CHUNK_ERROR DISABLED ENABLED ENABLE_FAILED EXITED HOLD LOG LOST MOTION_ENABLED REFUSED RESUMED"
    " GIVEN_BACK RESUME_ACCEPTED RESUME_REFUSED SPAN SPARE_READY STARTED START_FAILED SWAPPED TAKEN_OVER VACATED",
    "states of a preparation": "BUILD DIGEST GOLDEN LOADING QUEUED READY WARM_UP",
    "causes and decisions": "ADVANCE ASK COMMIT CONTINUE EXPERIMENT NO_DIFFERENCE_SHOWN ROLLBACK UPDATE",
    "kinds of pictures": "JPEG PNG RGB RGBA",
    "words of PEFT": "LORA",
    "words of LeRobot": "ACTION IDENTITY MEAN_STD MIN_MAX QUANTILES STATE VISUAL",
    "words of command lines": "BASE BUNDLE DELTA DIR FILE HEX HZ JSON KEYS NAME NEW NS OLD OUT REGISTRY TARGET TOPIC UTC VERSION",
    "what stands in a contract's draft where a value is open": "TODO",
    "words of Pillow, and its package": "BGR BGRX JPEG PIL RGB RGBX",
    "why a wait of the policy port was given up": "TIMEOUT",
    "states of experiments and of their robots": "AB ENDED INCONCLUSIVE JOINING LEAVING LEFT NO_DIFFERENCE STOPPED WIN_A WIN_B",
    "orders to robots, their states, and what acts": "ACCEPTED ACTIVE ASSIGN DONE FOUND GET_STATUS MODEL_UPDATE PIN RUNNING"
    " WAITING",
    "states of adaptation, and how an adapter stands": "DROPPED OFFERED PAUSED TRAINING VALIDATING",
    "states of a rollout, and how a robot stands in it": "ABORTED ASKING BACK INSTALLING JUDGING ORDERED OUTSIDE SILENT",
    "methods of HTTP and words of SQL": "BEGIN COMMIT DELETE GET HEAD POST PUT ROLLBACK",
}
NOT_CODE_WORDS = {word for words in NOT_CODES.values() for word in words.split()}

_CODE = re.compile(r"[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)*")
_BEFORE_TEXT = re.compile(rf"({_CODE.pattern}): ")
_ROW = re.compile(r"\| `([A-Z0-9_]+)` \|(.*)\|")
_IN_TREE = re.compile(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b")


def given(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (code, line) for every code below ``node`` that is given rather than compared with, looked up or explained."""
    if isinstance(node, (ast.Compare, ast.Set)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found = _CODE.fullmatch(node.value) or _BEFORE_TEXT.match(node.value)
        if found:
            yield found[found.lastindex or 0], node.lineno
    children: Iterator[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Dict):
        children = iter(node.values)
    elif isinstance(node, ast.Subscript):
        children = iter([node.value])
    for child in children:
        yield from given(child)


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(TOP.glob("vla_*/**/*.py")):
        name = path.relative_to(TOP).as_posix()
        if not name.startswith(OTHER_PAGES):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def all_given() -> dict[str, str]:
    """Return code → the first place that gives it."""
    found: dict[str, str] = {}
    for name, tree in sources():
        for code, line in given(tree):
            found.setdefault(code, f"{name}:{line}")
    return found


def sections() -> dict[str, list[tuple[str, list[str]]]]:
    """Return section of the page → rows (code, the other cells)."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    title = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        elif line.startswith("| `"):
            row = _ROW.fullmatch(line)
            if row and title:
                found.setdefault(title, []).append((row[1], [cell.strip() for cell in row[2].split("|")]))
            else:
                assert not title, f"no row of a code: {line}"
    return found


def documented() -> set[str]:
    return {code for rows in sections().values() for code, _ in rows}


def test_every_code_that_can_be_given_is_documented() -> None:
    known = documented() | NOT_CODE_WORDS | VOCABULARIES
    missing = [f"{code} ({place})" for code, place in sorted(all_given().items()) if code not in known]
    assert not missing, "add to docs/errors.md (or to NOT_CODES, if it is none): " + ", ".join(missing)


def test_every_code_that_is_documented_can_be_given() -> None:
    gone = documented() - all_given().keys()
    assert not gone, f"docs/errors.md explains what nobody gives any more: {sorted(gone)}"


def test_every_code_that_decides_whether_to_ask_again_or_whom_to_blame_is_one_that_somebody_gives() -> None:
    """Else a code that was renamed would be taken for the bundle's fault, or never be waited out."""
    sets = {
        "policy node: faults": errors._FAULT_OF.keys(),
        "policy node: unclear": errors.UNCLEAR,
        "policy gate: crashed": policy_gate._CRASHED,
        "trial: of the policy": trial_run._POLICY_ERRORS,
        "way back: unclear": way_back._UNCLEAR,
        "trial: holds that reject": trial.REJECTING_HOLDS,
    }
    known = all_given().keys() | set(HOLD_REASONS)
    for name, codes in sets.items():
        assert codes and not codes - known, f"{name}: nobody gives {sorted(codes - known)}"


def test_what_is_called_no_code_occurs_and_is_not_documented() -> None:
    stale = NOT_CODE_WORDS - all_given().keys()
    assert not stale, f"nobody uses these words any more: {sorted(stale)}"
    assert not NOT_CODE_WORDS & documented()


def test_every_row_says_what_it_means_what_the_robot_does_and_what_to_do() -> None:
    for title, rows in sections().items():
        for code, cells in rows:
            assert len(cells) == 3 and all(cells), f"{title}: {code} has {len(cells)} cells, or an empty one"
        twice = [code for code, count in Counter(code for code, _ in rows).items() if count > 1]
        assert not twice, f"{title}: {twice}"


def test_every_hold_reason_and_every_fault_of_a_chunk_is_documented_where_it_is_looked_for() -> None:
    found = sections()
    assert table() in PAGE.read_text(encoding="utf-8"), "python -m vla_policy_node.holds prints the rows"
    swaps = {code for code, _ in found["Swaps"]} | {code for code, _ in found["Why the robot holds"]}
    assert set(CHUNK_ERRORS[1:]) <= swaps


def test_codes_named_in_docstrings_are_documented() -> None:
    """The trees of errors, and the lists of codes that a class or function raises."""
    known = documented() | NOT_CODE_WORDS | VOCABULARIES | {"SCREAMING_SNAKE_CASE"}
    for name, tree in sources():
        if not name.endswith(("errors.py", "swapping.py", "episodes.py", "worker/api.py")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                unknown = set(_IN_TREE.findall(ast.get_docstring(node) or "")) - known
                assert not unknown, f"{name}: {sorted(unknown)}"
