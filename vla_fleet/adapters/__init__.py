# SPDX-License-Identifier: Apache-2.0
"""Adapters that robots trained on their own episodes and uploaded."""
