# SPDX-License-Identifier: Apache-2.0
"""Long lists, fifty rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import Query

_T = TypeVar("_T")
PER_PAGE = 50
Number = Annotated[int, Query(alias="page", ge=1, le=1_000_000)]
"""Of a page, from 1 on."""


def offset(number: int) -> int:
    """Return how many rows come before a page."""
    return (number - 1) * PER_PAGE


@dataclass(frozen=True)
class Rows(Generic[_T]):
    """The rows of one page."""

    shown: Sequence[_T]
    total: int
    """On all pages."""
    number: int

    @property
    def first(self) -> int:
        """Number of the first row shown."""
        return offset(self.number) + 1

    @property
    def pages(self) -> int:
        """How many there are."""
        return -(-self.total // PER_PAGE)


def cut(rows: Sequence[_T], number: int) -> Rows[_T]:
    """Return one page of a list."""
    return Rows(rows[offset(number) : offset(number) + PER_PAGE], len(rows), number)
