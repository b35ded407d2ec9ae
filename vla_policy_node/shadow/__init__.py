# SPDX-License-Identifier: Apache-2.0
"""Shadow: a loaded bundle sees what the robot sees, and nothing that it answers is commanded.

``judge.py`` decides, ``incumbent.py`` reads along what acts, ``session.py`` puts a candidate through it before it may act;
``follower.py`` compares what a shadow-only node would have done with what the robot did.
"""
