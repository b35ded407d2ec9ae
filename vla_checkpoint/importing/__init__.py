# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint that a team has to a bundle.

``source.py`` finds the folder, ``dataset.py`` and ``training.py`` read what LeRobot wrote beside it, ``plan.py`` joins that with
the robot and with what was typed, ``folder.py`` makes the bundle, ``merge.py`` merges an adapter into its base.
"""
