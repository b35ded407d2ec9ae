# SPDX-License-Identifier: Apache-2.0
"""One version, stage by stage to a part of the fleet, and back from everywhere when it is worse.

``settings`` is what a person may ask for. ``reconcile`` decides, purely, which order each robot gets next. ``evidence`` gives
outcomes to the judge. ``engine`` moves every rollout on, one transaction a step; ``rollouts`` is what people do with them.
"""
