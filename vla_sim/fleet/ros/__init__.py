# SPDX-License-Identifier: Apache-2.0
"""What of the simulated fleet speaks ROS."""
