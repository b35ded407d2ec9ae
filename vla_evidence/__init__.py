# SPDX-License-Identifier: Apache-2.0
"""Better, worse or unproven? Sequential tests and confidence bounds for robot and cloud: pure maths on numpy and scipy.

Here is what the robot imports, and no more. The rest lies in a folder for each question:

* ``sequential/``: may I look again and again, and still be right?
* ``canary/``: may this update go to more robots?
* ``ab/``: is A or B better?
* ``log/``: was that verdict right? Also what a fleet server calls (:class:`vla_evidence.log.rollout.Rollout`).
* ``planning/``: how many episodes, days and robots does a decision take?
* ``simulate/``: what would happen in a fleet? The two exercises.
"""

from __future__ import annotations

from vla_evidence.errors import EvidenceError, InputError, LogError
from vla_evidence.sequential.bounds import observations_needed, proportion_lower_bound
from vla_evidence.sequential.exceedance import ExceedanceTest, FailureTest

__all__ = [
    "EvidenceError",
    "ExceedanceTest",
    "FailureTest",
    "InputError",
    "LogError",
    "observations_needed",
    "proportion_lower_bound",
]
