# SPDX-License-Identifier: Apache-2.0
"""A node that takes camera pictures and does a node's other work, with a control loop in it or beside it."""
