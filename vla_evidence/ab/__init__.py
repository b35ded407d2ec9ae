# SPDX-License-Identifier: Apache-2.0
"""Is policy A or policy B better? Judges that may be asked after every episode, and answer in words and numbers.

:class:`PairedABJudge` for episodes that come in pairs on the same robot (it needs the fewest): exact sign test.
:class:`UnpairedABJudge` for robots that run one policy each: exact randomisation test, the robot being the unit.

Both promise P(A_BETTER or B_BETTER at any time, though the policies do not differ) <= α, however often they are asked. "Do not
differ" means: each pair (each robot's sequence of outcomes) would have come out alike with the policies exchanged. For robots
with one policy each that is more than equal rates: a policy with the same mean that makes robots more unlike each other may be
found different, and how many episodes a robot runs must say nothing about how they go (:mod:`randomisation_test`).
Episodes are assigned before they have an outcome; one that never gets one has failed (:mod:`vla_evidence.ab.open`).

Latency of episodes that succeeded is judged beside success by the same kind of test at an α of its own; it never changes the
decision, which is about success alone. To fail fast is not to be fast; but who fails where it would be slow looks faster.
Intervals shown are Wilson's, for one look: they say where a rate lies, the decision does not come from them.
"""

from __future__ import annotations

from vla_evidence.ab.pairs import PairedABJudge
from vla_evidence.ab.robots import UnpairedABJudge
from vla_evidence.ab.verdict import ABDecision, ABVerdict, ArmSummary

__all__ = ["ABDecision", "ABVerdict", "ArmSummary", "PairedABJudge", "UnpairedABJudge"]
