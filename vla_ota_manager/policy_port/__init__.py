# SPDX-License-Identifier: Apache-2.0
"""The policy node as the update engine sees it, over ROS."""
