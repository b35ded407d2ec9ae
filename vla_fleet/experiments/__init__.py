# SPDX-License-Identifier: Apache-2.0
"""A/B tests between two versions of a model: planned, drawn, judged on evidence, stopped by a rule that was fixed before."""
