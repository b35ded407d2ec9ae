# SPDX-License-Identifier: Apache-2.0
"""The tree in errors.py is the list of codes: each raised in the package is there, under its own class, and no other."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import vla_checkpoint
from vla_checkpoint import CheckpointError, errors


def documented() -> dict[str, set[str]]:
    tree: dict[str, set[str]] = {}
    name = ""
    for line in (inspect.getdoc(errors) or "").splitlines():
        found = re.match(r"\s*[├└]── (\w+)\s+(.*)", line)
        if found:
            name, rest = found.groups()
        elif line.strip().startswith("│"):
            rest = line
        else:
            continue
        tree.setdefault(name, set()).update(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b|\bCANCELLED\b", rest))
    return tree


def raised() -> dict[str, set[str]]:
    """Class → codes, from every call ``SomeError("CODE", …)`` and every helper that is given one, in the package's sources."""
    result: dict[str, set[str]] = {}
    for source in Path(vla_checkpoint.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                kind = getattr(errors, node.func.id, None)
                if isinstance(kind, type) and issubclass(kind, CheckpointError):
                    result.setdefault(node.func.id, set()).add(node.args[0].value)
    return result


def test_every_code_raised_is_documented_under_its_class() -> None:
    tree = documented()
    assert len(tree) > 10
    for kind, codes in raised().items():
        assert codes <= tree[kind], kind


def test_every_documented_code_occurs_in_the_sources() -> None:
    sources = [
        path.read_text() for path in Path(vla_checkpoint.__file__).parent.glob("*.py") if path.name != "errors.py"
    ]
    for kind, codes in documented().items():
        assert issubclass(getattr(errors, kind), CheckpointError)
        for code in codes:
            assert any(f'"{code}"' in text for text in sources), code


def test_the_public_surface_is_importable_and_complete() -> None:
    for name in vla_checkpoint.__all__:
        assert hasattr(vla_checkpoint, name), name
    kinds = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, CheckpointError)
    }
    assert kinds <= set(vla_checkpoint.__all__)


def test_hostile_names_cannot_break_a_log_line() -> None:
    error = errors.BundleError("BUNDLE_FILE_EXTRA", "a\x1b[2J\n\udcff", "x" * 5000 + "\n")
    assert str(error).isprintable()
    assert str(error).encode("utf-8")
    assert len(str(error)) < 2000


def test_an_error_reads_as_one_line() -> None:
    error = errors.StatsError("STATS_STD", Path("b") / "stats.json", "action.std must be above 0")
    assert str(error) == "STATS_STD: b/stats.json: action.std must be above 0"
    assert (error.code, error.path, error.reason) == ("STATS_STD", "b/stats.json", "action.std must be above 0")
