# SPDX-License-Identifier: Apache-2.0
"""The demonstration of the whole system: one server, eight robots, good and bad versions.

``python -m vla_sim.fleet.demo --out build/demo-fleet``; ``chapters.py`` is the story.
"""
