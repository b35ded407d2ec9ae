# SPDX-License-Identifier: Apache-2.0
"""The robot contract: which topics are which features, what a command is, its limits, and what each channel does in a hold."""
