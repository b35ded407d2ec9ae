# SPDX-License-Identifier: Apache-2.0
"""Episodes in, better policies out: store, data sets, trainers, gate, adapters. No ROS; torch in trainers and gate only."""
