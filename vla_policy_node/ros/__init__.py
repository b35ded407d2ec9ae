# SPDX-License-Identifier: Apache-2.0
"""The ROS face of the policy node: lifecycle node, messages, diagnostics, and the command publisher of the control process."""
