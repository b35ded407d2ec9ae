# SPDX-License-Identifier: Apache-2.0
"""``ros2 run vla_ota doctor``: can this robot run a policy and change it, and what is to be done.

``ros/doctor.py`` looks at the ROS graph and listens (it publishes nothing); the other modules judge what it saw, without ROS.
``catalog.py`` names every problem with its remedy; ``docs/doctor.md`` is made from it.
"""
