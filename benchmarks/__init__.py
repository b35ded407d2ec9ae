# SPDX-License-Identifier: Apache-2.0
"""Speed and memory, measured against other ways of doing the same in one run: ``make bench``, ``docs/benchmarks.md``."""
