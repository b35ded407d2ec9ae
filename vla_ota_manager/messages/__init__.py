# SPDX-License-Identifier: Apache-2.0
"""The manager's records as ROS messages, and back."""
