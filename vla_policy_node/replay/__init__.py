# SPDX-License-Identifier: Apache-2.0
"""``vla-replay``: what would this policy have done? A recording through one bundle or two, and where they differ."""
