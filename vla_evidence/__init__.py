# SPDX-License-Identifier: Apache-2.0
"""Better, worse or unproven? Sequential tests and confidence bounds for robot and cloud: pure maths on numpy and scipy."""

from __future__ import annotations

from vla_evidence.bounds import proportion_lower_bound, proportion_upper_bound
from vla_evidence.eprocess import BernoulliEProcess
from vla_evidence.quantile import exceedance_limit, observations_needed, quantile_upper_bound

__all__ = [
    "BernoulliEProcess",
    "exceedance_limit",
    "observations_needed",
    "proportion_lower_bound",
    "proportion_upper_bound",
    "quantile_upper_bound",
]
