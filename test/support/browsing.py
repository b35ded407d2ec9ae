# SPDX-License-Identifier: Apache-2.0
"""Real Chromium, signed in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

expect.set_options(timeout=40_000)  # [ms]; a busy machine

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the distribution's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path is not None, "chromium is not installed (Debian and Ubuntu: apt install chromium)"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def signed_in(context: BrowserContext, url: str, key: str, path: str = "/") -> Page:
    """Sign in as a person does, and open a page."""
    page = context.new_page()
    page.goto(f"{url}{path}")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}{path}")
    return page


def looking(browser: Browser, *, dark: bool = False, size: Any = WIDE) -> BrowserContext:
    """Return a browser window of its own."""
    context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", reduced_motion="reduce")
    context.set_default_timeout(60_000)
    return context
