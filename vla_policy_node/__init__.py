# SPDX-License-Identifier: Apache-2.0
"""Runs a policy: control loop, workers, swap, scores, robot contract."""
