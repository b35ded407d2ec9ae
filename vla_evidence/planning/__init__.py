# SPDX-License-Identifier: Apache-2.0
"""How many episodes, days and robots does a decision take? Formulas and simulations.

``plan`` answers in sentences, by the formulas of ``sample_size`` and the simulations of ``stopping``. ``feasible`` says
what a rollout will do in a fleet before anything runs.
"""
