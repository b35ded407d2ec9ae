# SPDX-License-Identifier: Apache-2.0
"""Keeps what happened on a robot: the black box, written as MCAP when the robot holds, rolls back or loses a worker."""
