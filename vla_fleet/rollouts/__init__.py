# SPDX-License-Identifier: Apache-2.0
"""One version, stage by stage to a part of the fleet, and back from everywhere when it is worse.

``settings`` is what a person may ask for. ``evidence`` gives outcomes to the judge. ``engine`` moves every rollout on, one
transaction a step; ``rollouts`` is what people do with them. Which order a robot gets next is decided in ``vla_fleet.steering``.
"""
