# SPDX-License-Identifier: Apache-2.0
"""Imported before numpy: libraries for linear algebra keep to one thread, in this process and in those that it starts.

Several tests share a machine's cores. Threads that wait for each other spin on them: what takes ten seconds takes minutes, and
the tests beside it stall.
"""

from __future__ import annotations

import os

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
