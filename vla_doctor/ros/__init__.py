# SPDX-License-Identifier: Apache-2.0
"""The doctor's node: looks at the graph of the robot."""
