# SPDX-License-Identifier: Apache-2.0
"""What a moving arm feels of a swap: ``python -m benchmarks.seam``."""
