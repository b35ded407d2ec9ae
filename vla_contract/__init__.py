# SPDX-License-Identifier: Apache-2.0
"""``vla-contract``: a first robot contract from what a robot publishes and what its dataset holds, and what it still lacks.

``ros/looking.py`` looks at the ROS graph with the doctor's eyes; everything else is without ROS. ``joining.py`` decides what is
known; what is not, and everything that keeps the robot safe, stays ``TODO`` and is refused by name.
"""
