# SPDX-License-Identifier: Apache-2.0
"""The robots: how one enrols, what it was ordered to do, and what it says."""
