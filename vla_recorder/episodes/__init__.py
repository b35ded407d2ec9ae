# SPDX-License-Identifier: Apache-2.0
"""Episodes as files that a policy can learn from: written, kept as long as they are worth most, uploaded. No ROS here."""
