# SPDX-License-Identifier: Apache-2.0
"""What of the demonstration speaks ROS."""
