# SPDX-License-Identifier: Apache-2.0
"""May a candidate be published? It must not have forgotten old tasks, and must be better at new ones.

``simulator.py`` runs candidate and base on the same seeded episodes, ``recorded.py`` compares what they predict with what was
recorded in episodes that training did not see; ``gate.py`` joins both into a verdict.
"""
