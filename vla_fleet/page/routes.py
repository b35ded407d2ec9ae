# SPDX-License-Identifier: Apache-2.0
"""All of the page, put into the application."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from vla_fleet.page import events, experiments, fleet, learning, models, robots, rollouts, sign_in
from vla_fleet.page.render import STATIC

PARTS = (sign_in, fleet, robots, rollouts, experiments, models, learning, events)


def add_page(app: FastAPI) -> None:
    """Add the page's routes and its files."""
    for part in PARTS:
        app.include_router(part.router)
    app.mount("/page", StaticFiles(directory=STATIC))
