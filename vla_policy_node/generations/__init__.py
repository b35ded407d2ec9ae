# SPDX-License-Identifier: Apache-2.0
"""Loaded bundles: which one acts, how another takes its place, and what happens when one is lost.

``generations.py`` prepares and swaps; ``residents.py`` knows active, standby, prepared; ``swapping.py`` has requests and reports;
``in_place.py`` loads in the place of what acts; ``lease.py`` is a trial's; ``recovery.py`` is what happens by itself.
"""
