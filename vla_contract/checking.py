# SPDX-License-Identifier: Apache-2.0
"""What a contract still lacks, a line a problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from vla_policy_node.contract.model import load_contract
from vla_policy_node.contract.open_values import TODO, meaning
from vla_policy_node.errors import ContractError


@dataclass(frozen=True)
class Problem:
    """One thing that is missing or wrong."""

    line: int  # 0 = not known
    code: str
    text: str  # key path, and what is wrong there


def check(file: str) -> list[Problem]:
    """Return what keeps a contract from being used: what the parser says, and everything that is still TODO."""
    try:
        load_contract(file)
    except ContractError as e:
        wrong = [error for error in (e, *e.others) if error.code != "CONTRACT_TODO"]
        return [_problem(file, error) for error in wrong] + _open_values(file)
    return []


def _problem(file: str, error: ContractError) -> Problem:
    text = error.message.removeprefix(f"{file}: ")
    return Problem(_line_of(file, text.partition(":")[0]), error.code, text)


def _open_values(file: str) -> list[Problem]:
    return [
        Problem(line, "CONTRACT_TODO", f"{path}: {meaning(_key(path))}")
        for path, line, value in _scalars(file)
        if value == TODO
    ]


def _key(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]


def _line_of(file: str, path: str) -> int:
    return next((line for at, line, _ in _scalars(file) if at == path or at.startswith((f"{path}.", f"{path}["))), 0)


def _scalars(file: str) -> Iterator[tuple[str, int, str]]:
    """Yield path, line and text of every value in the file; what an alias repeats comes once, where it stands."""
    try:
        with open(file, encoding="utf-8") as stream:  # noqa: PTH123
            root = yaml.compose(stream, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError):
        return
    if root is not None:
        yield from _below(root, "", set())


def _below(node: yaml.Node, path: str, seen: set[int]) -> Iterator[tuple[str, int, str]]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _below(value, f"{path}.{key.value}".lstrip("."), seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _below(value, f"{path}[{i}]", seen)
    else:
        yield path, node.start_mark.line + 1, str(node.value)
