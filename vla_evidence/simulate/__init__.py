# SPDX-License-Identifier: Apache-2.0
"""What would happen in a fleet? Two exercises, answered by simulation.

``ab``: how long an A/B test takes. ``canary``: how soon a bad update is undone. Both use a ``fleet`` of robots that differ,
``rollouts`` by the judge itself, and ``rules`` that promise more than they hold; ``report`` and ``plots`` write the
answers.
"""
