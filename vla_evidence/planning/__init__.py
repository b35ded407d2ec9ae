# SPDX-License-Identifier: Apache-2.0
"""How many episodes, days and robots does a decision take? Formulas, and simulations of the judges themselves."""
