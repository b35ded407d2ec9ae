# SPDX-License-Identifier: Apache-2.0
"""The page in real Chromium: every page and button, live, by keyboard, on a phone, with ten thousand robots, clean by axe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from support.browsing import PHONE, chromium, looking, signed_in
from support.page_fleet import crowd, experiment, rollout
from support.rollouts import HOUR_S, MODEL, NEW, OLD, RolloutFleet

TOP = Path(__file__).resolve().parents[2]
LIVE_MS = 60_000
"""So long something may take to appear on an open page, which looks every two seconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutFleet]:
    """Robots with a rollout and with an experiment, both under way."""
    with RolloutFleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.add("arm_1", "arm_2", group="arms")
        fleet.episodes(20)
        fleet.rollout = rollout(fleet, "arms", 3)  # type: ignore[attr-defined]
        fleet.add("gripper_1", "gripper_2", group="grippers")
        fleet.experiment = experiment(fleet, "grippers", 2)  # type: ignore[attr-defined]
        fleet.client.set_alias("pick_place", "champion", OLD, "first of all")
        fleet.heard()
        yield fleet


@pytest.fixture(scope="module")
def keys(fleet: RolloutFleet) -> dict[str, str]:
    return {role: fleet.client.make_key(f"look-{role}", role) for role in ("viewer", "operator")}


def paths(fleet: RolloutFleet) -> list[str]:
    rollout, experiment = f"/rollouts/{fleet.rollout}", f"/experiments/{fleet.experiment}"
    return [
        "/", "/?q=nobody", "/robots/arm_1", "/robots/arm_1?at=2027-01-15T08:00", "/rollouts", rollout, f"{rollout}/approve",
        f"{rollout}/abort", "/experiments", experiment, f"{experiment}/stop", "/models", "/models/pick_place", "/events",
        "/robots/nobody",
    ]  # fmt: skip


def watched(page: Page) -> list[str]:
    """Return a list that receives what the page complains of: errors of scripts, and what the policy forbids."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    return found


# -- every page ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [None, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_on_any_page(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str], dark: bool, size: Any
) -> None:
    axe, found = Axe(), []
    with looking(browser, dark=dark, **({"size": size} if size else {})) as context:
        page = context.new_page()
        page.goto(f"{fleet.url}/sign-in")
        found += [f"/sign-in: {v['id']}" for v in axe.run(page).response["violations"]]
        page = signed_in(context, fleet.url, keys["operator"])
        complaints = watched(page)
        for path in paths(fleet):
            page.goto(f"{fleet.url}{path}")
            for violation in axe.run(page).response["violations"]:
                nodes = [node["html"][:120] for node in violation["nodes"]]
                found.append(f"{path}: {violation['id']}: {nodes}")
            if size:
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide <= 0, f"{path} is {wide} px wider than a phone"
    assert not found, "\n".join(found)
    assert not [text for text in complaints if "404" not in text], complaints  # one path is not there, on purpose


def test_every_link_of_the_navigation_leads_to_its_page(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["viewer"])
        for name in ("Rollouts", "Experiments", "Models", "Events", "Fleet"):
            page.get_by_role("navigation", name="Main").get_by_role("link", name=name).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(name)
            expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
        page.get_by_role("link", name="arm_2").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("arm_2")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        page.go_back()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_wrong_key_is_said_and_another_try_leads_on(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with looking(browser) as context:
        page = context.new_page()
        page.goto(f"{fleet.url}/models")
        page.get_by_label("API key").fill("vf_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("This key is unknown")
        page.get_by_label("API key").fill(keys["viewer"])
        page.keyboard.press("Enter")
        page.wait_for_url(f"{fleet.url}/models")
        kept = page.evaluate("[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert kept == ["", "{}", "{}"]


def test_by_keyboard_one_skips_to_the_content_and_finds_a_robot(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["viewer"])
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        page.get_by_label("Search", exact=True).focus()
        page.keyboard.type("arm_2")
        page.keyboard.press("Enter")
        expect(page.locator("#robot-rows tbody tr")).to_have_count(1)
        expect(page.get_by_label("Search", exact=True)).to_have_value("arm_2")
        page.get_by_role("link", name="Show all").click()
        expect(page.locator("#robot-rows tbody tr")).to_have_count(4)


def test_filters_and_columns_choose_and_sort(fleet: RolloutFleet, browser: Browser, keys: dict[str, str]) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["viewer"])
        page.get_by_label("Version", exact=True).select_option(OLD)
        page.get_by_label("Online", exact=True).select_option("online")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#robot-rows tbody tr")).to_have_count(4)
        page.locator("#sort-seen").click()
        expect(page.locator("th[aria-sort]")).to_have_text("Seen")
        page.get_by_role("link", name="7 d").click()
        expect(page.get_by_role("link", name="7 d")).to_have_attribute("aria-current", "true")
        page.goto(f"{fleet.url}/events")
        page.get_by_label("Robot", exact=True).fill("gripper_1")
        page.get_by_label("Leads to").select_option("COMMITTED")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#events tbody tr")).to_have_count(1)
        page.get_by_label("Errors").select_option("only with an error")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_text("Nothing like that has happened yet.")).to_be_visible()


def test_a_robots_page_says_what_ran_at_a_moment(fleet: RolloutFleet, browser: Browser, keys: dict[str, str]) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["viewer"], "/robots/arm_1")
        page.get_by_label("At (UTC)").fill("2027-01-15T08:30")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#then")).to_contain_text(f"{OLD} ran.")


# -- live ---------------------------------------------------------------------------------------------------------------------


def test_a_robot_that_goes_offline_is_seen_to_go_and_to_come_back(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with looking(browser) as context:
        fleet.heard()
        robot = signed_in(context, fleet.url, keys["viewer"], "/robots/gripper_2")
        everybody = context.new_page()
        everybody.goto(fleet.url)
        reloads = everybody.evaluate("window.marked = true")
        expect(robot.locator("#summary")).to_contain_text("online")
        expect(everybody.locator("#summary")).to_contain_text("4 of 4 robots are online")
        folder = fleet.robots["gripper_2"]
        folder.disconnect()
        fleet.pass_time(60.0)
        expect(robot.locator("#summary")).to_contain_text("offline", timeout=LIVE_MS)
        expect(everybody.locator("#summary")).to_contain_text("3 of 4 robots are online", timeout=LIVE_MS)
        expect(everybody.get_by_role("row", name="gripper_2")).to_contain_text("1 min ago")
        fleet.connect("gripper_2")
        fleet.heard()
        expect(robot.locator("#summary")).to_contain_text("online", timeout=LIVE_MS)
        expect(robot.locator("#summary")).not_to_contain_text("offline")
        assert reloads and everybody.evaluate("window.marked")  # without a reload


def test_what_somebody_is_about_stays_while_the_page_changes(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    """Focus, an opened detail and what is being typed."""
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["viewer"], f"/rollouts/{fleet.rollout}")
        page.get_by_text("In its own words").click()
        before = page.locator("#verdict-words p").inner_text()
        page.locator("#robots").get_by_role("link", name="arm_1").focus()
        fleet.pass_time(600.0)
        fleet.episodes(3)
        fleet.pass_time(120.0)  # the judge speaks once a minute
        fleet.step()
        expect(page.locator("#verdict-words p")).not_to_have_text(before, timeout=LIVE_MS)
        expect(page.locator("#verdict-words p")).to_be_visible()
        expect(page.locator("#robots").get_by_role("link", name="arm_1")).to_be_focused()


def test_a_server_that_does_not_answer_is_said_and_the_page_recovers(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["operator"], f"/rollouts/{fleet.rollout}")
        context.set_offline(True)
        expect(page.locator("#connection")).to_contain_text("The server does not answer", timeout=LIVE_MS)
        page.get_by_role("link", name="Pause").click()
        expect(page.locator("dialog")).not_to_be_visible()
        assert not fleet.client.rollout(fleet.rollout)["paused"]
        context.set_offline(False)
        expect(page.locator("#connection")).to_contain_text("The server answers again", timeout=LIVE_MS)
        expect(page.locator("#connection")).to_be_hidden(timeout=LIVE_MS)


def test_an_open_page_whose_session_has_ended_asks_for_a_key(fleet: RolloutFleet, browser: Browser) -> None:
    key = fleet.client.make_key("look-shortly", "viewer")
    with looking(browser) as context:
        page = signed_in(context, fleet.url, key)
        fleet.client.revoke_key("look-shortly")
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in", timeout=LIVE_MS)


# -- decisions ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_done_before_it_is_confirmed(fleet: RolloutFleet, browser: Browser, keys: dict[str, str]) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["operator"], f"/rollouts/{fleet.rollout}")
        for close in ("Cancel", "Escape"):
            page.get_by_role("link", name="Abort").click()
            dialog = page.get_by_role("dialog", name=f"Abort {fleet.rollout}?")
            expect(dialog).to_be_visible()
            assert Axe().run(page).response["violations"] == []
            dialog.get_by_role("button", name="Abort").click()  # without the reason that it asks for
            expect(dialog).to_be_visible()
            if close == "Cancel":
                dialog.get_by_role("link", name="Cancel").click()
            else:
                page.keyboard.press("Escape")
            expect(dialog).not_to_be_visible()
        assert fleet.client.rollout(fleet.rollout)["state"] == "JUDGING"


def test_a_rollout_is_paused_resumed_approved_and_aborted_by_clicks(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["operator"], f"/rollouts/{fleet.rollout}")
        complaints = watched(page)

        def decide(name: str, why: str, *choices: str) -> None:
            page.get_by_role("link", name=name).click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Why").fill(why)
            for choice in choices:
                dialog.get_by_label(choice).check()
            dialog.get_by_role("button", name=name).click()
            expect(page.locator("#log li").first).to_contain_text(why)
            expect(page.locator("#log li").first).to_contain_text("look-operator")

        decide("Pause", "lunch")
        assert fleet.client.rollout(fleet.rollout)["paused"]
        expect(page.get_by_role("link", name="Approve")).to_have_count(0)
        decide("Resume", "lunch is over")
        assert not fleet.client.rollout(fleet.rollout)["paused"]
        decide("Approve", "seen on the line")
        found = fleet.client.rollout(fleet.rollout)
        assert (found["stage"], found["state"]) == (1, "INSTALLING")
        expect(page.locator("[aria-current=step]")).to_contain_text("early")
        decide("Abort", "enough seen", "Robots keep")
        expect(page.locator("#summary")).to_contain_text("aborted")
        expect(page.locator("#actions a")).to_have_count(0)
        assert fleet.client.rollout(fleet.rollout)["state"] == "ABORTED"
        assert not complaints


def test_an_experiment_is_stopped_by_a_click(fleet: RolloutFleet, browser: Browser, keys: dict[str, str]) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["operator"], f"/experiments/{fleet.experiment}")
        page.get_by_role("link", name="Stop").click()
        page.get_by_role("dialog").get_by_label("Why").fill("the light has changed")
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        expect(page.locator("#summary")).to_contain_text("stopped")
        expect(page.get_by_text("look-operator: the light has changed")).to_be_visible()
        assert fleet.client.experiment(fleet.experiment)["state"] == "STOPPED"


def test_a_robot_goes_back_by_a_click(fleet: RolloutFleet, browser: Browser, keys: dict[str, str]) -> None:
    with looking(browser) as context:
        page = signed_in(context, fleet.url, keys["operator"], "/robots/arm_2")
        page.get_by_role("link", name="Roll back").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        expect(page.locator("#orders tbody tr").first).to_contain_text("rollback")
        expect(page.locator("#orders tbody tr").first).to_contain_text("look-operator")


def test_without_scripts_one_sees_and_decides_as_well(
    fleet: RolloutFleet, browser: Browser, keys: dict[str, str]
) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = signed_in(context, fleet.url, keys["operator"], "/robots/arm_1")
        page.get_by_role("link", name="Roll back").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Roll arm_1 back?")
        page.get_by_label("Why").fill("no scripts here")
        page.get_by_role("button", name="Roll back").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("arm_1")
        assert fleet.do(fleet.rooms.commands.latest("arm_1", 1))[0].order["reason"] == "no scripts here"


# -- how many and how few -----------------------------------------------------------------------------------------------------


def test_an_empty_fleet_says_what_to_do_and_shows_the_first_robot_when_it_comes(
    browser: Browser, tmp_path: Path
) -> None:
    with RolloutFleet(tmp_path) as fleet, looking(browser) as context:
        page = signed_in(context, fleet.url, fleet.server.key)
        expect(page.get_by_text("No robot has enrolled yet.")).to_be_visible()
        for path, text in (
            ("/rollouts", "No rollout yet."),
            ("/experiments", "No experiment yet."),
            ("/events", "yet."),
        ):
            page.goto(f"{fleet.url}{path}")
            expect(page.locator("main")).to_contain_text(text)
        page.goto(fleet.url)
        fleet.add("first")
        expect(page.get_by_role("link", name="first")).to_be_visible(timeout=LIVE_MS)


def test_ten_thousand_robots_are_counted_paged_and_found(browser: Browser, tmp_path: Path) -> None:
    with RolloutFleet(tmp_path) as fleet, looking(browser) as context:
        crowd(fleet, 10_000)
        page = signed_in(context, fleet.url, fleet.server.key)
        expect(page.locator("#summary")).to_contain_text("of 10,000 robots are online")
        rows = page.locator("#versions-title ~ table tbody tr")
        counts = [int(re.sub(r"\D", "", text)) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
        assert sum(counts) == 10_000 and len(counts) == 2
        expect(page.locator("#robot-rows tbody tr")).to_have_count(50)
        page.get_by_role("link", name="Next").click()
        expect(page.locator("#robot-rows tbody th").first).to_contain_text("unit_00050")
        page.goto(f"{fleet.url}/?page=200")
        expect(page.locator("#robot-rows tbody th").last).to_contain_text("unit_09999")
        page.get_by_label("Search", exact=True).fill("unit_0999")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#robot-rows tbody tr")).to_have_count(10)
        page.goto(f"{fleet.url}/?version={NEW}")
        expect(page.locator("#robot-rows .pager")).to_contain_text(f"of {counts[1]:,}")


def test_an_update_won_by_b_is_promoted_by_a_click(browser: Browser, tmp_path: Path) -> None:
    with RolloutFleet(tmp_path) as fleet, looking(browser) as context:
        fleet.add("arm_1", "arm_2", "arm_3", group="pickers", old=0.1, new=1.0)
        design = {"a": f"pick_place@{OLD}", "b": MODEL, "unit": "episode", "group": "pickers", "difference": 0.5}
        name = fleet.client.create_experiment({**design, "rate": 0.3, "per_day": 48.0})
        for _ in range(30):
            fleet.pass_time(0.5 * HOUR_S)
            fleet.do(fleet.rooms.experiments.step())
            fleet.episodes(8)
            fleet.do(fleet.rooms.experiments.step())
            if fleet.client.experiment(name)["state"] != "RUNNING":
                break
        page = signed_in(context, fleet.url, fleet.server.key, f"/experiments/{name}")
        expect(page.locator("#summary")).to_contain_text("win b")
        for _ in range(20):  # until its robots are back, they take part in nothing else
            fleet.heard()
            fleet.do(fleet.rooms.experiments.step())
        page.get_by_role("link", name="Promote B").click()
        page.get_by_role("dialog").get_by_role("button", name="Promote B").click()
        page.wait_for_url(re.compile(r"/rollouts/r-"))
        expect(page.get_by_role("heading", level=1)).to_have_text(f"pick_place {NEW}")
        assert [r["target"] for r in fleet.client.rollouts()] == ["group:pickers"]
