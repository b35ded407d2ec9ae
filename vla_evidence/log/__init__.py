# SPDX-License-Identifier: Apache-2.0
"""Was that verdict right? The log of a judgement, from which every verdict can be computed again.

``rollout`` is what a fleet server calls. ``replay`` logs what a judge sees and says, and computes logs again, ``judgements``
checks each record and gives it to its judge, ``records`` is the format: one JSON object a line.
"""
