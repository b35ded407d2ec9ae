# SPDX-License-Identifier: Apache-2.0
"""Take the pictures of the page that the documentation shows: `scripts/run python scripts/page_pictures.py [FOLDER]`.

The robots of the rollout and of the experiment are simulated, on real lines; the crowd is put into the database. Needs chromium.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "test"))

from support.browsing import PHONE, WIDE, chromium, looking, signed_in  # noqa: E402
from support.page_fleet import crowd, experiment, learnt, rollout  # noqa: E402
from support.rollouts import NEW, OLD, RolloutFleet  # noqa: E402


def main() -> None:
    """Write a picture a page."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "docs" / "pictures"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, RolloutFleet(Path(folder)) as fleet:
        fleet.add(*(f"picker_{n}" for n in range(1, 9)), group="pickers", old=0.90, new=0.93)
        lasting(fleet, 21.0, 18.0)
        for _ in range(8):
            fleet.pass_time(3600.0)
            fleet.episodes(4)
        shown = rollout(fleet, "pickers", 64)
        fleet.add(*(f"packer_{n}" for n in range(1, 7)), group="packers", old=0.75, new=0.85)
        lasting(fleet, 21.0, 18.0)
        compared = experiment(fleet, "packers", 12)
        crowd(fleet, 1200)
        learnt(fleet, "picker_3", Path(folder))
        fleet.heard()
        with chromium() as browser:
            for name, path, dark, size, whole in (
                ("fleet", "/", False, {"width": 1280, "height": 1040}, False),
                ("fleet_dark", "/", True, {"width": 1280, "height": 1040}, False),
                ("fleet_phone", "/", False, PHONE, False),
                ("robot", "/robots/picker_3", False, WIDE, True),
                ("rollout", f"/rollouts/{shown}", False, WIDE, True),
                ("experiment", f"/experiments/{compared}", False, WIDE, True),
            ):
                with looking(browser, dark=dark, size=size) as context:
                    page = signed_in(context, fleet.url, fleet.server.key, path)
                    page.wait_for_timeout(500)
                    picture = out / f"page_{name}.png"
                    page.screenshot(path=picture, full_page=whole)
                    shrink(picture)


def lasting(fleet: RolloutFleet, old_s: float, new_s: float) -> None:
    """Let episodes take as long as on a real robot."""
    for robot in fleet.robots.values():
        for version, seconds in ((OLD, old_s), (NEW, new_s)):
            robot.behaviours[version] = replace(robot.behaviours[version], duration_s=seconds)


def shrink(picture: Path) -> None:
    """Keep 200 colours: a page has few, and the repository stays small."""
    with Image.open(picture) as opened:
        opened.convert("RGB").quantize(200, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
