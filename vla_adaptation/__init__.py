# SPDX-License-Identifier: Apache-2.0
"""A robot learns a LoRA adapter from its own episodes while it is idle; training is a process of its own."""
