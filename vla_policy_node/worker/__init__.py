# SPDX-License-Identifier: Apache-2.0
"""Worker processes: one loads one bundle, proves itself, and turns observations into action chunks.

``pool.py`` is the node's side; ``__main__.py`` is where a worker process begins.
"""
