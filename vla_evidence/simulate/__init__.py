# SPDX-License-Identifier: Apache-2.0
"""Two questions about a fleet, answered by simulation: how long an A/B test takes, and how soon a bad update is undone."""
