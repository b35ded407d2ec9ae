# SPDX-License-Identifier: Apache-2.0
"""Which policies there are: versions that never change, and aliases that move between them."""
