# SPDX-License-Identifier: Apache-2.0
"""How soon the tests of ``vla_evidence`` find a worse policy, and how often they blame a good one, beside other rules."""
