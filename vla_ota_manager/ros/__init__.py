# SPDX-License-Identifier: Apache-2.0
"""The ROS face of the manager: node, services and action, messages, and its client of the policy node."""
