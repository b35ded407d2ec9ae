# SPDX-License-Identifier: Apache-2.0
"""One fleet server under 100 to 10,000 robots, two servers of which one is killed, and what a user would write by hand."""
