# SPDX-License-Identifier: Apache-2.0
"""A look at the ROS graph of a robot."""
