# SPDX-License-Identifier: Apache-2.0
"""The demonstration of learning from the fleet: robots fail at something new, an operator corrects, the fleet can do it.

``python -m vla_sim.fleet.flywheel --out build/demo-flywheel``; ``chapters.py`` is the story, ``checks.py`` what must be true.
"""
