# SPDX-License-Identifier: Apache-2.0
"""Recordings as ROS messages, and the command line."""
