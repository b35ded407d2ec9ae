# SPDX-License-Identifier: Apache-2.0
"""The few ROS helpers that every node shares: QoS profiles, parameters, diagnostics, stamps, spinning and shutting down."""
