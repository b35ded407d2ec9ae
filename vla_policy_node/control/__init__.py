# SPDX-License-Identifier: Apache-2.0
"""The control process: takes actions from chunks and commands the robot, on absolute deadlines, within the contract's limits.

``client.py`` is the node's side; everything else runs in the child. Nothing here imports torch or rclpy: the ROS
publisher is ``ros/command_publisher.py``.
"""
