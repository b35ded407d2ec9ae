# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters that robots trained, merged exactly: the sum of what they change, not a product of averaged factors."""
