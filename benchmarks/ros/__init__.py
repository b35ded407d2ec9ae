# SPDX-License-Identifier: Apache-2.0
"""Processes on ROS: cameras, and a loaded node beside or within which the loop runs."""
