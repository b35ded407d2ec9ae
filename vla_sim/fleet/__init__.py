# SPDX-License-Identifier: Apache-2.0
"""A fleet without hardware: simulated robots on the real line to a real server, and the demonstration of the whole system."""
