# SPDX-License-Identifier: Apache-2.0
"""Was that verdict right? The log of a judgement, from which every verdict can be computed again."""
