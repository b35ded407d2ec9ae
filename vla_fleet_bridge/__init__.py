# SPDX-License-Identifier: Apache-2.0
"""The robot's line to the fleet server: orders come in, and what happened goes out, also after hours without a network."""
