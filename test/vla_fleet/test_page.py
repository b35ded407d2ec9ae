# SPDX-License-Identifier: Apache-2.0
"""The page without a browser: who may see and do what on it, what it says of itself, and that nothing a robot says runs in it."""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, update
from support.fleet_app import FleetApp
from support.page_fleet import crowd
from support.rollouts import MODEL, NEW, OLD, RolloutFleet

from vla_evidence.sequential.intervals import confidence_sequence
from vla_fleet import protocol
from vla_fleet.page.access import COOKIE, PageRoute
from vla_fleet.page.routes import PARTS
from vla_fleet.page.sessions import VALID_S
from vla_fleet.page.shared import Shared
from vla_fleet.storage.tables import EventRow, RobotRow

CROWD = 120
EVIL = "<img src=x onerror=alert(1)>'\"&"
PUBLIC = {"GET /sign-in", "POST /sign-in", "POST /sign-out"}
ORDERS = {
    "GET /robots/{name}/rollback", "POST /robots/{name}/rollback", "GET /rollouts/{rollout}/{action}",
    "POST /rollouts/{rollout}/{action}", "GET /experiments/{id}/stop", "POST /experiments/{id}/stop",
    "GET /experiments/{id}/promote", "POST /experiments/{id}/promote",
}  # fmt: skip
"""Only operators and admins get in here; whatever else there is shows something, to everybody who has signed in."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutFleet]:
    """Two robots with a rollout that is judged, and a crowd."""
    with RolloutFleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.add("arm_1", "arm_2", group="arms")
        fleet.episodes(5)
        fleet.client.set_alias("pick_place", "champion", OLD, EVIL)
        fleet.rollout = fleet.client.create_rollout(model=MODEL, target="group:arms", reason=EVIL)["id"]  # type: ignore[attr-defined]
        fleet.until(fleet.rollout, "JUDGING")  # type: ignore[attr-defined]
        crowd(fleet, CROWD)
        yield fleet


@contextmanager
def signed_in(app: Any, key: str) -> Iterator[httpx.Client]:
    """Return a client that has signed in, and sends what a browser sends along."""
    with httpx.Client(base_url=app.url, headers={"Origin": app.url}, timeout=40.0) as browser:
        assert browser.post("/sign-in", data={"key": key}).status_code == 303
        yield browser


@pytest.fixture(scope="module")
def keys(fleet: RolloutFleet) -> dict[str, str]:
    return {role: fleet.client.make_key(f"page-{role}", role) for role in ("viewer", "operator", "publisher", "admin")}


@pytest.fixture
def viewer(fleet: RolloutFleet, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with signed_in(fleet, keys["viewer"]) as browser:
        yield browser


@pytest.fixture
def operator(fleet: RolloutFleet, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with signed_in(fleet, keys["operator"]) as browser:
        yield browser


def routes() -> list[str]:
    """Return "METHOD /path" of every route of the page."""
    pages = [route for part in PARTS for route in part.router.routes]
    assert all(isinstance(route, PageRoute) for route in pages)
    return [f"{method} {route.path}" for route in pages for method in route.methods]


def words(text: str) -> str:
    """Return what a page shows, without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


# -- who ----------------------------------------------------------------------------------------------------------------------


def test_every_route_of_the_page_lets_in_whom_it_should_and_nobody_else(
    fleet: RolloutFleet, keys: dict[str, str]
) -> None:
    wrong = []
    found = routes()
    assert len(found) > 12 and set(found) >= ORDERS | PUBLIC
    for who in ("nobody", "viewer", "operator", "publisher", "admin"):
        with httpx.Client(base_url=fleet.url, headers={"Origin": fleet.url}, timeout=40.0) as browser:
            if who != "nobody":
                browser.post("/sign-in", data={"key": keys[who]})
            for route in found:
                if route in PUBLIC:
                    continue
                method, path = route.split(" ")
                answer = browser.request(method, re.sub(r"\{\w+\}", "nothing", path))
                asked = answer.headers.get("location", "").startswith("/sign-in")
                refused = answer.status_code == 403
                may = who in ("operator", "admin") or (who != "nobody" and route not in ORDERS)
                if (asked, refused) != (who == "nobody", who != "nobody" and not may):
                    wrong.append(f"{route}: {who} got {answer.status_code}")
    assert not wrong, "\n".join(wrong)


def test_a_viewer_sees_no_button_and_moves_nothing(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    text = viewer.get(f"/rollouts/{fleet.rollout}").text
    assert "judging" in text and "Pause" not in text and "Abort" not in text
    assert "Roll back" not in viewer.get("/robots/arm_1").text
    answer = viewer.post(f"/rollouts/{fleet.rollout}/pause")
    assert answer.status_code == 403 and "ROLE_REQUIRED" in answer.text
    assert not fleet.client.rollout(fleet.rollout)["paused"]


def test_an_operators_decision_is_in_the_log_with_their_name(fleet: RolloutFleet, operator: httpx.Client) -> None:
    assert "Pause" in operator.get(f"/rollouts/{fleet.rollout}").text
    answer = operator.post(f"/rollouts/{fleet.rollout}/pause", data={"reason": "lunch"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/rollouts/{fleet.rollout}")
    found = fleet.client.rollout(fleet.rollout)
    last = found["history"][-1]
    assert found["paused"] and (last["who"], last["action"], last["why"]) == ("page-operator", "rollout.pause", "lunch")
    shown = words(operator.get(f"/rollouts/{fleet.rollout}").text)
    assert "Resume" in shown and "page-operator pause lunch" in shown  # at once, whatever was remembered
    assert operator.post(f"/rollouts/{fleet.rollout}/resume").status_code == 303


def test_what_must_be_explained_is_not_done_without_a_reason(fleet: RolloutFleet, operator: httpx.Client) -> None:
    for action in ("approve", "abort"):
        answer = operator.post(f"/rollouts/{fleet.rollout}/{action}", data={"reason": " "})
        assert answer.status_code == 422 and "INPUT_INVALID" in answer.text
    assert fleet.client.rollout(fleet.rollout)["state"] == "JUDGING"


def test_a_robot_is_rolled_back_by_its_operator(fleet: RolloutFleet, operator: httpx.Client) -> None:
    assert operator.post("/robots/unit_00007/rollback", data={"reason": "drops cups"}).status_code == 303
    order = fleet.do(fleet.rooms.commands.latest("unit_00007", 1))[0]
    assert order.order["type"] == "ROLLBACK" and order.order["reason"] == "drops cups"
    assert order.created_by == "page-operator"


# -- from where ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another port is the same site: the cookie would come along
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},
    ],
)
def test_a_form_of_another_site_changes_nothing(
    fleet: RolloutFleet, keys: dict[str, str], headers: dict[str, str]
) -> None:
    with signed_in(fleet, keys["operator"]) as browser:
        del browser.headers["Origin"]
        for path in (f"/rollouts/{fleet.rollout}/pause", "/sign-out", "/sign-in"):
            answer = browser.post(path, headers=headers, data={"reason": "evil", "key": keys["admin"]})
            assert answer.status_code == 403 and "ORIGIN_REFUSED" in answer.text
        assert browser.get("/").status_code == 200  # still signed in
    assert not fleet.client.rollout(fleet.rollout)["paused"]


def test_a_browser_that_says_that_a_form_is_our_own_is_believed(fleet: RolloutFleet, keys: dict[str, str]) -> None:
    with httpx.Client(base_url=fleet.url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=40.0) as browser:
        assert browser.post("/sign-in", data={"key": keys["viewer"]}).status_code == 303


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\r\nX: y"])
def test_signing_in_leads_nowhere_else(fleet: RolloutFleet, keys: dict[str, str], path: str) -> None:
    with httpx.Client(base_url=fleet.url, headers={"Origin": fleet.url}, timeout=40.0) as browser:
        answer = browser.post("/sign-in", data={"key": keys["viewer"], "next": path})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_whoever_is_sent_to_sign_in_gets_to_where_they_wanted(fleet: RolloutFleet, keys: dict[str, str]) -> None:
    with httpx.Client(
        base_url=fleet.url, headers={"Origin": fleet.url}, follow_redirects=True, timeout=40.0
    ) as browser:
        form = browser.get("/events?robot=arm_1&to=ACTIVE").text
        found = re.search(r'name="next" value="([^"]*)"', form)
        assert found
        answer = browser.post("/sign-in", data={"key": keys["viewer"], "next": html.unescape(found[1])})
        assert str(answer.url) == f"{fleet.url}/events?robot=arm_1&to=ACTIVE"


# -- sessions -----------------------------------------------------------------------------------------------------------------


def test_the_browser_gets_a_session_that_scripts_cannot_read_and_never_the_key(tmp_path: Path) -> None:
    with (
        FleetApp(tmp_path) as app,
        httpx.Client(base_url=app.url, headers={"Origin": app.url}, timeout=40.0) as browser,
    ):
        answer = browser.post("/sign-in", data={"key": app.key})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        said = [str(answer.headers), *(browser.get(path).text for path in ("/", "/models", "/events"))]
        assert not [text for text in said if app.key in text]
        assert browser.get("/v1/robots").status_code == 401  # a session opens the page, and not the API
        assert app.key.encode() not in (tmp_path / "fleet.db").read_bytes()


def test_over_https_the_cookie_stays_on_https(tmp_path: Path) -> None:
    with FleetApp(tmp_path) as app:
        object.__setattr__(app.rooms.settings, "public_url", "https://fleet.example")
        with httpx.Client(base_url=app.url, headers={"Origin": "https://fleet.example"}, timeout=40.0) as browser:
            assert "Secure" in browser.post("/sign-in", data={"key": app.key}).headers["set-cookie"]


@pytest.mark.parametrize("end", ["sign-out", "revoked", "old", "forged"])
def test_a_session_ends(tmp_path: Path, end: str) -> None:
    with FleetApp(tmp_path) as app, app.client() as client, signed_in(app, client.make_key("ada", "viewer")) as browser:
        assert browser.get("/").status_code == 200
        secret = browser.cookies[COOKIE]
        if end == "sign-out":
            assert browser.post("/sign-out").headers["location"] == "/sign-in"
        elif end == "revoked":
            client.revoke_key("ada")
        elif end == "old":
            app.clock.ahead_s += VALID_S + 1.0
        else:
            secret = f"{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}"
        browser.cookies.clear()
        browser.cookies.set(COOKIE, secret)  # also for somebody who has copied it
        assert browser.get("/").headers["location"] == "/sign-in?next=/"
        assert browser.get("/", headers={"X-Live": "1"}).status_code == 401


@pytest.mark.parametrize("key", ["", "vf_wrong", "\x00", "é" * 100])
def test_a_wrong_key_is_refused_in_words(fleet: RolloutFleet, key: str) -> None:
    with httpx.Client(base_url=fleet.url, headers={"Origin": fleet.url}, timeout=40.0) as browser:
        answer = browser.post("/sign-in", data={"key": key})
        assert answer.status_code == 401 and "This key is unknown" in answer.text and not browser.cookies


# -- what it says -------------------------------------------------------------------------------------------------------------


def pages(fleet: RolloutFleet) -> list[str]:
    rollout = f"/rollouts/{fleet.rollout}"
    return [
        "/", "/robots/arm_1", "/robots/evil", "/rollouts", rollout, f"{rollout}/abort", "/experiments", "/models",
        "/models/pick_place", "/events", "/sign-in", "/nothing", "/robots/nobody",
    ]  # fmt: skip


def test_nothing_that_a_robot_or_a_person_says_becomes_markup(fleet: RolloutFleet, operator: httpx.Client) -> None:
    about = {
        "time_s": 1.0, "state": EVIL, "active_version": EVIL, "hold_reason": EVIL, "holding": True, "message": EVIL,
        "versions": [EVIL], "blocked": [EVIL], "error_code": EVIL, "name": EVIL, "experiment": EVIL, "trial_version": EVIL,
        "trial_message": EVIL, "scores": {EVIL: 1.0},
    }  # fmt: skip
    event = {
        "robot": "evil", "time_s": 1.0, "received_s": 1.0, "update_id": EVIL, "from_state": EVIL, "to_state": "ACTIVE",
        "version": EVIL, "digest": EVIL, "cause": EVIL, "error_code": EVIL, "message": EVIL,
    }  # fmt: skip

    async def write() -> None:
        async with fleet.rooms.database.begin() as session:
            row = {
                "name": "evil",
                "token_hash": "evil",
                "group": EVIL,
                "tags": [EVIL],
                "enrolled_s": 1.0,
                "software": EVIL,
            }
            await session.execute(insert(RobotRow), [{**row, "status": about}])
            await session.execute(insert(EventRow), [event])

    fleet.do(write())
    assert html.escape(EVIL, quote=False) in operator.get("/?q=evil").text.replace("&#39;", "'").replace("&#34;", '"')
    for path in (
        *pages(fleet),
        f"/?q={EVIL}",
        f"/events?robot={EVIL}&to={EVIL}",
        "/?sort=version",
        f"/sign-in?next=/{EVIL}",
    ):
        text = operator.get(path).text
        assert "<img" not in text and "onerror=alert(1)>'" not in text, path
    assert EVIL in words(operator.get("/robots/evil").text)


def test_a_page_loads_and_runs_nothing_but_this_servers_files(fleet: RolloutFleet, operator: httpx.Client) -> None:
    for path in pages(fleet):
        answer = operator.get(path)
        if answer.headers["content-type"].startswith("application/json"):
            continue
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'", path
        assert policy["frame-ancestors"] == "'none'" and policy["form-action"] == "'self'"
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<[^>]+\s(?:on\w+|style)\s*=", re.sub(r'="[^"]*"', "=", answer.text)), path
        for address in re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="([^"]*)"', answer.text):
            assert address.startswith("/page/") and operator.get(address).status_code == 200


def test_what_is_not_there_is_said_on_a_page(operator: httpx.Client) -> None:
    for path, status, code in (
        ("/robots/nobody", 404, "ROBOT_NOT_FOUND"),
        ("/rollouts/r-none", 404, "ROLLOUT_NOT_FOUND"),
        ("/rollouts/r-none/dance", 404, "ROLLOUT_NOT_FOUND"),
        ("/experiments/e-none", 404, "EXPERIMENT_NOT_FOUND"),
        ("/models/none", 404, "MODEL_NOT_FOUND"),
        ("/robots/arm_1?at=tomorrow", 422, "INPUT_INVALID"),
        ("/?page=0", 422, "INPUT_INVALID"),
    ):
        answer = operator.get(path)
        assert (answer.status_code, code in answer.text) == (status, True), path
        assert "Sign out" in answer.text  # one can go on from there
    nowhere = operator.get("/nowhere", headers={"Accept": "text/html,*/*"})
    assert nowhere.status_code == 404 and "nothing is at /nowhere" in nowhere.text
    assert operator.get("/v1/nowhere").json()["error_code"] == "NOT_FOUND"


def test_a_robot_whose_clock_is_wrong_breaks_no_page(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    event = protocol.Event(time_s=1e12, from_state="", to_state="ACTIVE", version="9.9.9", seq=2**40)
    fleet.do(fleet.rooms.inbox.news("unit_00003", "", [event]))
    for path in ("/", "/robots/unit_00003", "/events?robot=unit_00003", "/robots/unit_00003?at=9999-12-31T23:59"):
        assert viewer.get(path).status_code == 200, path
    assert "1000000000000 s" in viewer.get("/events?robot=unit_00003").text


def test_a_page_that_has_not_changed_is_not_sent_again(viewer: httpx.Client) -> None:
    first = viewer.get("/models")
    again = viewer.get("/models", headers={"If-None-Match": first.headers["etag"], "X-Live": "1"})
    assert (again.status_code, again.text) == (304, "")


# -- many robots --------------------------------------------------------------------------------------------------------------


def named(text: str) -> list[str]:
    """Return the robots of a page's table."""
    return re.findall(r'<th scope="row"><a href="/robots/([\w.-]+)"', text)


def test_robots_come_fifty_at_a_time_and_each_once(viewer: httpx.Client) -> None:
    found = [named(viewer.get(f"/?q=unit_&page={number}").text) for number in (1, 2, 3, 4)]
    assert [len(names) for names in found] == [50, 50, 20, 0]
    assert sorted(itertools.chain(*found)) == [f"unit_{index:05}" for index in range(CROWD)]
    assert f"1 to 50 of {CROWD}" in words(viewer.get("/?q=unit_").text)


def test_robots_are_found_by_name_group_version_and_whether_they_are_online(
    fleet: RolloutFleet, viewer: httpx.Client
) -> None:
    fleet.heard()
    assert named(viewer.get("/?q=ARM_1").text) == ["arm_1"]
    assert len(named(viewer.get("/?q=unit+hall-2").text)) == CROWD // 4
    assert named(viewer.get("/?q=%25").text) == []  # no pattern
    rows = [row for row in fleet.client.robots() if row["name"].startswith("unit_")]
    new = {row["name"] for row in rows if row["status"]["active_version"] == NEW}
    away = {row["name"] for row in rows if not row["online"]}
    assert 10 < len(new) < CROWD and 0 < len(away) < 20
    assert set(named(viewer.get(f"/?q=unit_&version={NEW}").text)) == new
    assert set(named(viewer.get("/?q=unit_&line=offline").text)) == away
    assert set(named(viewer.get("/?q=unit_&state=none").text)) == set()
    last = named(viewer.get("/?q=unit_&sort=seen&page=3").text)[-len(away) :]
    assert set(last) == away


def test_the_fleet_is_counted_by_version_and_over_time(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    overview, now_s = fleet.rooms.overview, fleet.clock.now()
    counts = fleet.do(overview.counts(fleet.rooms.online_since_s()))
    rows = fleet.client.robots()
    assert (counts.robots, counts.online) == (len(rows), sum(row["online"] for row in rows))
    acts = [row["status"]["active_version"] for row in rows if row["name"].startswith("unit_")]
    course = fleet.do(overview.course(now_s - 6 * 86400.0, now_s, 24))
    assert course.versions[NEW][-1] >= acts.count(NEW) and course.versions[NEW][0] == 0
    assert course.versions[OLD][0] == 0  # five days ago they got their first version
    middle = course.versions[OLD][12]
    assert middle == CROWD
    lately = fleet.do(overview.course(now_s - 3600.0, now_s, 24))
    assert lately.versions[NEW][0] == acts.count(
        NEW
    )  # what ran already when the drawing begins is there from its beginning
    assert lately.versions[OLD][0] == acts.count(OLD)


def test_a_robots_page_answers_what_ran_at_a_moment(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    now_s = fleet.clock.now()
    name = next(
        row["name"] for row in fleet.client.robots() if row["name"] > "unit_" and row["status"]["active_version"] == NEW
    )
    before = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(now_s - 2 * 86400.0))
    assert f"{OLD} ran." in words(viewer.get(f"/robots/{name}?at={before}").text)
    long_ago = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(now_s - 30 * 86400.0))
    assert "The record does not reach back" in words(viewer.get(f"/robots/{name}?at={long_ago}").text)
    later = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(now_s + 86400.0))
    assert "of later times the server has not heard" in words(viewer.get(f"/robots/{name}?at={later}").text)


def test_events_are_found_by_what_they_tell_and_go_back_page_by_page(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    seen: list[str] = []
    path: str | None = f"/events?to=ACTIVE&version={OLD}"
    while path:
        text = viewer.get(path).text
        seen += [name for name in named(text) if name.startswith("unit_")]
        link = re.search(r'id="next" rel="next" href="([^"]*)"', text)
        path = f"/events{html.unescape(link[1])}" if link else None
    assert sorted(seen) == [f"unit_{index:05}" for index in range(CROWD)]
    assert set(named(viewer.get("/events?robot=arm_2").text)) == {"arm_2"}


def test_a_robot_that_was_never_heard_has_a_page(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    async def write() -> None:
        async with fleet.rooms.database.begin() as session:
            row = {"name": "fresh", "token_hash": "fresh", "group": "new", "tags": [], "enrolled_s": 1.0, "status": {}}
            await session.execute(insert(RobotRow), [row])
            await session.execute(update(RobotRow).where(RobotRow.name == "fresh").values(last_seen_s=0.0))

    fleet.do(write())
    shown = words(viewer.get("/robots/fresh").text)
    assert "offline last seen never" in shown and "It has not said anything yet." in shown
    assert named(viewer.get("/?q=fresh&version=none&state=none").text) == ["fresh"]


# -- evidence: time passes, and robots of the crowd are offline from here on ---------------------------------------------------


def test_a_rollouts_page_shows_what_its_judge_said_last(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    for _ in range(4):
        fleet.pass_time(300.0)
        fleet.episodes(3)
        fleet.step()
    verdict, before = fleet.client.rollout(fleet.rollout)["verdict"], None
    while verdict != before:  # the server judges on its own, too, when time has passed
        before, shown = verdict, words(viewer.get(f"/rollouts/{fleet.rollout}").text)
        verdict = fleet.client.rollout(fleet.rollout)["verdict"]
    assert verdict["decision"] == "HOLD" and verdict["missing"]
    assert [text for text in verdict["missing"] if text not in shown] == [], shown
    success = verdict["figures"]["tests"]["success"]
    assert (
        f"lower success: {math.exp(success['log_e']):,.3g} rolled back at {math.exp(success['decides_at']):,.3g}"
        in shown
    )
    old, new = verdict["figures"]["in_stage"]
    assert f"{new} of at least 50" in shown and f"{old} of at least 50" in shown
    successes, episodes = verdict["figures"]["incumbent"]
    low, high = confidence_sequence(successes, episodes)
    assert f"{successes} of {episodes} {successes / episodes:.1%} {low:.1%} to {high:.1%}" in shown


def test_a_long_course_of_evidence_is_thinned_and_keeps_its_last_verdict(fleet: RolloutFleet) -> None:
    log = [json.loads(line) for line in fleet.do(fleet.rooms.rollouts.log(fleet.rollout))]
    verdicts = [record for record in log if record["record"] == "verdict"]
    assert len(verdicts) > 3
    for most in (1, 2, 3, len(verdicts), 200):
        found = fleet.do(fleet.rooms.rollouts.course(fleet.rollout, most))
        assert found.verdicts[-1] == verdicts[-1] and all(record in verdicts for record in found.verdicts)
        assert len(found.verdicts) <= most and (most < len(verdicts) or found.verdicts == verdicts)
        assert found.settings == log[0]["settings"]


def test_no_interval_is_drawn_where_robots_run_one_version_each(fleet: RolloutFleet, viewer: httpx.Client) -> None:
    fleet.add("solo_1", "solo_2", group="solos", arms=False)
    stages = [{"name": "half", "share": 0.5, "duration_s": 7200.0}, {"name": "full", "share": 1.0}]
    rollout = fleet.client.create_rollout(model=MODEL, target="group:solos", stages=stages)["id"]
    fleet.until(rollout, "JUDGING", "ASKING")
    fleet.pass_time(300.0)
    fleet.episodes(3)
    fleet.step()
    text = viewer.get(f"/rollouts/{rollout}").text
    assert "Its episodes are alike" in text and "95% interval" not in text and 'class="band' not in text
    assert "2 robots with one version each cannot be judged" in words(text)
    fleet.client.steer_rollout(rollout, "abort", "seen", keep=True)


# -- for many who look --------------------------------------------------------------------------------------------------------


def test_what_many_ask_at_once_is_found_out_once_and_an_error_is_not_remembered() -> None:
    async def work() -> None:
        shared, asked = Shared(), 0

        async def find() -> int:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0.3)
            if asked == 1:
                raise ValueError
            return asked

        first = await asyncio.gather(*(shared.get("key", find) for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in first] == [ValueError] * 5
        assert await asyncio.gather(*(shared.get("key", find) for _ in range(5))) == [2] * 5
        assert await shared.get("key", find) == 2  # it took 0.3 s: so it is good for 3 s
        shared.forget("key")
        assert await shared.get("key", find) == 3
        gone = asyncio.create_task(shared.get("other", find))
        await asyncio.sleep(0.01)
        stays = asyncio.create_task(shared.get("other", find))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert await stays == 4  # though whoever asked first has gone

    asyncio.run(work())
