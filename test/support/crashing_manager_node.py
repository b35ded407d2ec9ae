# SPDX-License-Identifier: Apache-2.0
"""ota_manager that kills itself at the crash point that the variable CRASH_AT names: run by a test as a process."""

from __future__ import annotations

import os

from support.filesystems import CrashingFilesystem
from vla_ota_manager import engine
from vla_ota_manager.ros.manager_node import main

engine.Filesystem = lambda: CrashingFilesystem(os.environ["CRASH_AT"])  # type: ignore[assignment,misc]
main()
