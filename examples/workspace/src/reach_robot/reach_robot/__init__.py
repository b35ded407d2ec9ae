# SPDX-License-Identifier: Apache-2.0
"""A robot's own package."""
