# SPDX-License-Identifier: Apache-2.0
"""Is policy A or policy B better? Judges that may be asked after every episode, and answer in words and numbers.

:class:`~vla_evidence.ab.pairs.PairedABJudge` for robots that hold both policies (it needs the fewest episodes): exact sign test.
:class:`~vla_evidence.ab.robots.UnpairedABJudge` for robots that run one policy each: exact randomisation test; a robot is one
observation. :class:`~vla_evidence.ab.abtest.ABTest` is the small class of the fleet lesson.

Both promise P(A_BETTER or B_BETTER at any time, though the policies do not differ) <= α, however often they are asked. "Do
not differ" means: each pair (each robot's sequence of outcomes) would have come out alike with the policies exchanged. For
robots with one policy each that is more than equal rates: a policy with the same mean that suits some robots and not others
is different.

Latency of episodes that succeeded is judged beside success by the same kind of test, at an α of its own; it never changes the
decision. Intervals shown are Wilson's, for one look: the decision does not come from them.
"""
